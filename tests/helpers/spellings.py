"""The names that Microsoft's and fairseq's checkpoints have, written from Hugging Face's.

They are written down here a second time, by hand, so that a test can see an error in the project's own.
"""

import re

_ENCODER = (
    (r"^masked_spec_embed$", "mask_emb"),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
    (r"pos_conv_embed\.conv\.", "pos_conv.0."),
    (r"(\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"\.attention\.gru_rel_pos_linear\.", ".self_attn.grep_linear."),
    (r"\.attention\.gru_rel_pos_const", ".self_attn.grep_a"),
    (r"\.attention\.rel_attn_embed\.", ".self_attn.relative_attention_bias."),
    (r"\.attention\.", ".self_attn."),
    (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
    (r"\.feed_forward\.output_dense\.", ".fc2."),
)


def microsoft_name(name: str, *, layer_norm: bool) -> str:
    """Microsoft's name of an encoder's parameter, whose Hugging Face name is given without "wavlm.".

    `layer_norm`: the conv encoder has layer norms, as large's has, and no group norm.
    """
    norm = r"\1.2.1." if layer_norm else r"\1.2."
    for pattern, replacement in ((r"(conv_layers\.\d+)\.layer_norm\.", norm), *_ENCODER):
        name = re.sub(pattern, replacement, name)
    return name


def fairseq_name(name: str) -> str:
    """The name in fairseq's Wav2VecCtc around a large WavLM."""
    if name.startswith("lm_head."):
        return name.replace("lm_head.", "w2v_encoder.proj.")
    return "w2v_encoder.w2v_model." + microsoft_name(name.removeprefix("wavlm."), layer_norm=True)


MICROSOFT_CFG = {  # of a tiny large model
    "extractor_mode": "layer_norm",
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 8,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_norm_first": True,
    "conv_feature_layers": "[(4,10,5)] + [(4,3,2)] * 4 + [(4,2,2)] * 2",
    "conv_bias": False,
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "relative_position_embedding": True,
    "num_buckets": 64,
    "max_distance": 90,
    "gru_rel_pos": True,
}

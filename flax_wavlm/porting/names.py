"""Other spellings of Hugging Face's tensor names: older weight norm, torchaudio's, Microsoft's."""

from __future__ import annotations

import re

# Applied in this order to names without the prefix "wavlm.". No two formats disagree on a spelling.
SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Weight norm before torch's parametrizations.
        (r"(pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
        (r"(pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
        # torchaudio (`torchaudio.models.wav2vec2.utils.import_huggingface` has the way there).
        (r"^encoder\.feature_projection\.", "feature_projection."),
        (r"^encoder\.transformer\.", "encoder."),
        (r"^aux\.", "lm_head."),
        (r"\.attention\.attention\.out_proj\.", ".attention.out_proj."),
        # Microsoft (github.com/microsoft/unilm, wavlm/WavLM.py).
        (r"^mask_emb$", "masked_spec_embed"),
        (r"^layer_norm\.", "feature_projection.layer_norm."),
        (r"^post_extract_proj\.", "feature_projection.projection."),
        (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
        (r"^(feature_extractor\.conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
        (r"^(feature_extractor\.conv_layers\.0)\.2\.", r"\1.layer_norm."),
        (
            r"^encoder\.pos_conv\.0\.weight_g$",
            "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        ),
        (
            r"^encoder\.pos_conv\.0\.weight_v$",
            "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        ),
        (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
        (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
        (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
        (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
        (r"\.self_attn\.", ".attention."),
        (r"\.self_attn_layer_norm\.", ".layer_norm."),
        (r"\.fc1\.", ".feed_forward.intermediate_dense."),
        (r"\.fc2\.", ".feed_forward.output_dense."),
    )
)
JOINT = re.compile(r"(.*\.attention)\.attention\.in_proj_(weight|bias)")  # torchaudio's q, k and v in one


# What wrappers put anywhere into a name: DistributedDataParallel, torch.compile, FSDP, checkpointing.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def canonical_names(spelled: str) -> list[str]:
    """Hugging Face's name in WavLMForCTC for any known spelling; three names for a joint q, k, v projection.

    An unknown name comes back nearly as it was spelled, and the table has no place for it.
    """
    return names_in_wavlm(spelled.removeprefix("wavlm."))


def names_in_wavlm(spelled: str) -> list[str]:
    """`canonical_names` of a name inside the WavLM itself, or of its head: one without a prefix."""
    name = spelled
    for pattern, replacement in SPELLINGS:
        name = pattern.sub(replacement, name)
    if not name.startswith("lm_head."):
        name = f"wavlm.{name}"
    joint = JOINT.fullmatch(name)
    return [f"{joint[1]}.{part}_proj.{joint[2]}" for part in "qkv"] if joint else [name]


def unwrapped(spelled: str) -> str:
    """The name without the components that wrappers put into it."""
    return ".".join(part for part in spelled.split(".") if part not in WRAPPERS)

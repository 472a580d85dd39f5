"""TODO."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_wavlm.errors import UserError, reason
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.table import HEAD
from flax_wavlm.porting.weights import PretrainedWeights


def config_of_microsoft(path: Path, cfg: Any) -> tuple[WavLMConfig, bool]:
    """The configuration in Microsoft's checkpoint, and whether its input is normalised.

    Architecture only: its dropouts and masks are pre-training's; those for fine-tuning are the ones that
    Hugging Face publishes with the same weights.
    """
    if not isinstance(cfg, Mapping):
        raise UserError(f"{path}: 'cfg' is a {type(cfg).__name__}, expected a dict")
    try:
        layers = str(cfg["conv_feature_layers"])
        conv = [
            tuple(int(n) for n in dims)
            for *dims, times in re.findall(r"\((\d+),\s*(\d+),\s*(\d+)\)\]?\s*(?:\*\s*(\d+))?", layers)
            for _ in range(min(int(times or 1), 100))
        ]
        large = cfg["extractor_mode"] == "layer_norm"
        config = WavLMConfig(
            hidden_size=int(cfg["encoder_embed_dim"]),
            num_hidden_layers=int(cfg["encoder_layers"]),
            num_attention_heads=int(cfg["encoder_attention_heads"]),
            intermediate_size=int(cfg["encoder_ffn_embed_dim"]),
            hidden_act=str(cfg["activation_fn"]),
            feat_extract_norm="layer" if large else "group",
            conv_dim=tuple(dim for dim, _, _ in conv),
            conv_kernel=tuple(kernel for _, kernel, _ in conv),
            conv_stride=tuple(stride for _, _, stride in conv),
            conv_bias=bool(cfg["conv_bias"]),
            num_conv_pos_embeddings=int(cfg["conv_pos"]),
            num_conv_pos_embedding_groups=int(cfg["conv_pos_groups"]),
            num_buckets=int(cfg["num_buckets"]),
            max_bucket_distance=int(cfg["max_distance"]),
            do_stable_layer_norm=bool(cfg["layer_norm_first"]),
            **_RELEASED_REGULARISATION,
            layerdrop=0.1 if large else 0.05,
            mask_time_prob=0.075 if large else 0.05,
        )
        for name in ("relative_position_embedding", "gru_rel_pos"):
            if not cfg[name]:
                raise UserError(f"{path}: cfg[{name!r}] is false; only WavLM, which has it, can be loaded")
        return config, bool(cfg["normalize"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: 'cfg' holds a value of another kind ({reason(error)})") from None
    except KeyError as error:
        raise UserError(f"{path}: 'cfg' lacks {error}; expected the cfg of Microsoft's WavLM") from None


_RELEASED_REGULARISATION: dict[str, Any] = {
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "feat_proj_dropout": 0.1,
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
    "ctc_loss_reduction": "sum",
}


def infer_config(checkpoint: PretrainedWeights) -> WavLMConfig:
    """The configuration that the tensors' shapes imply; strides and distances are the released models'."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in checkpoint.tensors:
            raise UserError(
                f"{checkpoint.source}: has no config.json beside it and no tensor {name}, so it is no state "
                "dict of a WavLM that is known here"
            )
        found = checkpoint.tensors[name].shape
        if len(found) != rank or 0 in found:
            raise UserError(
                f"{checkpoint.source}: {name} is {list(found)}, expected {rank} axes; it is no state dict of "
                "a WavLM that is known here"
            )
        return found

    def count(pattern: str) -> int:
        return len({m[1] for name in checkpoint.tensors if (m := re.match(pattern, name))})

    convs = count(r"wavlm\.feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    if convs != len(WavLMConfig.conv_stride):
        raise UserError(
            f"{checkpoint.source}: {convs} convolutions; their strides cannot be told from the tensors. "
            "Put its config.json beside it"
        )
    conv_shapes = [shape(f"wavlm.feature_extractor.conv_layers.{i}.conv.weight", 3) for i in range(convs)]
    large = "wavlm.feature_extractor.conv_layers.1.layer_norm.weight" in checkpoint.tensors
    first = "wavlm.encoder.layers.0"
    direction = shape("wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original1", 3)
    buckets, heads = shape(f"{first}.attention.rel_attn_embed.weight", 2)
    return WavLMConfig(
        vocab_size=shape(HEAD[0], 2)[0] if HEAD[0] in checkpoint.tensors else 32,
        hidden_size=direction[0],
        num_hidden_layers=count(r"wavlm\.encoder\.layers\.(\d+)\.final_layer_norm\.weight"),
        num_attention_heads=heads,
        intermediate_size=shape(f"{first}.feed_forward.intermediate_dense.weight", 2)[0],
        feat_extract_norm="layer" if large else "group",
        conv_dim=tuple(s[0] for s in conv_shapes),
        conv_kernel=tuple(s[2] for s in conv_shapes),
        conv_bias="wavlm.feature_extractor.conv_layers.0.conv.bias" in checkpoint.tensors,
        num_conv_pos_embeddings=direction[2],
        num_conv_pos_embedding_groups=direction[0] // direction[1],
        num_buckets=buckets,
        do_stable_layer_norm=large,
        **_RELEASED_REGULARISATION,
        layerdrop=0.1 if large else 0.05,
        mask_time_prob=0.075 if large else 0.05,
    )

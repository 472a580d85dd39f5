"""A WavLMConfig where no config.json says it: from Microsoft's `cfg`, or from the shapes of the tensors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_wavlm.errors import UserError, reason
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.table import HEAD

Shapes = Mapping[str, tuple[int, ...]]  # by Hugging Face's names


def cfg_of_fairseq(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings of the encoder in a checkpoint of Microsoft's or of fairseq's; None where there are none.

    Microsoft's `cfg` is flat. In a fine-tuned model's (`cfg`, or `args` before) the settings of the model
    that it was begun with are nested, and elsewhere it says whether the input is normalised.
    """
    flat = content.get("cfg")
    if isinstance(flat, Mapping) and {"conv_feature_layers", "encoder_layers"} & flat.keys():
        return flat
    around = [_mapping(content.get(name)) for name in ("cfg", "args")]
    every = [found for root in around if root is not None for found in _nested(root, 6)]
    cfg = next((found for found in every if {"conv_feature_layers", "gru_rel_pos"} <= found.keys()), None)
    normalize = next((found["normalize"] for found in every if "normalize" in found), None)
    return cfg if cfg is None or normalize is None else {"normalize": normalize, **cfg}


def _mapping(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else None


def _nested(root: Mapping[str, Any], depth: int) -> list[Mapping[str, Any]]:
    """The mapping and those within it, the outer ones first."""
    found, level = [root], [root]
    for _ in range(depth):
        level = [m for outer in level for value in outer.values() if (m := _mapping(value)) is not None]
        level = [m for m in level if all(m is not known for known in found)][:100]
        found += level
    return found


def config_of_microsoft(path: Path, cfg: Any) -> tuple[WavLMConfig, bool]:
    """The configuration in Microsoft's .pt, and whether its input is normalised.

    Only the architecture is taken from `cfg`, because its dropouts and masks are pre-training's. Those for
    fine-tuning are the ones that Hugging Face publishes with the same weights.

    Raises UserError where `cfg` is no dict, lacks a value, or holds one that no WavLM has.
    """
    if not isinstance(cfg, Mapping):
        raise UserError(f"'cfg' is a {type(cfg).__name__}", where=path, expected="a dict")
    try:
        for name in ("relative_position_embedding", "gru_rel_pos"):
            if not cfg[name]:
                raise UserError(field=f"cfg.{name}", found=cfg[name], expected="true, as in WavLM")
        return WavLMConfig(**_microsoft_values(cfg)), bool(cfg["normalize"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"'cfg' holds a value of another kind ({reason(error)})", where=path) from None
    except KeyError as error:
        raise UserError(f"'cfg' lacks {error}", where=path, expected="the cfg of Microsoft's WavLM") from None
    except UserError as error:
        raise error.at(path) from None


def _microsoft_values(cfg: Mapping[str, Any]) -> dict[str, Any]:
    layers = str(cfg["conv_feature_layers"])  # "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    conv = [
        tuple(int(n) for n in dims)
        for *dims, times in re.findall(r"\((\d+),\s*(\d+),\s*(\d+)\)\]?\s*(?:\*\s*(\d+))?", layers)
        for _ in range(min(int(times or 1), 100))
    ]
    large = cfg["extractor_mode"] == "layer_norm"
    return {
        "hidden_size": int(cfg["encoder_embed_dim"]),
        "num_hidden_layers": int(cfg["encoder_layers"]),
        "num_attention_heads": int(cfg["encoder_attention_heads"]),
        "intermediate_size": int(cfg["encoder_ffn_embed_dim"]),
        "hidden_act": str(cfg["activation_fn"]),
        "feat_extract_norm": "layer" if large else "group",
        "conv_dim": tuple(dim for dim, _, _ in conv),
        "conv_kernel": tuple(kernel for _, kernel, _ in conv),
        "conv_stride": tuple(stride for _, _, stride in conv),
        "conv_bias": bool(cfg["conv_bias"]),
        "num_conv_pos_embeddings": int(cfg["conv_pos"]),
        "num_conv_pos_embedding_groups": int(cfg["conv_pos_groups"]),
        "num_buckets": int(cfg["num_buckets"]),
        "max_bucket_distance": int(cfg["max_distance"]),
        "do_stable_layer_norm": bool(cfg["layer_norm_first"]),
        **_released_regularisation(large),
    }


def _released_regularisation(large: bool) -> dict[str, Any]:
    """The values in the config.json that Hugging Face publishes with WavLM large, and base."""
    return {
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "feat_proj_dropout": 0.1,
        "activation_dropout": 0.0,
        "final_dropout": 0.0,
        "ctc_loss_reduction": "sum",
        "layerdrop": 0.1 if large else 0.05,
        "mask_time_prob": 0.075 if large else 0.05,
    }


def infer_config(path: Path, shapes: Shapes) -> WavLMConfig:
    """The configuration that the tensors' shapes imply; strides and distances are the released models'.

    Raises UserError where the tensors are no WavLM's.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(
                f"has no config.json beside it and no tensor {name}",
                where=path,
                expected="a state dict of a WavLM that is known here",
            )
        found = shapes[name]
        if len(found) != rank or 0 in found:
            raise UserError(
                where=path,
                field=name,
                found=list(found),
                expected=f"{rank} axes, as in a state dict of a WavLM that is known here",
            )
        return found

    def count(pattern: str) -> int:
        return len({m[1] for name in shapes if (m := re.match(pattern, name))})

    convs = count(r"wavlm\.feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    if convs != len(WavLMConfig.conv_stride):
        raise UserError(
            f"{convs} convolutions, whose strides cannot be told from the tensors",
            where=path,
            expected=f"{len(WavLMConfig.conv_stride)}",
            do="put its config.json beside it",
        )
    conv_shapes = [shape(f"wavlm.feature_extractor.conv_layers.{i}.conv.weight", 3) for i in range(convs)]
    large = "wavlm.feature_extractor.conv_layers.1.layer_norm.weight" in shapes
    first = "wavlm.encoder.layers.0"
    direction = shape("wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original1", 3)
    buckets, heads = shape(f"{first}.attention.rel_attn_embed.weight", 2)
    values: dict[str, Any] = {
        "vocab_size": shape(HEAD[0], 2)[0] if HEAD[0] in shapes else 32,
        "hidden_size": direction[0],
        "num_hidden_layers": count(r"wavlm\.encoder\.layers\.(\d+)\.final_layer_norm\.weight"),
        "num_attention_heads": heads,
        "intermediate_size": shape(f"{first}.feed_forward.intermediate_dense.weight", 2)[0],
        "feat_extract_norm": "layer" if large else "group",
        "conv_dim": tuple(s[0] for s in conv_shapes),
        "conv_kernel": tuple(s[2] for s in conv_shapes),
        "conv_bias": "wavlm.feature_extractor.conv_layers.0.conv.bias" in shapes,
        "num_conv_pos_embeddings": direction[2],
        "num_conv_pos_embedding_groups": direction[0] // direction[1],
        "num_buckets": buckets,
        "do_stable_layer_norm": large,
    }
    try:
        return WavLMConfig(**values, **_released_regularisation(large))
    except UserError as error:
        raise error.at(path) from None

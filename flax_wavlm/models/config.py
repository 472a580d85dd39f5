"""Architecture and regularisation of a WavLM: one frozen dataclass, to and from Hugging Face's config.json.

No jax: flags are checked before it is imported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flax_wavlm.errors import UserError, did_you_mean
from flax_wavlm.files import read_json_object
from flax_wavlm.models.compute import CHOICES, Compute

ACTIVATIONS = ("gelu", "gelu_new", "relu", "selu", "silu", "swish")


@dataclass(frozen=True)
class WavLMConfig(Compute):
    """Architecture and regularisation of a WavLM with a CTC head, and how it is computed (`Compute`).

    Names, meanings and defaults are those of `transformers.WavLMConfig`, so that a config.json that lacks a
    key means the same here and there. Released checkpoints differ from the defaults: read their own file
    with `from_hf`. The fields of `Compute` and the last group are ours, and are not written to config.json.
    """

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    # Convolutional feature encoder. "group": GroupNorm after the first convolution only (base models);
    # "layer": LayerNorm after every one (large).
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    # Positions: a grouped convolution, and buckets of relative distance.
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    num_buckets: int = 320
    max_bucket_distance: int = 800
    # True: LayerNorm before attention and feed-forward (large); False: after (base).
    do_stable_layer_norm: bool = False
    # Regularisation, active while training only.
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    # CTC. The blank is `pad_token_id`.
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = False
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    # Ours, not Hugging Face's, as are the fields of `Compute`.
    # GroupNorm over a clip's own frames only. transformers norms over the padding too, so that a base
    # model's logits depend on the batch it is in; True gives what transformers gives for the clip alone.
    masked_group_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("conv_dim", "conv_stride", "conv_kernel"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_types()
        for field in dataclasses.fields(self):
            if field.type == "float":  # transformers takes no 1 for 1.0
                try:
                    value = float(getattr(self, field.name))
                except OverflowError:
                    value = math.inf
                self._require(not math.isinf(value), field.name, "a finite number")
                object.__setattr__(self, field.name, value)
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel) > 0:
            raise UserError(
                "conv_dim, conv_stride and conv_kernel have different lengths",
                where="config",
                found=[len(self.conv_dim), len(self.conv_stride), len(self.conv_kernel)],
                expected="one value for each convolution",
            )
        for name, allowed in _CHOICES.items():
            self._require(getattr(self, name) in allowed, name, f"one of {', '.join(allowed)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            self._require(min(value) > 0 if isinstance(value, tuple) else value > 0, name, "above 0")
        for name in _NOT_NEGATIVE:
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in _PROBABILITIES:
            self._require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            self._require(
                self.hidden_size % getattr(self, name) == 0,
                name,
                f"a divisor of hidden_size = {self.hidden_size}",
            )
        self._require(self.num_buckets % 4 == 0, "num_buckets", "a multiple of 4")
        self._require(
            self.max_bucket_distance > self.num_buckets // 4,
            "max_bucket_distance",
            f"above num_buckets / 4 = {self.num_buckets // 4}",
        )

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise UserError(where="config", field=name, found=getattr(self, name), expected=expected)

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            expected: Any = {
                "int": int,
                "int | None": (int, type(None)),
                "float": (int, float),
                "bool": bool,
                "str": str,
                "tuple[int, ...]": tuple,
            }[str(field.type)]
            wrong = not isinstance(value, expected) or (isinstance(value, bool) and field.type != "bool")
            if wrong or (isinstance(value, tuple) and not all(type(v) is int for v in value)):
                raise UserError(where="config", field=field.name, found=value, expected=str(field.type))

    @property
    def min_samples(self) -> int:
        """The shortest clip that gives a frame: the receptive field of the feature encoder, in samples."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def frame_count(self, samples: Any, layers: int | None = None) -> Any:
        """Frames that the feature encoder makes of `samples` (an int or an integer array of them).

        `layers`: after the first `layers` convolutions (default: all). Source:
        `WavLMPreTrainedModel._get_feat_extract_output_lengths`, but never below 0.
        """
        for kernel, stride in list(zip(self.conv_kernel, self.conv_stride, strict=True))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples * (samples > 0)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values; an unknown name is a UserError that gives the nearest right one."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise UserError(
                    "there is no such field", where="config", found=name, do=did_you_mean(name, names)
                )
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | Path | str) -> Self:
        """Reads Hugging Face's config.json (its path, or the mapping that it holds).

        Keys that say nothing about a WavLM with a CTC head (quantizer, x-vector, ...) are not kept.
        Raises UserError for another model type and for what is not supported here (adapters).
        """
        name = "config"
        if isinstance(source, str | Path):
            name = str(source)
            source = read_json_object(Path(source), "a model's configuration")
        if source.get("model_type") != "wavlm":
            raise UserError(
                where=name,
                field="model_type",
                found=source.get("model_type"),
                expected="'wavlm'",
                do="other architectures cannot be loaded as WavLM",
            )
        if source.get("add_adapter"):
            raise UserError(
                where=name,
                field="add_adapter",
                found=source["add_adapter"],
                expected="false",
                do="WavLM with convolutional adapters is not supported",
            )
        values = {key: source[key] for key in cls.hf_fields() if key in source}
        if values.get("pad_token_id", 0) is None:
            del values["pad_token_id"]
        try:
            return cls(**values)
        except UserError as error:
            raise error.at(name) from None

    def to_hf(self) -> dict[str, Any]:
        """The mapping to write as config.json; `from_hf` reads it back, `transformers` loads it."""
        values = {key: getattr(self, key) for key in self.hf_fields()}
        return {"architectures": ["WavLMForCTC"], "model_type": "wavlm"} | {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }

    @classmethod
    def hf_fields(cls) -> list[str]:
        """The names that config.json and this class share."""
        return [field.name for field in dataclasses.fields(cls) if field.name not in _OURS]


_OURS = {field.name for field in dataclasses.fields(Compute)} | {"masked_group_norm"}
_CHOICES = CHOICES | {
    "hidden_act": ACTIVATIONS,
    "feat_extract_activation": ACTIVATIONS,
    "feat_extract_norm": ("group", "layer"),
    "ctc_loss_reduction": ("mean", "sum"),
}
_POSITIVE = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
    "conv_dim",
    "conv_stride",
    "conv_kernel",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "num_buckets",
    "mask_time_length",
    "mask_feature_length",
]
_NOT_NEGATIVE = [
    "initializer_range",
    "mask_time_min_masks",
    "mask_feature_min_masks",
    "pad_token_id",
    "unroll",
]
_PROBABILITIES = [
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "final_dropout",
    "layerdrop",
    "mask_time_prob",
    "mask_feature_prob",
]

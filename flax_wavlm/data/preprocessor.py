"""Samples to the model's input, as the checkpoint's Hugging Face feature extractor makes it.

A clip's mean and scale are computed on the host (`mean_and_scale`), and used on the device (`input_values`).

    N  samples of a clip, or padded samples of a batch      B  rows of a batch
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, local_folder, read_json_object

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
INPUTS = ("samples", "mean", "scale", "lengths")  # the part of a batch that is the model's input

# The values that a preprocessor must have. They are transformers' defaults, so a field may be left out.
_REQUIRED = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": SAMPLE_RATE,
    "padding_value": 0.0,
}
_FLAGS = {"do_normalize": True, "return_attention_mask": False}


@dataclass(frozen=True)
class Preprocessor:
    """The work of transformers' Wav2Vec2FeatureExtractor on one clip, and the file that describes it.

    `return_attention_mask` records whether the checkpoint was trained with a padding mask: true for the
    layer-norm (large) kind, false for the group-norm (base) kind.
    """

    do_normalize: bool
    return_attention_mask: bool
    sampling_rate: int = SAMPLE_RATE

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> Preprocessor:
        """Reads preprocessor_config.json, or processor_config.json as transformers 5 may write it instead.

        Fields that are left out have transformers' defaults. Raises UserError where the file is missing or
        describes another kind of input than 16 kHz samples.
        """
        file, fields = _read_fields(local_folder(folder_or_hub_id, PREPROCESSOR_FILES))
        for field, expected in _REQUIRED.items():
            if (found := fields.get(field, expected)) != expected:
                raise UserError(
                    where=file,
                    field=field,
                    found=found,
                    expected=repr(expected),
                    do="this is not a WavLM checkpoint's preprocessor: take that of the checkpoint that you "
                    "fine-tune",
                )
        flags = {field: fields.get(field, default) for field, default in _FLAGS.items()}
        for field, value in flags.items():
            if type(value) is not bool:
                raise UserError(
                    where=file, field=field, found=value, expected="true or false", do="correct the file"
                )
        return cls(**flags)

    def save(self, folder: str | Path) -> None:
        """Writes preprocessor_config.json, which transformers' feature extractor and processor load."""
        fields = {
            "do_normalize": self.do_normalize,
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "processor_class": "Wav2Vec2Processor",
            "return_attention_mask": self.return_attention_mask,
            "sampling_rate": self.sampling_rate,
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = Path(folder) / "preprocessor_config.json"
        file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The model's input of one clip: float32 [N] from the clip's own samples [N], without padding.

        int16 samples are taken as /32768. Where `do_normalize`, zero mean and unit variance as in
        Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm. `input_values` does the same on the device.
        """
        x = full_scale(samples)
        if not self.do_normalize:
            return x
        mean, scale = mean_and_scale(samples)
        return (x - mean) * scale


def _read_fields(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The feature extractor's settings in a checkpoint's folder, and the file that holds them."""
    what = "a feature extractor's settings"
    file, inside_processor = (folder / name for name in PREPROCESSOR_FILES)
    if exists(file) or not exists(inside_processor):
        return file, read_json_object(file, what)
    fields = read_json_object(inside_processor, what).get("feature_extractor")
    if not isinstance(fields, dict):
        raise UserError(
            where=inside_processor,
            field="feature_extractor",
            found=fields,
            expected="an object",
            do="save the checkpoint's Wav2Vec2FeatureExtractor into the folder",
        )
    return inside_processor, fields


def full_scale(samples: np.ndarray) -> np.ndarray:
    """Samples [N] as float32 of full scale 1.0; int16 ones are taken as /32768, which is exact."""
    x = np.asarray(samples, np.float32)
    return x / np.float32(32768) if samples.dtype == np.int16 else x


def mean_and_scale(samples: np.ndarray) -> tuple[np.float32, np.float32]:
    """A clip's mean and one over its standard deviation, at full scale; 1e-7 keeps a silent clip finite."""
    x = full_scale(samples)
    return x.mean(), 1 / np.sqrt(x.var() + np.float32(1e-7))


def input_values(batch: Mapping[str, jax.Array]) -> jax.Array:
    """The model's input [B, N] float32, under jit, from the INPUTS of a batch of `flax_wavlm.data.batches`.

    Each row is what `Preprocessor.__call__` gives for its clip, bit for bit, and zero after it. The sums over
    a clip are not made here, because they would depend on padding and device.
    """
    samples = batch["samples"]
    x = samples.astype(jnp.float32)
    if samples.dtype == jnp.int16:
        x = x / 32768
    x = (x - batch["mean"][:, None]) * batch["scale"][:, None]
    return jnp.where(jnp.arange(x.shape[1]) < batch["lengths"][:, None], x, 0)

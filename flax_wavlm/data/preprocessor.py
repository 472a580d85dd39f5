"""TODO."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, local_folder, read_json_object

_PREPROCESSOR_FILES = ["preprocessor_config.json", "processor_config.json"]


@dataclass(frozen=True)
class Preprocessor:
    """What transformers' Wav2Vec2FeatureExtractor does to one clip, and the file that says so.

    `return_attention_mask` records whether the checkpoint was trained with a padding mask: true for the
    layer-norm (large) kind, false for the group-norm (base) kind.
    """

    do_normalize: bool
    return_attention_mask: bool
    sampling_rate: int = 16_000

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> Preprocessor:
        """Reads preprocessor_config.json, or processor_config.json as transformers 5 may write it instead.

        Fields that are left out have transformers' defaults. Raises UserError where the file is missing or
        describes another kind of input than 16 kHz samples.
        """
        folder = local_folder(folder_or_hub_id, _PREPROCESSOR_FILES)
        file = folder / "preprocessor_config.json"
        if not exists(file) and exists(folder / "processor_config.json"):
            file = folder / "processor_config.json"
            fields = read_json_object(file, "a feature extractor's settings").get("feature_extractor")
            if not isinstance(fields, dict):
                raise UserError(
                    f"{file}: feature_extractor is {fields!r}, expected an object. Save the checkpoint's "
                    "Wav2Vec2FeatureExtractor into the folder."
                )
        else:
            fields = read_json_object(file, "a feature extractor's settings")
        defaults = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": 16_000,
            "padding_value": 0.0,
        }
        for field, expected in defaults.items():
            if (found := fields.get(field, expected)) != expected:
                raise UserError(
                    f"{file}: {field} is {found!r}, expected {expected!r}. This is not a WavLM checkpoint's "
                    "preprocessor: take the one of the checkpoint that you fine-tune."
                )
        flags = {"do_normalize": True, "return_attention_mask": False}
        for field, default in flags.items():
            flags[field] = fields.get(field, default)
            if type(flags[field]) is not bool:
                raise UserError(
                    f"{file}: {field} is {flags[field]!r}, expected true or false. Correct the file."
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


def full_scale(samples: np.ndarray) -> np.ndarray:
    """Samples [N] as float32 of full scale 1.0; int16 ones are taken as /32768, which is exact."""
    x = np.asarray(samples, np.float32)
    return x / np.float32(32768) if samples.dtype == np.int16 else x


def mean_and_scale(samples: np.ndarray) -> tuple[np.float32, np.float32]:
    """A clip's mean and one over its standard deviation, at full scale; 1e-7 keeps a silent clip finite."""
    x = full_scale(samples)
    return x.mean(), 1 / np.sqrt(x.var() + np.float32(1e-7))


INPUTS = ("samples", "mean", "scale", "lengths")  # the part of a batch that is the model's input


def input_values(batch: Mapping[str, jax.Array]) -> jax.Array:
    """The model's input [B, N] float32, under jit, from a batch as `batches.py` makes it.

    Each row is what `Preprocessor.__call__` gives for its clip, bit for bit, and zero after it. The sums over
    a clip are made on the host, once: here they would depend on padding and device.
    """
    samples = batch["samples"]
    x = samples.astype(jnp.float32)
    if samples.dtype == jnp.int16:
        x = x / 32768
    x = (x - batch["mean"][:, None]) * batch["scale"][:, None]
    return jnp.where(jnp.arange(x.shape[1]) < batch["lengths"][:, None], x, 0)

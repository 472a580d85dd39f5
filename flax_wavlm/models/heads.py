"""TODO."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.layers import Dense
from flax_wavlm.models.parameters import Params, split
from flax_wavlm.models.wavlm import WavLM
from flax_wavlm.ops.dropout import dropout

Array = jax.Array


@functools.lru_cache(maxsize=32)
def structure(
    config: WavLMConfig, model: Callable[[WavLMConfig, nnx.Rngs], nnx.Module] | None = None
) -> tuple[nnx.GraphDef, Params]:
    """`split` of a configuration's model (default: `WavLMForCTC`), with shapes in place of its arrays."""
    make = model or WavLMForCTC
    return split(nnx.eval_shape(lambda: make(config, nnx.Rngs(0))))


# --- States to logits ---------------------------------------------------------------------------------------


class WavLMForCTC(nnx.Module):
    """WavLM with a linear CTC head. Source: `transformers.WavLMForCTC`.

    Build it with `WavLMForCTC(config, nnx.Rngs(seed))` for random weights, initialised as the reference's
    are, or with `from_pretrained`.
    """

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        self.wavlm = WavLM(config, rngs)
        self.head = Dense(config.hidden_size, config.vocab_size, config, rngs)

    def __call__(
        self,
        input_values: Array,
        lengths: Array | None = None,
        *,
        key: Array | None = None,
        mask_time: Array | None = None,
        with_states: bool = False,
    ) -> tuple[Array, ...]:
        """Logits of each frame.

        Args:
            input_values: [B, N] float, what the checkpoint's Hugging Face feature extractor would give.
            lengths: [B] int, the real samples of each row; what follows them is padding and is neither
                attended to nor masked. None: every row is full (transformers without an attention mask).
            key: a key of jax.random makes it a training call, with dropout, LayerDrop and SpecAugment.
            mask_time: [B, T] bool, frames to replace by the mask embedding, in place of SpecAugment's draw.
            with_states: also return all hidden states.
        Returns:
            logits [B, T, V] float32 and frames [B] int32, the valid frames of each row; with `with_states`
            also [L + 1, B, T, D] float32: the input of the first layer and the output of every layer.
        Raises:
            ValueError: the rows are shorter than one frame (`config.min_samples`).
        """
        config = self.config
        if input_values.ndim != 2 or input_values.shape[1] < config.min_samples:
            raise ValueError(
                f"input_values has shape {input_values.shape}, expected [clips, samples] with at least "
                f"{config.min_samples} samples, one frame of the feature encoder"
            )
        with jax.default_matmul_precision(config.matmul_precision):
            features = self.wavlm.feature_encoder(input_values, lengths)
        return self.from_features(features, lengths, key=key, mask_time=mask_time, with_states=with_states)

    def from_features(
        self,
        features: Array,
        lengths: Array | None = None,
        *,
        key: Array | None = None,
        mask_time: Array | None = None,
        with_states: bool = False,
    ) -> tuple[Array, ...]:
        """`__call__` from the feature encoder's output [B, T, C] on; lengths [B] are still samples."""
        config = self.config
        head_key = None
        if key is not None:
            key, head_key = jax.random.split(key)
        with jax.default_matmul_precision(config.matmul_precision):
            x, frames, states = self.wavlm.encode(
                features, lengths, key=key, mask_time=mask_time, with_states=with_states
            )
            logits = self.head(dropout(x, config.final_dropout, head_key)).astype(jnp.float32)
        return (logits, frames) if states is None else (logits, frames, states)

    @classmethod
    def from_pretrained(cls, source: str | Path, **overrides: Any) -> WavLMForCTC:
        """A model from a Hugging Face folder or hub id, Microsoft's .pt, or torchaudio's state dict.

        `overrides` replace fields of its WavLMConfig, e.g. `dtype="bfloat16"`. See `flax_wavlm.porting.load`.
        """
        from flax_wavlm.porting.load import load_model

        return load_model(source, overrides=overrides)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors; `transformers.WavLMForCTC.from_pretrained` loads them."""
        from flax_wavlm.porting.save import save_model

        save_model(self, Path(folder))

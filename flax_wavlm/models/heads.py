"""WavLM with a head: hidden states to logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.layers import Dense, computing
from flax_wavlm.models.parameters import Params, split
from flax_wavlm.models.wavlm import EncoderOutput, WavLM
from flax_wavlm.ops.dropout import dropout

Array = jax.Array


class CTCOutput(NamedTuple):
    """What a model with a CTC head makes of a batch."""

    logits: Array  # [B, T, V] float32
    frame_lengths: Array  # [B] int32, the valid frames of each row


class CTCOutputWithStates(NamedTuple):
    """The same, with all hidden states."""

    logits: Array
    frame_lengths: Array
    hidden_states: Array  # [L + 1, B, T, D] float32: the first layer's input, and the output of every layer


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
    ) -> CTCOutput:
        """Logits of each frame.

        Args:
            input_values: [B, N] float, what the checkpoint's Hugging Face feature extractor would give.
            lengths: [B] int, the real samples of each row. The rest of a row is padding: it is neither
                attended to nor masked. None: every row is full (transformers without an attention mask).
            key: a key of jax.random makes it a training call, with dropout, LayerDrop and SpecAugment.
            mask_time: [B, T] bool, frames to replace by the mask embedding, in place of SpecAugment's draw.
        Raises:
            ValueError: the rows are shorter than one frame (`config.min_samples`).
        """
        features = self.features(input_values, lengths)
        return self.from_features(features, lengths, key=key, mask_time=mask_time)

    def with_hidden_states(
        self,
        input_values: Array,
        lengths: Array | None = None,
        *,
        key: Array | None = None,
        mask_time: Array | None = None,
    ) -> CTCOutputWithStates:
        """`__call__`, with the hidden states of all layers."""
        features = self.features(input_values, lengths)
        head_key, key = split_key(key)
        output = self.wavlm.encode(features, lengths, key=key, mask_time=mask_time, with_states=True)
        assert output.hidden_states is not None
        return CTCOutputWithStates(*self.logits(output, head_key), output.hidden_states)

    def features(self, input_values: Array, lengths: Array | None) -> Array:
        """The feature encoder's output [B, T, C]; arguments and errors as `__call__`."""
        if input_values.ndim != 2 or input_values.shape[1] < self.config.min_samples:
            raise ValueError(
                f"input_values has shape {input_values.shape}, expected [clips, samples] with at least "
                f"{self.config.min_samples} samples, one frame of the feature encoder"
            )
        with computing(self.config):
            return self.wavlm.feature_encoder(input_values, lengths)

    def from_features(
        self,
        features: Array,
        lengths: Array | None = None,
        *,
        key: Array | None = None,
        mask_time: Array | None = None,
    ) -> CTCOutput:
        """`__call__` from the feature encoder's output [B, T, C] on; lengths [B] are still samples."""
        head_key, key = split_key(key)
        return self.logits(self.wavlm.encode(features, lengths, key=key, mask_time=mask_time), head_key)

    def logits(self, output: EncoderOutput, key: Array | None) -> CTCOutput:
        with computing(self.config):
            x = dropout(output.last_hidden_state, self.config.final_dropout, key)
            return CTCOutput(self.head(x).astype(jnp.float32), output.frame_lengths)

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


def split_key(key: Array | None) -> tuple[Array | None, Array | None]:
    """Keys for the head and for the encoder."""
    if key is None:
        return None, None
    key, head_key = jax.random.split(key)
    return head_key, key


@functools.lru_cache(maxsize=32)
def structure(
    config: WavLMConfig, model: Callable[[WavLMConfig, nnx.Rngs], nnx.Module] | None = None
) -> tuple[nnx.GraphDef, Params]:
    """`split` of a configuration's model (default: `WavLMForCTC`), with shapes in place of its arrays."""
    make = model or WavLMForCTC
    return split(nnx.eval_shape(lambda: make(config, nnx.Rngs(0))))

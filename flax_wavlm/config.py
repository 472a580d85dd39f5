"""The former place of `flax_wavlm.models.config`, which recipes written before it moved import."""

from flax_wavlm.models.config import WavLMConfig

__all__ = ["WavLMConfig"]

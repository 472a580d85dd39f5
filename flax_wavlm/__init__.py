"""Fine-tune WavLM with a CTC head in JAX, from PyTorch weights and back."""

from typing import TYPE_CHECKING, Any

from flax_wavlm.config import WavLMConfig
from flax_wavlm.errors import UserError

if TYPE_CHECKING:
    from flax_wavlm.model import WavLM, WavLMForCTC

__all__ = ["UserError", "WavLM", "WavLMConfig", "WavLMForCTC"]


def __getattr__(name: str) -> Any:
    """The model, when first asked for: flags are parsed, and wrong ones refused, before jax is imported."""
    if name not in ("WavLM", "WavLMForCTC"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flax_wavlm import model

    return getattr(model, name)

"""Fine-tune WavLM with a CTC head in JAX, from PyTorch weights and back."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax_wavlm.data.corpora.load import load_corpus
    from flax_wavlm.errors import UserError
    from flax_wavlm.models.config import WavLMConfig
    from flax_wavlm.models.heads import WavLMForCTC
    from flax_wavlm.models.wavlm import WavLM
    from flax_wavlm.recognition.recogniser import Recogniser
    from flax_wavlm.training.train import train

__version__ = "0.1.0"

_HOMES = {
    "Recogniser": "recognition.recogniser",
    "UserError": "errors",
    "WavLM": "models.wavlm",
    "WavLMConfig": "models.config",
    "WavLMForCTC": "models.heads",
    "load_corpus": "data.corpora.load",
    "train": "training.train",
}

__all__ = [
    "Recogniser",
    "UserError",
    "WavLM",
    "WavLMConfig",
    "WavLMForCTC",
    "__version__",
    "load_corpus",
    "train",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when first asked for: flags are parsed, and wrong ones refused, without jax."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"flax_wavlm.{_HOMES[name]}"), name)

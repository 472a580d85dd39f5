"""Fine-tune WavLM with a CTC head in JAX, from PyTorch weights and back."""

from flax_wavlm.config import WavLMConfig
from flax_wavlm.errors import UserError
from flax_wavlm.model import WavLM, WavLMForCTC

__all__ = ["UserError", "WavLM", "WavLMConfig", "WavLMForCTC"]

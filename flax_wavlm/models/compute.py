"""How a model is computed, apart from what it computes. No jax: flags are checked before it is imported."""

from __future__ import annotations

from dataclasses import dataclass

from flax_wavlm.ops.switch import KERNELS

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "matmul_precision": ("default", "high", "highest"),
    "remat": ("none", "dots", "full"),
    "attention": ("auto", "xla", "cudnn", "pallas"),
    "kernels": KERNELS,
}


@dataclass(frozen=True)
class Compute:
    """The settings of a computation. None changes the result by more than rounding, but for `dtype`."""

    dtype: str = "float32"  # of matrix products and convolutions: or "bfloat16"; parameters stay float32
    matmul_precision: str = "highest"  # of float32 products; "default" lets TPUs and GPUs round them
    remat: str = "none"  # "full": recompute each layer in the backward pass; "dots": keep its products
    unroll: int = 0  # encoder layers in a round of their loop; 0: all on a GPU, one elsewhere
    attention: str = "auto"  # or "xla", "cudnn", "pallas": see flax_wavlm.ops.attention.choice
    kernels: str = "auto"  # "reference": no kernels and no custom VJPs, see flax_wavlm.ops.switch

"""TODO."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.ops.dense import add_bias, product
from flax_wavlm.ops.gelu import gelu
from flax_wavlm.ops.norm.api import layer_norm, norm_gelu, residual_norm

Array = jax.Array

Branch = tuple[Array, ...]  # an output [B, T, D], perhaps with a bias [D] still to be added to it

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis; the result in `dtype`."""

    def __init__(self, size: int, eps: float, rngs: nnx.Rngs, dtype: str = "float32"):
        super().__init__(size, epsilon=eps, dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return layer_norm(x, *self.parameters(), self.epsilon, self.dtype)

    def after(self, x: Array, *branch: Array) -> tuple[Array, Array]:
        """The residual stream `x` with a branch's output added to it, and the norm of that."""
        return residual_norm(x, branch, *self.parameters(), self.epsilon, self.dtype)

    def gelu(self, x: Array, dtype: str) -> Array:
        """GELU of the norm, in float32; the result in `dtype`."""
        return norm_gelu(x, *self.parameters(), self.epsilon, jnp.dtype(dtype))

    def parameters(self) -> tuple[Array, Array]:
        assert self.scale is not None
        assert self.bias is not None
        return self.scale[...], self.bias[...]


class Dense(nnx.LinearGeneral):
    """A dense map from the last axis to one axis (or several), initialised as the reference's."""

    def __init__(self, size_in: int, size_out: int | tuple[int, ...], config: WavLMConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        super().__init__(size_in, size_out, dtype=jnp.dtype(config.dtype), kernel_init=init, rngs=rngs)
        self.matmul_precision = config.matmul_precision

    def __call__(self, x: Array, out_sharding: Any = None) -> Array:  # [..., I] -> [..., *O]
        return add_bias(*self.parts(x))

    def parts(self, x: Array) -> Branch:  # [..., I] -> [..., *O], [*O]
        """The product, and the bias still to be added to it."""
        kernel, bias = self.parameters()
        return product(x.astype(self.dtype), kernel, self.matmul_precision), bias

    def parameters(self) -> tuple[Array, Array]:
        """Kernel, in the type in which it is computed, and bias."""
        assert self.bias is not None
        return self.kernel[...].astype(self.dtype), self.bias[...]

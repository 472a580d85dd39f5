"""The layers that WavLM is built of, and the two types behind which speed is kept out of the model.

A layer is a thin Flax NNX module: it holds parameters, and an operation of `flax_wavlm.ops` computes.
Letters of shapes as in `wavlm.py`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flax_wavlm.models import config as config_module
from flax_wavlm.models.compute import Compute
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.ops.dense.api import add_bias, product
from flax_wavlm.ops.first_conv.api import conv_norm_gelu
from flax_wavlm.ops.gelu.api import gelu
from flax_wavlm.ops.norm.api import layer_norm, norm_gelu, residual_norm
from flax_wavlm.ops.switch import kernels

Array = jax.Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = dict(
    zip(
        config_module.ACTIVATIONS,
        (
            gelu,
            functools.partial(jax.nn.gelu, approximate=True),
            jax.nn.relu,
            jax.nn.selu,
            jax.nn.silu,
            jax.nn.silu,
        ),
        strict=True,
    )
)


@contextlib.contextmanager
def computing(how: Compute) -> Iterator[None]:
    """Code that is traced inside has the precision and the kernels that the settings ask for."""
    with jax.default_matmul_precision(how.matmul_precision), kernels(how.kernels):
        yield


# --- The residual stream ------------------------------------------------------------------------------------


class Update(NamedTuple):
    """What a sub-layer adds to the residual stream: `delta`, and perhaps a bias that is still to be added.

    The bias is left to the next norm where that can add it in the same pass over memory, and make its
    gradient in the same pass back.
    """

    delta: Array  # [B, T, D], float32 or bfloat16
    bias: Array | None = None  # [D]

    def parts(self) -> tuple[Array, ...]:
        return (self.delta,) if self.bias is None else (self.delta, self.bias)

    def with_bias_added(self) -> Array:
        return self.delta if self.bias is None else add_bias(self.delta, self.bias)


class Residual(NamedTuple):
    """The residual stream: `x` and perhaps an update, whose sum is made by the norm that reads it.

    That saves a pass over memory for the sum alone (`flax_wavlm.ops.norm.api.residual_norm`).
    """

    x: Array  # [B, T, D] float32
    update: Update | None = None

    def total(self) -> Array:
        """The stream as one array."""
        return self.x if self.update is None else self.x + sum(self.update.parts())

    def plus(self, update: Update) -> Residual:
        """With an update added, which the next norm will sum. The last one must have been summed."""
        assert self.update is None
        return Residual(self.x, update)


# --- Layers -------------------------------------------------------------------------------------------------


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis; the result in `dtype`."""

    def __init__(self, size: int, eps: float, rngs: nnx.Rngs, dtype: str = "float32"):
        super().__init__(size, epsilon=eps, dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return layer_norm(x, *self.parameters(), self.epsilon, self.dtype)

    def of(self, residual: Residual) -> tuple[Residual, Array]:
        """The stream with its update summed, and the norm of that sum."""
        if residual.update is None:
            return residual, self(residual.x)
        parts = residual.update.parts()
        total, y = residual_norm(residual.x, parts, *self.parameters(), self.epsilon, self.dtype)
        return Residual(total), y

    def gelu(self, x: Array, dtype: str) -> Array:
        """GELU of the norm, in float32; the result in `dtype`."""
        return norm_gelu(x, *self.parameters(), self.epsilon, jnp.dtype(dtype))

    def parameters(self) -> tuple[Array, Array]:
        """Scale and bias, [D]."""
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
        return self.update(x).with_bias_added()

    def update(self, x: Array) -> Update:  # [..., I] -> [..., *O], [*O]
        """The product, and the bias that is still to be added to it."""
        kernel, bias = self.parameters()
        return Update(product(x.astype(self.dtype), kernel, self.matmul_precision), bias)

    def parameters(self) -> tuple[Array, Array]:
        """The kernel, in the type that is computed in, and the bias."""
        assert self.bias is not None
        return self.kernel[...].astype(self.dtype), self.bias[...]


class ConvLayer(nnx.Module):
    """Strided convolution, norm (or none), activation. Source: `WavLMLayerNormConvLayer` and its siblings."""

    def __init__(self, config: WavLMConfig, index: int, rngs: nnx.Rngs):
        size_in = config.conv_dim[index - 1] if index else 1
        size_out = config.conv_dim[index]
        self.config, self.index = config, index
        self.conv = nnx.Conv(
            size_in,
            size_out,
            kernel_size=config.conv_kernel[index],
            strides=config.conv_stride[index],
            padding="VALID",
            use_bias=config.conv_bias,
            dtype=jnp.dtype(config.dtype),
            kernel_init=nnx.initializers.he_normal(),
            rngs=rngs,
        )
        if config.feat_extract_norm == "layer" or index == 0:
            self.norm = LayerNorm(size_out, 1e-5, rngs)  # GroupNorm's parameters have the same shape

    def __call__(self, x: Array, lengths: Array | None) -> Array:  # [B, T', C'], [B] samples
        config = self.config
        norms, activation = config.feat_extract_norm == "layer", config.feat_extract_activation
        if norms and activation == "gelu":
            return self.normed_gelu(x)
        x = self.conv(x)
        if norms:
            x = self.norm(x)
        elif self.index == 0:
            x = group_norm(x, *self.norm.parameters(), self.frame_lengths(lengths))
        return ACTIVATIONS[activation](x).astype(config.dtype)

    def normed_gelu(self, x: Array) -> Array:
        """The layer of released large models, in as few passes over memory as there are operations for."""
        config, conv = self.config, self.conv
        if self.index > 0:
            return self.norm.gelu(conv(x), config.dtype)
        dtype = jnp.dtype(config.dtype)
        taps = conv.kernel[...].astype(dtype)[:, 0]
        conv_bias = jnp.zeros(taps.shape[1]) if conv.bias is None else conv.bias[...]
        return conv_norm_gelu(
            x[:, :, 0].astype(dtype),
            taps,
            conv_bias,
            *self.norm.parameters(),
            config.conv_stride[0],
            self.norm.epsilon,
            dtype,
            config.matmul_precision,
        )

    def frame_lengths(self, lengths: Array | None) -> Array | None:
        """The frames [B] that the first convolution makes of each row, where its norm is to know them."""
        if not self.config.masked_group_norm or lengths is None:
            return None
        return jnp.maximum(self.config.frame_count(lengths, layers=1), 1)


def group_norm(x: Array, scale: Array, bias: Array, frame_lengths: Array | None) -> Array:
    """GroupNorm with one channel a group: every channel over time, biased variance, in float32.

    Args: x [B, T, C]; scale, bias [C]; frame_lengths [B], the frames of each row to norm over. None: all,
        padding included, as transformers has it.
    """
    x = x.astype(jnp.float32)
    where = None
    if frame_lengths is not None:
        where = (jnp.arange(x.shape[1]) < frame_lengths[:, None])[:, :, None]  # [B, T, 1]
    mean = jnp.mean(x, axis=1, keepdims=True, where=where)
    variance = jnp.mean(jnp.square(x - mean), axis=1, keepdims=True, where=where)
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    return x * scale + bias

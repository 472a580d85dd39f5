"""Attention by its definition and by every implementation, on inputs of the sizes of a trained model."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_wavlm.ops.attention import gpu as fused_attention_gpu
from flax_wavlm.ops.attention import tpu as fused_attention
from flax_wavlm.ops.attention import weight_dropout, xla
from flax_wavlm.ops.attention.cudnn import cudnn
from flax_wavlm.ops.attention.reference import toeplitz
from flax_wavlm.ops.dropout import drop

SIMPLE = 1e-5  # tolerance for a simple module in float32


DEEP = 1e-4  # and for a whole model


SEED = np.array([123456789, 4000000000], np.uint32)
ARGUMENTS = ("q", "k", "v", "gate", "table")


Arrays = list[jax.Array]


def inputs(batch: int, time: int, heads: int, size: int, dtype: str = "float32") -> Arrays:
    """q, k, v, gate and table, of the sizes that they have in a trained model."""
    rng = np.random.default_rng(time)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, k, v = (normal(batch, time, heads, size).astype(dtype) for _ in range(3))
    return [q, k, v, 1 + 0.5 * normal(batch, heads, time), 2 * normal(heads, 2 * time - 1)]


def biases(heads: int, size: int) -> jax.Array:
    """Those of q, k and v."""
    return jnp.asarray(np.random.default_rng(size).normal(size=(3, heads, size)), jnp.float32)


def plain(*arrays: jax.Array, frames: Any, drop: Callable = lambda weights: weights) -> jax.Array:
    """The definition, word for word, differentiated by JAX."""
    q, k, v, gate, table = arrays
    time = q.shape[1]
    bias = jnp.stack([table[:, time - 1 - t : 2 * time - 1 - t] for t in range(time)], axis=1)  # [H, T, T]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = (
        jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=wide) / math.sqrt(q.shape[-1])
        + gate[..., None] * bias
    )
    valid = jnp.arange(time) < jnp.asarray(frames)[:, None]
    weights = jax.nn.softmax(jnp.where(valid[:, None, None, :], scores, -jnp.inf))
    return jnp.einsum("bhts,bshk->bthk", drop(weights).astype(v.dtype), v)


def by_xla(*arrays: jax.Array, frames: Any, **how: Any) -> jax.Array:
    *qkv_gate, table = arrays
    valid = jnp.arange(arrays[0].shape[1]) < jnp.asarray(frames)[:, None]
    return xla.attention(*qkv_gate, toeplitz(table), valid, **how)


def by_cudnn(*arrays: jax.Array, frames: Any) -> jax.Array:
    """What "cudnn" computes around cuDNN's kernel, which is replaced by plain operations."""
    *qkv_gate, table = arrays
    bias = toeplitz(table)
    return cudnn(*qkv_gate, bias, jnp.asarray(frames), implementation="xla")


def by_pallas(*arrays: jax.Array, frames: Any, block: int | None = None) -> jax.Array:
    return fused_attention.attention(*arrays, jnp.asarray(frames), block=block)


def by_pallas_gpu(
    *arrays: jax.Array, frames: Any, qkv_bias: jax.Array | None = None, block: int | None = None, **how: Any
) -> jax.Array:
    """The kernels for GPUs, interpreted unless said otherwise."""
    q, k, v, gate, table = arrays
    qkv = jnp.stack([q, k, v], axis=2)
    qkv_bias = jnp.zeros(qkv.shape[2:]) if qkv_bias is None else qkv_bias
    bias = fused_attention_gpu.prepare_bias(table, q.dtype, block=block)
    how = {"interpret": True} | how
    return fused_attention_gpu.attention(qkv, qkv_bias, gate, bias, jnp.asarray(frames), **how)


def plain_with_gpu_dropout(*arrays: jax.Array, frames: Any, rate: float, seed: jax.Array) -> jax.Array:
    """The definition, with the weights dropped that the kernels for GPUs drop; 0 beyond a row's frames."""
    batch, time, heads, _ = arrays[0].shape
    keep = weight_dropout.kept(seed, batch, heads, time, rate)
    out = plain(*arrays, frames=frames, drop=lambda weights: drop(weights, keep, rate))
    valid = jnp.arange(time) < jnp.asarray(frames)[:, None]
    return jnp.where(valid[:, :, None, None], out, 0)


def output_and_gradients(function: Callable, arrays: Arrays, frames: Any) -> list[np.ndarray]:
    """The output, and the gradients of a random sum of it in q, k, v, gate and table; float32 or wider.

    Of valid queries: what comes out for the others, nothing looks at. Scaled so that an attention weight's
    gradient, as the weight's score, is of size 1.
    """
    weight = np.random.default_rng(1).normal(size=arrays[0].shape) / math.sqrt(arrays[0].shape[-1])
    valid = (np.arange(weight.shape[1]) < np.asarray(frames)[:, None])[:, :, None, None]
    wide = jnp.promote_types(arrays[0].dtype, jnp.float32)

    @functools.partial(jax.value_and_grad, argnums=range(5), has_aux=True)
    def loss(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = jnp.where(valid, function(*arrays, frames=frames), 0)
        return jnp.sum(out.astype(wide) * weight.astype(wide)), out

    (_, out), gradients = jax.jit(loss)(*arrays)
    return [np.asarray(x, wide) for x in (out, *gradients)]


@functools.cache
def exactly(frames: tuple[int, ...], *sizes: int) -> list[np.ndarray]:
    """`output_and_gradients` of the definition, for `inputs(*sizes)` in float64."""
    with jax.enable_x64(True):
        exact = output_and_gradients(plain, [x.astype(jnp.float64) for x in inputs(*sizes)], frames)
    assert all(x.dtype == np.float64 for x in exact)
    return exact

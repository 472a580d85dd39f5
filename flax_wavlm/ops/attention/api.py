"""WavLM's attention with a gated relative position bias: one function for all layers of a call of the model.

Formula and definition: `reference.py`. Which implementation a call takes, and why: `choice.py`.
Residuals: q, k, v, gate and bias. Besides, `xla.py` keeps the attention weights [B, H, T, T], and the kernels
keep the output and each query's logarithm of the sum of exponentials.

Letters of shapes: B clips, T frames, H heads, K head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flax_wavlm.ops.attention import reference, xla
from flax_wavlm.ops.attention.choice import AttentionSpec, chosen
from flax_wavlm.ops.attention.cudnn import cudnn
from flax_wavlm.ops.dense.api import add_bias

Array = jax.Array
Attend = Callable[[Array, Array, Array, Array | None], Array]
"""(q, k and v [B, T, 3, H, K], their biases [3, H, K], gate [B, H, T] float32, key of attention dropout or
None) -> [B, T, H, K]."""

FRAMES_GPU = 8  # on a GPU, T is made a multiple of it


def prepare(spec: AttentionSpec, table: Array, valid: Array | None, batch: int, *, training: bool) -> Attend:
    """The attention of every layer of one call of the model; what the layers share is made once, here.

    Args:
        table: [H, 2T - 1] float32, the position bias of distances s - t = -(T - 1) ... T - 1.
        valid: [B, T] bool, the keys that are attended to, which come first in each row; None: all.
        batch: B.
        training: whether attention weights may be dropped: with a key they are.
    """
    time = (table.shape[1] + 1) // 2
    name = chosen(spec, time, training=training).name
    frames = jnp.full(batch, time, jnp.int32) if valid is None else jnp.sum(valid, axis=1, dtype=jnp.int32)
    if name == "pallas":
        on_gpu = jax.default_backend() == "gpu"
        return _by_gpu_kernels(spec, table, frames) if on_gpu else _by_tpu_kernels(spec, table, frames)
    bias = reference.toeplitz(table)
    if name == "cudnn":
        return _on_three_arrays(lambda q, k, v, gate, _: cudnn(q, k, v, gate, bias, frames))
    function = reference.attention if name == "reference" else xla.attention
    plain = functools.partial(function, rate=spec.dropout, precision=spec.precision)
    return _on_three_arrays(lambda q, k, v, gate, key: plain(q, k, v, gate, bias, valid, key=key))


def _by_gpu_kernels(spec: AttentionSpec, table: Array, frames: Array) -> Attend:
    from flax_wavlm.ops.attention import gpu  # which needs Pallas on Triton

    tiles = gpu.prepare_bias(table, spec.dtype)

    def attend(qkv: Array, qkv_bias: Array, gate: Array, key: Array | None) -> Array:
        seed = None if key is None else jax.random.bits(key, (2,), jnp.uint32)
        exact = spec.precision != "default"
        return gpu.attention(qkv, qkv_bias, gate, tiles, frames, rate=spec.dropout, seed=seed, exact=exact)

    return attend


def _by_tpu_kernels(spec: AttentionSpec, table: Array, frames: Array) -> Attend:
    from flax_wavlm.ops.attention import tpu  # which needs Pallas on Mosaic

    exact = spec.precision != "default"
    return _on_three_arrays(lambda q, k, v, gate, _: tpu.attention(q, k, v, gate, table, frames, exact=exact))


def _on_three_arrays(function: Callable[[Array, Array, Array, Array, Array | None], Array]) -> Attend:
    """For a function that takes q, k and v as three arrays, with their biases added."""

    def attend(qkv: Array, qkv_bias: Array, gate: Array, key: Array | None) -> Array:
        qkv = add_bias(qkv, qkv_bias)
        return function(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], gate, key)

    return attend


def pad_frames(x: Array, valid: Array | None) -> tuple[Array, Array | None]:
    """x [B, T, D] and valid [B, T], with T padded to the multiple that the platform wants.

    On a GPU that is 8: cuDNN differentiates a bias of even sizes only, and tensor cores want rows of 16
    bytes.
    Padding once is cheaper than padding q, k, v and the bias in every layer. Elsewhere nothing is padded.
    """
    extra = -x.shape[1] % FRAMES_GPU if jax.default_backend() == "gpu" else 0
    if extra == 0:
        return x, valid
    if valid is None:
        valid = jnp.ones(x.shape[:2], bool)
    return jnp.pad(x, ((0, 0), (0, extra), (0, 0))), jnp.pad(valid, ((0, 0), (0, extra)))

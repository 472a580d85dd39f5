"""Fused attention for NVIDIA GPUs, with the gated bias and attention dropout inside, forward and backward.

Flash attention (Dao et al. 2022), with the tiles of the bias that `tpu.py` explains. A GPU's kernel reads and
writes memory as it lies: q, k and v are read from the product that made them, [B, T, 3, H, K], and their
gradients are written like that. So nothing is split, transposed, padded or concatenated around the kernels.
Blocks beyond a clip's frames are left out: a query there gives 0. No kernel adds to another's results, so
every run gives the same bits. `weight_dropout.py` says which attention weights are dropped.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from flax_wavlm.ops.attention.gpu_kernels import (
    LOG2_E,
    Kernels,
    Settings,
    diagonal_kernel,
    forward_kernel,
    key_kernel,
    query_kernel,
)
from flax_wavlm.ops.attention.tiles import tiles
from flax_wavlm.ops.attention.weight_dropout import random_words
from flax_wavlm.ops.dropout import STEPS
from flax_wavlm.ops.partition import shard_batch

Array = jax.Array

CLIPS_IN_PROGRAM = 4  # clips that one program sums the bias's gradient over, at most


class Bias(NamedTuple):
    """The position bias as tiles [H, 2n - 1, block, block], made once for all layers."""

    keys_first: Array  # `tiles`: keys as rows, queries as columns; the gradient goes here
    queries_first: Array  # the same, queries as rows


def prepare_bias(table: Array, dtype: Any, *, block: int | None = None) -> Bias:
    """From the table by distance [H, 2T - 1], in blocks that suit the type of q, k and v."""
    fitting = 64 if jnp.dtype(dtype) == jnp.bfloat16 else 32  # limited by registers
    keys_first = tiles(table, block or fitting)
    # A Toeplitz matrix read backwards, from its last row and column, is its transpose.
    return Bias(keys_first, jax.lax.stop_gradient(keys_first)[:, :, ::-1, ::-1])


def attention(
    qkv: Array,
    qkv_bias: Array,
    gate: Array,
    bias: Bias,
    frames: Array,
    *,
    rate: float = 0.0,
    seed: Array | None = None,
    exact: bool = True,
    interpret: bool = False,
) -> Array:
    """Fused attention that holds nothing of size T x T, nor does its gradient.

    Args:
        qkv: [B, T, 3, H, K].
        qkv_bias: [3, H, K] float32, to be added to it.
        gate: [B, H, T] float32.
        frames: [B] int32, each row's valid frames; a row without any attends to its first.
        rate: the share of the attention weights that is dropped, as by `dropout.drop`; none without a seed.
        seed: [2] uint32, random; `weight_dropout.kept` gives the mask that it makes.
        exact: products of float32 are not rounded to fewer bits.
        interpret: run on a CPU, for tests.
    Returns: [B, T, H, K]; 0 beyond a row's frames. Differentiable in qkv, qkv_bias, gate and bias.
    """
    batch, time, _, heads, head_size = qkv.shape
    frames = jnp.clip(frames, 1, time).astype(jnp.int32)
    dropped = 0 if seed is None else round(rate * STEPS)
    if seed is None or dropped == 0:
        return _attention(Settings(exact, interpret), qkv, qkv_bias, gate, *bias, frames)
    if dropped == STEPS:
        return jnp.zeros((batch, time, heads, head_size), qkv.dtype)
    words = random_words(seed, batch, heads)
    return _attention(Settings(exact, interpret, dropped), qkv, qkv_bias, gate, *bias, frames, words)


# --- Calls --------------------------------------------------------------------------------------------------

# How the biases of q, k and v are added without a pass over memory:
#   q's bias adds the same number to all scores of a key: the key's `offset`;
#   k's bias adds the same number to all scores of a query, which softmax does not see: it is left out;
#   v's bias is added to the output, as the attention weights sum to 1, or to less with dropout.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings: Settings, *arrays: Array) -> Array:
    return _attention_forward(settings, *arrays)[0]


def _attention_forward(
    settings: Settings, *arrays: Array
) -> tuple[Array, tuple[tuple[Array, ...], tuple[Array, ...]]]:
    made = shard_batch(functools.partial(_forward, settings), whole=(1, 3, 4))(*arrays)
    return made[0], (arrays, made)


def _attention_backward(
    settings: Settings, saved: tuple[tuple[Array, ...], tuple[Array, ...]], d_out: Array
) -> tuple[Array | None, ...]:
    given, made = saved
    function = shard_batch(functools.partial(_backward, settings), whole=(1, 3, 4), summed=(1, 3))
    gradients = function(*given[:6], *made, d_out, *given[6:])
    return *gradients, *[None] * (len(given) - 4)


_attention.defvjp(_attention_forward, _attention_backward)


def _forward(
    settings: Settings,
    qkv: Array,
    qkv_bias: Array,
    gate: Array,
    _: Array,
    bias: Array,
    frames: Array,
    *dropout: Array,
) -> tuple[Array, Array, Array]:
    """The output [B, T, H, K]; each query's logarithm to base 2 of its sum of exponentials [B, H, T]; each
    key's offset [B, H, T], as a power of 2.

    `dropout`: two words for every clip and head, or nothing.
    """
    kernels = Kernels(settings, qkv, bias)
    words = dropout[0] if dropout else None
    offset = jnp.sum(qkv[:, :, 1].astype(gate.dtype) * qkv_bias[0], axis=-1).swapaxes(1, 2)
    offset = offset * (LOG2_E / math.sqrt(kernels.head_size))
    offset = jnp.where(jnp.arange(kernels.time) < frames[:, None, None], offset, -jnp.inf)
    offset = jnp.pad(offset, ((0, 0), (0, 0), (0, kernels.size - kernels.time)), constant_values=-jnp.inf)
    out, log_sum = kernels.call(
        forward_kernel,
        "attention_forward",
        grid=kernels.grid,
        in_specs=[
            *(kernels.part(0), kernels.all_of(1), kernels.all_of(2)),
            pl.BlockSpec((None, kernels.head_size), lambda i, h, b: (h, 0)),
            *(kernels.query, kernels.all_queries, kernels.bias, kernels.frames, kernels.words),
        ],
        out_specs=[kernels.rows, kernels.query],
        out_shape=[
            jax.ShapeDtypeStruct((*qkv.shape[:2], *qkv.shape[3:]), qkv.dtype),
            jax.ShapeDtypeStruct(gate.shape, gate.dtype),
        ],
    )(qkv, qkv, qkv, qkv_bias[2], gate, offset, bias, frames, words)
    return out, log_sum, offset


class _Operands(NamedTuple):
    """The arrays that both kernels with a program for each block of keys are given."""

    qkv: Array
    d_out: Array  # [B, T, H, K]
    gate: Array  # of each query [B, H, T], as are the next three
    log_sum: Array
    mean: Array  # the sum over keys of weight * d weight, which the gradient of softmax subtracts
    added: Array | None  # with dropout: what v's bias adds to all d weights; without, it cancels
    offset: Array  # of each key [B, H, N]
    frames: Array
    words: Array | None


def _backward(
    settings: Settings,
    qkv: Array,
    qkv_bias: Array,
    gate: Array,
    keys_first: Array,
    queries_first: Array,
    frames: Array,
    out: Array,
    log_sum: Array,
    offset: Array,
    d_out: Array,
    *dropout: Array,
) -> tuple[Array, Array, Array, Array]:
    """The gradients of qkv, qkv_bias, gate and the bias."""
    kernels = Kernels(settings, qkv, queries_first)
    v_bias = qkv_bias[2]

    def by_query(x: Array) -> Array:  # [B, T, H, K] -> [B, H, T]
        return jnp.sum(x * d_out.astype(x.dtype), axis=-1).swapaxes(1, 2)

    # Like all gradients in the kernels, these lack the scale of dropout.
    words, added, mean = None, None, by_query(out.astype(gate.dtype) - v_bias)
    if dropout:
        words, added = dropout[0], by_query(jnp.broadcast_to(v_bias, out.shape))
        mean = by_query(out.astype(gate.dtype)) / kernels.scale
    query, of_query = kernels.query, jax.ShapeDtypeStruct(gate.shape, gate.dtype)
    d_qkv, d_gate, mean, d_q_bias = kernels.call(
        query_kernel,
        "attention_backward_query",
        grid=kernels.grid,
        in_specs=[
            *(kernels.part(0), kernels.all_of(1), kernels.all_of(2), kernels.rows),
            *(query, query, query, None if added is None else query, kernels.all_queries),
            *(kernels.bias, kernels.frames, kernels.words),
        ],
        out_specs=[kernels.part(0), query, query, kernels.sums],
        out_shape=[
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            of_query,
            of_query,
            jax.ShapeDtypeStruct((kernels.batch, kernels.count, *qkv.shape[3:]), gate.dtype),
        ],
    )(qkv, qkv, qkv, d_out, gate, log_sum, mean, added, offset, queries_first, frames, words)
    operands = _Operands(qkv, d_out, gate, log_sum, mean, added, offset, frames, words)
    d_qkv, d_v_bias = _key_gradients(kernels, operands, d_qkv, qkv_bias[0], keys_first)
    d_q_bias, d_v_bias = (jnp.sum(sums, axis=(0, 1)) for sums in (d_q_bias, d_v_bias))
    d_qkv_bias = jnp.stack([d_q_bias, jnp.zeros_like(d_q_bias), d_v_bias])
    return d_qkv, d_qkv_bias, d_gate, _bias_gradient(kernels, operands, keys_first)


def _key_gradients(
    kernels: Kernels, operands: _Operands, d_qkv: Array, q_bias: Array, bias: Array
) -> tuple[Array, Array]:
    """`d_qkv` with the gradients of k and v in their places; those of v summed over blocks of keys."""
    qkv, d_out, *rest = operands
    every = kernels.all_queries
    inputs = (qkv, qkv, qkv, d_out, *rest, q_bias, bias, d_qkv)
    return kernels.call(
        key_kernel,
        "attention_backward_key",
        grid=kernels.grid,
        in_specs=[
            *(kernels.all_of(0), kernels.part(1), kernels.part(2), kernels.all_rows),
            *(every, every, every, None if operands.added is None else every, kernels.query),
            *(kernels.frames, kernels.words),
            pl.BlockSpec((None, kernels.head_size), lambda i, h, b: (h, 0)),
            *(kernels.bias, pl.BlockSpec(memory_space=pl.ANY)),
        ],
        out_specs=[
            pl.BlockSpec((None, kernels.block, 3, None, kernels.head_size), lambda i, h, b: (b, i, 0, h, 0)),
            kernels.sums,
        ],
        out_shape=[
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            jax.ShapeDtypeStruct((kernels.batch, kernels.count, *qkv.shape[3:]), operands.gate.dtype),
        ],
        input_output_aliases={sum(x is not None for x in inputs) - 1: 0},
    )(*inputs)


def _bias_gradient(kernels: Kernels, operands: _Operands, bias: Array) -> Array:
    """A program makes the gradient of one tile: all along its diagonal of blocks, for a few of the clips."""
    clips = max(n for n in range(1, CLIPS_IN_PROGRAM + 1) if kernels.batch % n == 0)
    size, head_size = kernels.size, kernels.head_size

    def part(part: int) -> pl.BlockSpec:
        return pl.BlockSpec((clips, size, None, None, head_size), lambda d, h, c: (c, 0, part, h, 0))

    qkv, d_out, *rest = operands
    vector = pl.BlockSpec((clips, None, size), lambda d, h, c: (c, h, 0))
    tile = (None, None, kernels.block, kernels.block)
    d_bias = kernels.call(
        diagonal_kernel,
        "attention_backward_bias",
        grid=(bias.shape[1], kernels.heads, kernels.batch // clips),
        in_specs=[
            *(part(0), part(1), part(2)),
            pl.BlockSpec((clips, size, None, head_size), lambda d, h, c: (c, 0, h, 0)),
            *(vector, vector, vector, None if operands.added is None else vector, vector),
            pl.BlockSpec((clips,), lambda d, h, c: (c,)),
            None if operands.words is None else pl.BlockSpec((clips, None, 2), lambda d, h, c: (c, h, 0)),
            pl.BlockSpec(tile, lambda d, h, c: (h, d, 0, 0)),
        ],
        out_specs=pl.BlockSpec((None, *tile), lambda d, h, c: (c, h, d, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((kernels.batch // clips, *bias.shape), bias.dtype),
    )(qkv, qkv, qkv, d_out, *rest, bias)
    return jnp.sum(d_bias, axis=0)

"""Fused attention for TPUs, with the gated bias computed inside the kernels, forward and backward.

It is compiled for TPUs and tested as interpreted, and has not run on one yet.

Flash attention (Dao et al. 2022): scores are made a tile at a time, the softmax is carried along the keys
by its running maximum and sum, and the backward pass makes each tile again from the saved log of the sum.

Time is cut into n blocks of `block` frames. In a tile of queries i and keys j the bias depends on i - j and
on the place in the tile alone, so the table becomes 2n - 1 tiles a head, shared by the batch: linear in T.
A kernel reads the tile of i - j, and the table's gradient comes back as such tiles, each the sum of a
diagonal of blocks. Tiles have keys as rows and queries as columns: a query's numbers (its gate, its
maximum, ...) then lie along the lanes, as a TPU wants it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flax_wavlm.ops.attention.tiles import tiles
from flax_wavlm.ops.partition import shard_batch

Array = jax.Array

BLOCK = 128  # frames a tile, the lanes of a TPU's registers


def attention(
    q: Array,
    k: Array,
    v: Array,
    gate: Array,
    table: Array,
    frames: Array,
    *,
    exact: bool = True,
    block: int | None = None,
) -> Array:
    """Fused attention that holds nothing of size T x T, nor does its gradient.

    Args:
        q, k, v: [B, T, H, K].
        gate: [B, H, T] float32.
        table: [H, 2T - 1] float32, by distance.
        frames: [B] int32, each row's valid keys; a row without any attends to its first.
        exact: float32 products are not rounded to fewer bits.
        block: frames a tile; by default what fits a TPU.
    Returns: [B, T, H, K]. Differentiable in all arguments but `frames`.
    """
    frames = jnp.clip(frames, 1, q.shape[1]).astype(jnp.int32)
    return _pallas(exact, block, q, k, v, gate, table, frames)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pallas(exact: bool, block: int | None, *arrays: Array) -> Array:
    return _pallas_forward(exact, block, *arrays)[0]


def _pallas_forward(exact: bool, block: int | None, *arrays: Array) -> tuple[Array, tuple[Array, ...]]:
    function = functools.partial(_by_platform, _forward, exact, block)
    out, log_sum = shard_batch(function, whole=(4,))(*arrays)
    # Saved before it is rounded: d gate is a small difference of large sums of it.
    return out.astype(arrays[0].dtype), (*arrays, out, log_sum)


def _pallas_backward(
    exact: bool, block: int | None, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array | None, ...]:
    function = functools.partial(_by_platform, _backward, exact, block)
    grads = shard_batch(function, whole=(4,), summed=(4,))(*saved, d_out)
    return (*grads, None)


_pallas.defvjp(_pallas_forward, _pallas_backward)


class _How(NamedTuple):
    """How the kernels are run on a platform."""

    exact: bool
    block: int
    options: Callable[[int], dict[str, Any]]  # of pl.pallas_call, for so many independent axes of the grid


def _by_platform(function: Callable, exact: bool, block: int | None, *arrays: Array) -> Any:
    """Runs `function(how, *arrays)`: on a CPU, for tests, interpreted."""

    def mosaic(independent: int) -> dict[str, Any]:
        semantics = [pltpu.PARALLEL] * independent + [pltpu.ARBITRARY] * (3 - independent)
        return {"compiler_params": pltpu.CompilerParams(dimension_semantics=semantics)}

    def interpreted(independent: int) -> dict[str, Any]:
        return {"interpret": True}

    def under(options: Callable) -> Callable:
        return functools.partial(function, _How(exact, block or BLOCK, options))

    return jax.lax.platform_dependent(*arrays, cpu=under(interpreted), tpu=under(mosaic))


def _forward(
    how: _How, q: Array, k: Array, v: Array, gate: Array, table: Array, frames: Array
) -> tuple[Array, Array]:
    """The output [B, T, H, K], and the log of each query's sum of exponentials [B, H, T]; float32."""
    spec = _Specs(how, q)
    out, log_sum = pl.pallas_call(
        functools.partial(_forward_kernel, how),
        grid=spec.grid,
        in_specs=[spec.block, spec.all, spec.all, spec.query, spec.tiles, spec.frames],
        out_specs=[spec.block, spec.query],
        out_shape=[spec.shape(gate.dtype), spec.query_shape(gate.dtype)],
        name="attention_forward",
        **how.options(3),
    )(
        spec.rows(q),
        spec.rows(k),
        spec.rows(v),
        spec.queries(gate),
        tiles(table, how.block),
        frames[:, None, None],
    )
    return spec.frames_first(out), log_sum[:, :, 0, : q.shape[1]]


def _backward(
    how: _How,
    q: Array,
    k: Array,
    v: Array,
    gate: Array,
    table: Array,
    frames: Array,
    out: Array,
    log_sum: Array,
    d_out: Array,
) -> tuple[Array, Array, Array, Array, Array]:
    """The gradients of q, k, v, gate and table."""
    spec = _Specs(how, q)
    bias, tiles_backward = jax.vjp(lambda table: tiles(table, how.block), table)
    # What softmax's gradient takes off each query's: sum over s of weight * d weight.
    mean = jnp.sum(out * d_out, axis=-1).swapaxes(1, 2)
    frames = frames[:, None, None]
    q, k, v, d_out = map(spec.rows, (q, k, v, d_out))
    gate, log_sum, mean = map(spec.queries, (gate, log_sum, mean))

    d_q, d_gate = pl.pallas_call(
        functools.partial(_query_kernel, how),
        grid=spec.grid,
        in_specs=[
            *(spec.block, spec.all, spec.all, spec.block),
            *(spec.query, spec.query, spec.query, spec.tiles, spec.frames),
        ],
        out_specs=[spec.block, spec.query],
        out_shape=[spec.shape(q.dtype), spec.query_shape(gate.dtype)],
        name="attention_backward_query",
        **how.options(3),
    )(q, k, v, d_out, gate, log_sum, mean, bias, frames)

    d_k, d_v = pl.pallas_call(
        functools.partial(_key_kernel, how),
        grid=spec.grid,
        in_specs=[
            *(spec.all, spec.block, spec.block, spec.all),
            *(spec.all_queries, spec.all_queries, spec.all_queries, spec.tiles, spec.frames),
        ],
        out_specs=[spec.block, spec.block],
        out_shape=[spec.shape(k.dtype), spec.shape(v.dtype)],
        name="attention_backward_key",
        **how.options(3),
    )(q, k, v, d_out, gate, log_sum, mean, bias, frames)

    batch, heads = q.shape[:2]
    rows = pl.BlockSpec((None, None, *q.shape[2:]), lambda h, d, b: (b, h, 0, 0))
    queries = pl.BlockSpec((None, None, 1, q.shape[2]), lambda h, d, b: (b, h, 0, 0))
    tile = pl.BlockSpec((None, None, how.block, how.block), lambda h, d, b: (h, d, 0, 0))
    d_bias = pl.pallas_call(
        functools.partial(_diagonal_kernel, how),
        grid=(heads, bias.shape[1], batch),
        in_specs=[
            *(rows, rows, rows, rows, queries, queries, queries, tile),
            pl.BlockSpec((None, 1, 1), lambda h, d, b: (b, 0, 0)),
        ],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(bias.shape, bias.dtype),
        name="attention_backward_bias",
        **how.options(2),
    )(q, k, v, d_out, gate, log_sum, mean, bias, frames)
    (d_table,) = tiles_backward(d_bias)
    d_q, d_k, d_v = map(spec.frames_first, (d_q, d_k, d_v))
    return d_q, d_k, d_v, d_gate[:, :, 0, : spec.time], d_table


class _Specs:
    """Shapes for the kernels, from [B, T, H, K]: time padded to N = n * block, and behind the heads.

    A program of the grid (head, clip, index of a block of time) is given its own block, or all of them.
    """

    def __init__(self, how: _How, q: Array):
        self.how = how
        self.batch, self.time, self.heads, self.head_size = q.shape
        self.count = -(-self.time // how.block)
        self.size = self.count * how.block
        self.grid = (self.heads, self.batch, self.count)
        block, size, head_size = how.block, self.size, self.head_size
        self.block = pl.BlockSpec((None, None, block, head_size), lambda h, b, i: (b, h, i, 0))
        self.all = pl.BlockSpec((None, None, size, head_size), lambda h, b, i: (b, h, 0, 0))
        self.query = pl.BlockSpec((None, None, 1, block), lambda h, b, i: (b, h, 0, i))
        self.all_queries = pl.BlockSpec((None, None, 1, size), lambda h, b, i: (b, h, 0, 0))
        self.tiles = pl.BlockSpec((None, 2 * self.count - 1, block, block), lambda h, b, i: (h, 0, 0, 0))
        self.frames = pl.BlockSpec((None, 1, 1), lambda h, b, i: (b, 0, 0))

    def rows(self, x: Array) -> Array:
        """[B, T, H, K] -> [B, H, N, K]."""
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, self.size - self.time), (0, 0)))

    def frames_first(self, x: Array) -> Array:
        """[B, H, N, K] -> [B, T, H, K]."""
        return jnp.swapaxes(x[:, :, : self.time], 1, 2)

    def queries(self, x: Array) -> Array:
        """[B, H, T] -> [B, H, 1, N]."""
        return jnp.pad(x, ((0, 0), (0, 0), (0, self.size - self.time)))[:, :, None]

    def shape(self, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.batch, self.heads, self.size, self.head_size), dtype)

    def query_shape(self, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.batch, self.heads, 1, self.size), dtype)


def _dot(how: _How, a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """The product of two matrices over an axis of each, accumulated in float32 (or wider)."""
    precise = how.exact and a.dtype != jnp.bfloat16
    return jax.lax.dot_general(
        a,
        b,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if precise else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def _scores(how: _How, q: Array, k: Array, gate: Array, bias: Array, frames: Array, j: Any) -> Array:
    """A tile of scores [keys, queries], -inf where there is no key; j is the keys' block."""
    scores = _dot(how, k, q, (1, 1)) / math.sqrt(q.shape[1]) + gate * bias
    key = j * how.block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    return jnp.where(key < frames, scores, -jnp.inf)


def _weights_and_gradient(
    how: _How, scores: Array, v: Array, d_out: Array, log_sum: Array, mean: Array
) -> tuple[Array, Array]:
    """A tile of attention weights, and of the scores' gradient."""
    weights = jnp.exp(scores - log_sum)
    return weights, weights * (_dot(how, v, d_out, (1, 1)) - mean)


def _forward_kernel(how: _How, q_ref, k_ref, v_ref, gate_ref, bias_ref, frames_ref, out_ref, log_sum_ref):
    i, count = pl.program_id(2), k_ref.shape[0] // how.block
    q, gate, frames = q_ref[...], gate_ref[...], frames_ref[...]

    def step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, out = carry  # of the keys so far: [1, queries], [1, queries], [K, queries]
        keys = pl.ds(j * how.block, how.block)
        scores = _scores(how, q, k_ref[keys, :], gate, bias_ref[i - j + count - 1], frames, j)
        # Never -inf - -inf: the first block holds a valid key.
        higher = jnp.maximum(highest, jnp.max(scores, axis=0, keepdims=True))
        shrink = jnp.exp(highest - higher)
        weights = jnp.exp(scores - higher)
        total = total * shrink + jnp.sum(weights, axis=0, keepdims=True)
        v = v_ref[keys, :]
        return higher, total, out * shrink + _dot(how, v, weights.astype(v.dtype), (0, 0))

    highest = jnp.full(gate.shape, -jnp.inf, gate.dtype)
    out = jnp.zeros((q.shape[1], how.block), gate.dtype)
    highest, total, out = jax.lax.fori_loop(0, count, step, (highest, jnp.zeros_like(gate), out))
    out_ref[...] = (out / total).T
    log_sum_ref[...] = highest + jnp.log(total)


def _query_kernel(
    how: _How,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    bias_ref,
    frames_ref,
    d_q_ref,
    d_gate_ref,
):
    """d q and d gate of a block of queries: along the keys."""
    i, count = pl.program_id(2), k_ref.shape[0] // how.block
    q, d_out, frames = q_ref[...], d_out_ref[...], frames_ref[...]
    gate, log_sum, mean = gate_ref[...], log_sum_ref[...], mean_ref[...]

    def along_keys(x: Array) -> Array:
        return jnp.sum(x, axis=0, keepdims=True)

    def step(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        d_q, d_gate, bias_mean, excess = carry  # [K, queries], [1, queries] each
        keys = pl.ds(j * how.block, how.block)
        k, bias = k_ref[keys, :], bias_ref[i - j + count - 1]
        scores = _scores(how, q, k, gate, bias, frames, j)
        weights, d_scores = _weights_and_gradient(how, scores, v_ref[keys, :], d_out, log_sum, mean)
        d_gate = d_gate + along_keys(d_scores * bias)
        bias_mean = bias_mean + along_keys(weights * bias)
        d_q = d_q + _dot(how, k, d_scores.astype(k.dtype), (0, 0))
        return d_q, d_gate, bias_mean, excess + along_keys(d_scores)

    start = jnp.zeros((q.shape[1], how.block), gate.dtype), *(jnp.zeros_like(gate) for _ in range(3))
    d_q, d_gate, bias_mean, excess = jax.lax.fori_loop(0, count, step, start)
    d_q_ref[...] = (d_q / math.sqrt(q.shape[1])).T.astype(d_q_ref.dtype)
    # The scores' gradients of a query sum to 0, but for the rounding of `mean`; what that does to d gate,
    # whose terms all but cancel, is taken off again.
    d_gate_ref[...] = d_gate - bias_mean * excess


def _key_kernel(
    how: _How,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    bias_ref,
    frames_ref,
    d_k_ref,
    d_v_ref,
):
    """d k and d v of a block of keys: along the queries."""
    j, count = pl.program_id(2), q_ref.shape[0] // how.block
    k, v, frames = k_ref[...], v_ref[...], frames_ref[...]

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_k, d_v = carry  # [keys, K]
        queries = pl.ds(i * how.block, how.block)
        q, d_out = q_ref[queries, :], d_out_ref[queries, :]
        scores = _scores(how, q, k, gate_ref[:, queries], bias_ref[i - j + count - 1], frames, j)
        weights, d_scores = _weights_and_gradient(
            how, scores, v, d_out, log_sum_ref[:, queries], mean_ref[:, queries]
        )
        d_k = d_k + _dot(how, d_scores.astype(q.dtype), q, (1, 0))
        return d_k, d_v + _dot(how, weights.astype(d_out.dtype), d_out, (1, 0))

    start = jnp.zeros(k.shape, gate_ref.dtype), jnp.zeros(v.shape, gate_ref.dtype)
    d_k, d_v = jax.lax.fori_loop(0, count, step, start)
    d_k_ref[...] = (d_k / math.sqrt(k.shape[1])).astype(d_k_ref.dtype)
    d_v_ref[...] = d_v.astype(d_v_ref.dtype)


def _diagonal_kernel(
    how: _How,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    bias_ref,
    frames_ref,
    d_bias_ref,
):
    """The gradient of one tile of the bias: along its diagonal of blocks, and over clips."""
    count = q_ref.shape[0] // how.block
    diagonal = pl.program_id(1) - (count - 1)
    bias, frames = bias_ref[...], frames_ref[...]

    def step(j: Array, total: Array) -> Array:
        queries, keys = pl.ds((j + diagonal) * how.block, how.block), pl.ds(j * how.block, how.block)
        gate = gate_ref[:, queries]
        scores = _scores(how, q_ref[queries, :], k_ref[keys, :], gate, bias, frames, j)
        _, d_scores = _weights_and_gradient(
            how, scores, v_ref[keys, :], d_out_ref[queries, :], log_sum_ref[:, queries], mean_ref[:, queries]
        )
        return total + gate * d_scores

    first, end = jnp.maximum(0, -diagonal), jnp.minimum(count, count - diagonal)
    total = jax.lax.fori_loop(first, end, step, jnp.zeros_like(bias))
    # The programs of a batch follow one another, and the output stays where it is meanwhile.
    d_bias_ref[...] = jnp.where(pl.program_id(2) == 0, total, d_bias_ref[...] + total)

"""The Triton kernels of attention for NVIDIA GPUs. `gpu.py` calls them, and says what they compute."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flax_wavlm.ops.attention.weight_dropout import stays
from flax_wavlm.ops.dropout import STEPS

Array = jax.Array

LOG2_E = math.log2(math.e)  # powers of 2 are what the hardware computes


class Settings(NamedTuple):
    """The settings of a call."""

    exact: bool
    interpret: bool
    dropped: int = 0  # attention weights of every STEPS


class Kernels:
    """The sizes that all kernels of a call know, and the part of each array that a program of the grid gets.

    The grid is (block of time, head, clip), the first of them running fastest.
    """

    def __init__(self, settings: Settings, qkv: Array, queries_first: Array):
        self.settings = settings
        self.batch, self.time, _, self.heads, self.head_size = qkv.shape
        self.block = block = queries_first.shape[-1]
        self.count = (queries_first.shape[1] + 1) // 2
        self.grid = (self.count, self.heads, self.batch)
        self.size = size = self.count * block
        head_size = self.head_size
        self.rows = pl.BlockSpec((None, block, None, head_size), lambda i, h, b: (b, i, h, 0))
        self.all_rows = pl.BlockSpec((None, size, None, head_size), lambda i, h, b: (b, 0, h, 0))
        self.query = pl.BlockSpec((None, None, block), lambda i, h, b: (b, h, i))
        self.all_queries = pl.BlockSpec((None, None, size), lambda i, h, b: (b, h, 0))
        self.bias = pl.BlockSpec((None, *queries_first.shape[1:]), lambda i, h, b: (h, 0, 0, 0))
        self.sums = pl.BlockSpec((None, None, None, head_size), lambda i, h, b: (b, i, h, 0))  # of a block
        self.frames = pl.BlockSpec((None,), lambda i, h, b: (b,))
        self.words = pl.BlockSpec((None, None, 2), lambda i, h, b: (b, h, 0)) if settings.dropped else None
        self.scale = STEPS / (STEPS - settings.dropped)  # of the attention weights that stay

    def part(self, part: int) -> pl.BlockSpec:
        """A block of q, k or v."""
        return pl.BlockSpec(
            (None, self.block, None, None, self.head_size), lambda i, h, b: (b, i, part, h, 0)
        )

    def all_of(self, part: int) -> pl.BlockSpec:
        """All of q, k or v."""
        return pl.BlockSpec((None, self.size, None, None, self.head_size), lambda i, h, b: (b, 0, part, h, 0))

    def call(self, kernel: Callable, name: str, **specs: Any) -> Callable:
        return pl.pallas_call(
            functools.partial(kernel, self),
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),  # 8 warps were slower on an H100
            interpret=self.settings.interpret,
            name=name,
            **specs,
        )

    # In a kernel:

    def load(self, ref: Any, index: Any, frames: Array, *clip: Array) -> Array:
        """Block `index` of rows [time, K] or elements [time], of one clip of several; 0 beyond the frames."""
        valid = self.valid(index, frames)
        view = ref.at[(*clip, pl.ds(index * self.block, self.block))]
        if len(view.shape) == 2:
            valid = jnp.broadcast_to(valid[:, None], view.shape)
        return plgpu.load(view, mask=valid, other=0.0)

    def store(self, ref: Any, value: Array, index: Any) -> None:
        """Stores block `index` of rows or elements, without what is beyond the array."""
        inside = self.valid(index, self.time)
        if value.ndim == 2:
            inside = jnp.broadcast_to(inside[:, None], value.shape)
        plgpu.store(ref, value.astype(ref.dtype), mask=inside)

    def dot(self, a: Array, b: Array, axes: tuple[int, int]) -> Array:
        """The product of two matrices over an axis of each, accumulated in float32."""
        precise = self.settings.exact and a.dtype != jnp.bfloat16
        return jax.lax.dot_general(
            a,
            b,
            (((axes[0],), (axes[1],)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if precise else jax.lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )

    def valid(self, index: Any, frames: Any) -> Array:
        """Which places of block `index` are among the first `frames`."""
        return index * self.block + jnp.arange(self.block) < frames

    def blocks(self, index: Any, frames: Array) -> Array:
        """How many blocks to go through: those that hold frames; none, if block `index` itself holds none."""
        return jnp.where(index * self.block < frames, pl.cdiv(frames, self.block), 0)

    def scores(self, product: Array, gate: Array, bias: Array, offset: Array) -> Array:
        """A tile of scores, as powers of 2."""
        return product * (LOG2_E / math.sqrt(self.head_size)) + offset + (gate * LOG2_E) * bias

    # The kernels set dropped weights to 0. The scale of dropout is taken out of the sums, which `scaled`
    # multiplies by it.

    def drop(
        self, words: tuple[Array, Array] | None, x: Array, first: tuple[Any, Any], *, queries_first: bool
    ) -> Array:
        """A tile from this query and this key on, 0 where the attention weight is dropped."""
        if words is None:
            return x
        queries, keys = x.shape if queries_first else x.shape[::-1]
        query, key = first[0] + jnp.arange(queries), first[1] + jnp.arange(keys)
        pair = (query[:, None], key[None, :]) if queries_first else (query[None, :], key[:, None])
        return jnp.where(stays(*words, *pair, self.settings.dropped), x, 0)

    def scaled(self, x: Array) -> Array:
        return x * self.scale if self.settings.dropped else x


def _words_of(ref: Any, *clip: Array) -> tuple[Array, Array] | None:
    """A clip's and head's two words in a kernel; None without dropout."""
    return None if ref is None else (ref[(*clip, 0)], ref[(*clip, 1)])


def forward_kernel(
    kernels: Kernels,
    q_ref,
    k_ref,
    v_ref,
    v_bias_ref,
    gate_ref,
    offset_ref,
    bias_ref,
    frames_ref,
    words_ref,
    out_ref,
    log_sum_ref,
):
    i, block, frames, words = pl.program_id(0), kernels.block, frames_ref[...], _words_of(words_ref)
    left = frames - i * block  # valid queries from this block on
    q, gate = kernels.load(q_ref, 0, left), kernels.load(gate_ref, 0, left)

    def step(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        highest, total, stays, out = carry  # of the keys so far: three of [queries], and [queries, K]
        k, v = kernels.load(k_ref, j, frames), kernels.load(v_ref, j, frames)
        offset = offset_ref[pl.ds(j * block, block)]
        bias = bias_ref[i - j + kernels.count - 1]
        scores = kernels.scores(kernels.dot(q, k, (1, 1)), gate[:, None], bias, offset[None, :])
        # Never -inf - -inf: the first block holds a valid key.
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        shrink = jnp.exp2(highest - higher)
        weights = jnp.exp2(scores - higher[:, None])
        total = total * shrink + jnp.sum(weights, axis=1)
        if words is not None:
            weights = kernels.drop(words, weights, (i * block, j * block), queries_first=True)
            stays = stays * shrink + jnp.sum(weights, axis=1)
        out = out * shrink[:, None] + kernels.dot(weights.astype(v.dtype), v, (1, 0))
        return higher, total, stays, out

    zero = jnp.zeros(block)
    start = jnp.full(block, -jnp.inf), zero, zero, jnp.zeros((block, kernels.head_size))
    highest, total, stays, out = jax.lax.fori_loop(0, kernels.blocks(i, frames), step, start)
    v_bias = v_bias_ref[...][None, :]
    if words is not None:
        v_bias = (stays / total)[:, None] * v_bias
    out = out / total[:, None] + v_bias
    valid = kernels.valid(0, left)
    kernels.store(out_ref, jnp.where(valid[:, None], kernels.scaled(out), 0), i)
    kernels.store(log_sum_ref, jnp.where(valid, highest + jnp.log2(total), 0), i)


def query_kernel(
    kernels: Kernels,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    added_ref,
    offset_ref,
    bias_ref,
    frames_ref,
    words_ref,
    d_q_ref,
    d_gate_ref,
    right_mean_ref,
    d_q_bias_ref,
):
    """d q and d gate of a block of queries: along the keys."""
    i, block, frames, words = pl.program_id(0), kernels.block, frames_ref[...], _words_of(words_ref)
    refs = (q_ref, d_out_ref, gate_ref, log_sum_ref, mean_ref)
    q, d_out, gate, log_sum, mean = (kernels.load(ref, 0, frames - i * block) for ref in refs)
    added = None if words is None else kernels.load(added_ref, 0, frames - i * block)

    def step(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        d_q, d_gate, bias_mean, excess = carry  # [queries, K], and three of [queries]
        k, v = kernels.load(k_ref, j, frames), kernels.load(v_ref, j, frames)
        offset = offset_ref[pl.ds(j * block, block)]
        bias = bias_ref[i - j + kernels.count - 1]
        weights, _, d_scores = _tile_gradient(
            kernels,
            (q, k, v, d_out),
            (gate, log_sum, mean, added, offset),
            bias,
            words,
            (i * block, j * block),
            queries_first=True,
        )
        d_gate = d_gate + jnp.sum(d_scores * bias, axis=1)
        bias_mean = bias_mean + jnp.sum(weights * bias, axis=1)
        d_q = d_q + kernels.dot(d_scores.astype(k.dtype), k, (1, 0))
        return d_q, d_gate, bias_mean, excess + jnp.sum(d_scores, axis=1)

    start = jnp.zeros((block, kernels.head_size)), *(jnp.zeros(block) for _ in range(3))
    d_q, d_gate, bias_mean, excess = jax.lax.fori_loop(0, kernels.blocks(i, frames), step, start)
    d_q = kernels.scaled(d_q / math.sqrt(kernels.head_size))
    kernels.store(d_q_ref, d_q, i)
    d_q_bias_ref[...] = jnp.sum(d_q, axis=0)
    # The scores' gradients of a query sum to 0, but for the rounding of `mean`; what that does to d gate,
    # whose terms all but cancel, is taken off again. The other kernels are given the right mean.
    kernels.store(d_gate_ref, kernels.scaled(d_gate - bias_mean * excess), i)
    kernels.store(right_mean_ref, mean + excess, i)


def _tile_gradient(
    kernels: Kernels,
    matrices: tuple[Array, Array, Array, Array],
    vectors: tuple[Array, Array, Array, Array | None, Array],
    bias: Array,
    words: tuple[Array, Array] | None,
    first: tuple[Any, Any],
    *,
    queries_first: bool,
) -> tuple[Array, Array, Array]:
    """A tile of attention weights before and after dropout, and of the scores' gradient.

    Args: `matrices`: q, k, v and d out. `vectors`: gate, log sum, mean and added of each query, offset of
        each key, as in `_Operands`. `first`: the numbers of the first query and key.
    """
    (q, k, v, d_out), (gate, log_sum, mean, added, offset) = matrices, vectors

    def product(of_queries: Array, of_keys: Array) -> Array:
        pair = (of_queries, of_keys) if queries_first else (of_keys, of_queries)
        return kernels.dot(*pair, (1, 1))

    def by_query(x: Array) -> Array:
        return x[:, None] if queries_first else x[None, :]

    offset = offset[None, :] if queries_first else offset[:, None]
    scores = kernels.scores(product(q, k), by_query(gate), bias, offset)
    weights = jnp.exp2(scores - by_query(log_sum))
    d_weights = product(d_out, v)
    if added is not None:
        d_weights = d_weights + by_query(added)
    drop = functools.partial(kernels.drop, words, first=first, queries_first=queries_first)
    return weights, drop(weights), weights * (drop(d_weights) - by_query(mean))


def key_kernel(
    kernels: Kernels,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    added_ref,
    offset_ref,
    frames_ref,
    words_ref,
    q_bias_ref,
    bias_ref,
    _,
    d_qkv_ref,
    d_v_bias_ref,
):
    """d k and d v of a block of keys: along the queries."""
    j, block, frames, words = pl.program_id(0), kernels.block, frames_ref[...], _words_of(words_ref)
    k, v = (kernels.load(ref, 0, frames - j * block) for ref in (k_ref, v_ref))
    offset = offset_ref[...]

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        d_k, d_v, d_offset = carry  # [keys, K] twice, [keys]
        refs = (q_ref, d_out_ref, gate_ref, log_sum_ref, mean_ref)
        q, d_out, gate, log_sum, mean = (kernels.load(ref, i, frames) for ref in refs)
        added = None if words is None else kernels.load(added_ref, i, frames)
        _, weights, d_scores = _tile_gradient(
            kernels,
            (q, k, v, d_out),
            (gate, log_sum, mean, added, offset),
            bias_ref[i - j + kernels.count - 1],
            words,
            (i * block, j * block),
            queries_first=False,
        )
        d_k = d_k + kernels.dot(d_scores.astype(q.dtype), q, (1, 0))
        d_v = d_v + kernels.dot(weights.astype(d_out.dtype), d_out, (1, 0))
        return d_k, d_v, d_offset + jnp.sum(d_scores, axis=1)

    start = jnp.zeros((block, kernels.head_size)), jnp.zeros((block, kernels.head_size)), jnp.zeros(block)
    d_k, d_v, d_offset = jax.lax.fori_loop(0, kernels.blocks(j, frames), step, start)
    d_k = d_k + d_offset[:, None] * q_bias_ref[...][None, :]
    d_v = kernels.scaled(d_v)
    kernels.store(d_qkv_ref.at[:, jnp.int32(1), :], kernels.scaled(d_k / math.sqrt(kernels.head_size)), j)
    kernels.store(d_qkv_ref.at[:, jnp.int32(2), :], d_v, j)
    d_v_bias_ref[...] = jnp.sum(d_v, axis=0)


def diagonal_kernel(
    kernels: Kernels,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    added_ref,
    offset_ref,
    frames_ref,
    words_ref,
    bias_ref,
    d_bias_ref,
):
    """The gradient of one tile of the bias, summed along its diagonal of blocks, and over some clips."""
    diagonal, block = pl.program_id(0) - (kernels.count - 1), kernels.block
    bias = bias_ref[...]

    def add_clip(clip: Array, total: Array) -> Array:
        frames, words = frames_ref[clip], _words_of(words_ref, clip)
        blocks = pl.cdiv(frames, block)

        def step(j: Array, total: Array) -> Array:
            i = j + diagonal
            k, v = (kernels.load(ref, j, frames, clip) for ref in (k_ref, v_ref))
            refs = (q_ref, d_out_ref, gate_ref, log_sum_ref, mean_ref)
            q, d_out, gate, log_sum, mean = (kernels.load(ref, i, frames, clip) for ref in refs)
            added = None if words is None else kernels.load(added_ref, i, frames, clip)
            _, _, d_scores = _tile_gradient(
                kernels,
                (q, k, v, d_out),
                (gate, log_sum, mean, added, offset_ref[clip, pl.ds(j * block, block)]),
                bias,
                words,
                (i * block, j * block),
                queries_first=False,
            )
            return total + gate[None, :] * d_scores

        first, end = jnp.maximum(0, -diagonal), jnp.minimum(blocks, blocks - diagonal)
        return jax.lax.fori_loop(first, end, step, total)

    d_bias = jax.lax.fori_loop(0, q_ref.shape[0], add_clip, jnp.zeros_like(bias))
    d_bias_ref[...] = kernels.scaled(d_bias)

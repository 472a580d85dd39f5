"""`fused_attention` for NVIDIA GPUs, where a kernel reads and writes memory as it lies.

The same tiles of the bias, and the same mathematics; letters as there. Different is what a GPU wants: q, k
and v are read from the product that made them, [B, T, 3, H, K], and their gradients are written like that, so
that nothing is split, transposed, padded or put together around the kernels. Blocks beyond a clip's frames
are left out: a query there gives 0. No kernel adds to what another wrote: the same bits in every run.

Dropout of the attention weights is inside. Which of them stay is never stored: every kernel hashes the place
of each weight, so that a mask is the same in all of them, and for any block and number of devices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flax_wavlm import sharding
from flax_wavlm.dropout import STEPS
from flax_wavlm.fused_attention import tiles

Array = jax.Array

LOG2_E = math.log2(math.e)  # powers of 2 are what the hardware computes
CLIPS_IN_PROGRAM = 4  # at most, where the bias's gradient is summed over clips: the sums are then added up


class Bias(NamedTuple):
    """The position bias as tiles [H, 2n - 1, block, block], made once for all layers."""

    keys_first: Array  # `fused_attention.tiles`: keys as rows, queries as columns; the gradient goes here
    queries_first: Array  # the same, queries as rows


def prepare_bias(table: Array, dtype: Any, *, block: int | None = None) -> Bias:
    """From the table by distance [H, 2T - 1], for q, k and v of that type, in blocks that suit it."""
    fitting = 64 if jnp.dtype(dtype) == jnp.bfloat16 else 32  # as registers allow
    keys_first = tiles(table, block or fitting)
    # Of a Toeplitz matrix the transposed one is the one read backwards, from its last row and column.
    return Bias(keys_first, jax.lax.stop_gradient(keys_first)[:, :, ::-1, ::-1])


def attention(
    qkv: Array,
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
        gate: [B, H, T] float32.
        frames: [B] int32, each row's valid frames; of a row without any the first is taken.
        rate: the share of the attention weights that is dropped, as by `dropout.apply`; none without a seed.
        seed: [2] uint32, random; `kept` says what it makes.
        exact: products of float32 are not rounded to fewer bits.
        interpret: run on a CPU, for tests.
    Returns: [B, T, H, K]; 0 beyond a row's frames. Differentiable in qkv, gate and bias.
    """
    batch, time, _, heads, head_size = qkv.shape
    frames = jnp.clip(frames, 1, time).astype(jnp.int32)
    dropped = 0 if seed is None else round(rate * STEPS)
    if seed is None or dropped == 0:
        return _attention(_How(exact, interpret), qkv, gate, *bias, frames)
    if dropped == STEPS:
        return jnp.zeros((batch, time, heads, head_size), qkv.dtype)
    words = _words(seed, batch, heads)
    return _attention(_How(exact, interpret, dropped), qkv, gate, *bias, frames, words)


class _How(NamedTuple):
    """What is asked of a call, before any array."""

    exact: bool
    interpret: bool
    dropped: int = 0  # so many of STEPS attention weights


# --- Which attention weights stay ---------------------------------------------------------------------------

# The multipliers and shifts of MurmurHash3's last step, `fmix32` (Appleby 2011, public domain).
MIX = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
STRIDE = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio, as counters are spaced by Steele et al. 2014


def kept(seed: Array, batch: int, heads: int, time: int, rate: float) -> Array:
    """Which attention weights stay with this seed: bool [B, H, T, T], for queries and their keys.

    The definition of what the kernels compute, for tests. A pure function of the seed [2] and the numbers of
    the clip in the global batch, the head, the query and the key.
    """
    words, frames = _words(seed, batch, heads)[:, :, None, None], jnp.arange(time)
    return _kept(words[..., 0], words[..., 1], frames[:, None], frames[None, :], round(rate * STEPS))


def _words(seed: Array, batch: int, heads: int) -> Array:
    """Two random words [B, H, 2] for every clip and head."""
    seed = seed.astype(jnp.uint32)
    counter = jnp.arange(batch, dtype=jnp.uint32)[:, None, None] * np.uint32(heads)
    counter = counter + jnp.arange(heads, dtype=jnp.uint32)[:, None]
    words = counter * STRIDE + seed
    for after in (seed[::-1], np.uint32(0)):  # fmix32, twice: each word depends on the whole seed
        words = (words ^ (words >> 16)) * MIX[0]
        words = (words ^ (words >> 13)) * MIX[1]
        words = (words ^ (words >> 16)) + after
    return words


def _kept(first: Array, second: Array, queries: Array, keys: Array, dropped: int) -> Array:
    """From a clip's and head's two words, int32 queries and int32 keys (up to 2^16 of them, then again).

    A hash of the counter query * 2^16 + key: `fmix32`, which starts at the first word and takes in the second
    half-way. Its last step is left out, since that changes the lower 16 bits only and a rate is a multiple
    of 2^-16. Queries and keys are multiplied before they are combined: one addition is left for each pair.
    """
    counter = first + queries.astype(jnp.uint32) * (STRIDE << np.uint32(16))
    bits = counter + keys.astype(jnp.uint32) * STRIDE
    bits = (bits ^ jax.lax.shift_right_logical(bits, jnp.full_like(bits, 16))) * MIX[0]
    bits = (bits ^ second ^ jax.lax.shift_right_logical(bits, jnp.full_like(bits, 13))) * MIX[1]
    return bits >= np.uint32(dropped << 16)


# --- Calls --------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: _How, *arrays: Array) -> Array:
    return _attention_forward(how, *arrays)[0]


def _attention_forward(how: _How, *arrays: Array) -> tuple[Array, tuple[Array, ...]]:
    out, log_sum = sharding.by_rows(functools.partial(_forward, how), whole=(2, 3))(*arrays)
    return out, (*arrays[:5], out, log_sum, *arrays[5:])


def _attention_backward(how: _How, saved: tuple[Array, ...], d_out: Array) -> tuple[Array | None, ...]:
    function = sharding.by_rows(functools.partial(_backward, how), whole=(2, 3), summed=(2,))
    d_qkv, d_gate, d_bias = function(*saved[:7], d_out, *saved[7:])
    return d_qkv, d_gate, d_bias, *[None] * (len(saved) - 5)


_attention.defvjp(_attention_forward, _attention_backward)


class _Kernels:
    """What all kernels of a call know beforehand, and what a program of the grid is given of an array.

    The grid is (block of time, head, clip), the first of them running fastest.
    """

    def __init__(self, how: _How, qkv: Array, bias: Array):
        self.how = how
        self.batch, self.time, _, self.heads, self.head_size = qkv.shape
        self.block = block = bias.shape[-1]
        self.count = (bias.shape[1] + 1) // 2
        self.grid = (self.count, self.heads, self.batch)
        self.size = size = self.count * block
        head_size = self.head_size
        self.rows = pl.BlockSpec((None, block, None, head_size), lambda i, h, b: (b, i, h, 0))
        self.all_rows = pl.BlockSpec((None, size, None, head_size), lambda i, h, b: (b, 0, h, 0))
        self.query = pl.BlockSpec((None, None, block), lambda i, h, b: (b, h, i))
        self.all_queries = pl.BlockSpec((None, None, size), lambda i, h, b: (b, h, 0))
        self.bias = pl.BlockSpec((None, *bias.shape[1:]), lambda i, h, b: (h, 0, 0, 0))
        self.frames = pl.BlockSpec((None,), lambda i, h, b: (b,))
        self.words = pl.BlockSpec((None, None, 2), lambda i, h, b: (b, h, 0)) if how.dropped else None
        self.scale = STEPS / (STEPS - how.dropped)  # of the attention weights that stay

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
            interpret=self.how.interpret,
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
        """Stores block `index` of rows or elements, as far as the array goes."""
        inside = self.valid(index, self.time)
        if value.ndim == 2:
            inside = jnp.broadcast_to(inside[:, None], value.shape)
        plgpu.store(ref, value.astype(ref.dtype), mask=inside)

    def dot(self, a: Array, b: Array, axes: tuple[int, int]) -> Array:
        """The product of two matrices over an axis of each, accumulated in float32."""
        precise = self.how.exact and a.dtype != jnp.bfloat16
        return jax.lax.dot_general(
            a,
            b,
            (((axes[0],), (axes[1],)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if precise else jax.lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )

    def valid(self, index: Any, frames: Any) -> Array:
        """Which of block `index` are among so many frames."""
        return index * self.block + jnp.arange(self.block) < frames

    def blocks(self, index: Any, frames: Array) -> Array:
        """How many blocks there are to go through: those with frames, but none for a block without any."""
        return jnp.where(index * self.block < frames, pl.cdiv(frames, self.block), 0)

    def scores(self, product: Array, gate: Array, bias: Array, valid_keys: Array) -> Array:
        """A tile of scores, as powers of 2; -inf where there is no key."""
        scores = product * (LOG2_E / math.sqrt(self.head_size)) + (gate * LOG2_E) * bias
        return jnp.where(valid_keys, scores, -jnp.inf)

    # Of dropout the kernels do the zeros. The scale is taken out of the sums: `scaled` multiplies these.

    def drop(
        self, words: tuple[Array, Array] | None, x: Array, i: Any, j: Any, *, queries_first: bool
    ) -> Array:
        """A tile of queries `i` and keys `j`, 0 where the attention weight is dropped."""
        if words is None:
            return x
        queries, keys = (index * self.block + jnp.arange(self.block) for index in (i, j))
        pair = (queries[:, None], keys[None, :]) if queries_first else (queries[None, :], keys[:, None])
        return jnp.where(_kept(*words, *pair, self.how.dropped), x, 0)

    def scaled(self, x: Array) -> Array:
        return x * self.scale if self.how.dropped else x


def _words_of(ref: Any, *clip: Array) -> tuple[Array, Array] | None:
    """A clip's and head's two words in a kernel; None without dropout."""
    return None if ref is None else (ref[(*clip, 0)], ref[(*clip, 1)])


def _forward(
    how: _How, qkv: Array, gate: Array, _: Array, bias: Array, frames: Array, *dropout: Array
) -> tuple[Array, Array]:
    """The output [B, T, H, K], and the logarithm to base 2 of each query's sum of exponentials [B, H, T].

    `dropout`: the words of every clip and head, or nothing.
    """
    kernels = _Kernels(how, qkv, bias)
    words = dropout[0] if dropout else None
    return kernels.call(
        _forward_kernel,
        "attention_forward",
        grid=kernels.grid,
        in_specs=[
            *(kernels.part(0), kernels.all_of(1), kernels.all_of(2)),
            *(kernels.query, kernels.bias, kernels.frames, kernels.words),
        ],
        out_specs=[kernels.rows, kernels.query],
        out_shape=[
            jax.ShapeDtypeStruct((*qkv.shape[:2], *qkv.shape[3:]), qkv.dtype),
            jax.ShapeDtypeStruct(gate.shape, gate.dtype),
        ],
    )(qkv, qkv, qkv, gate, bias, frames, words)


def _backward(
    how: _How,
    qkv: Array,
    gate: Array,
    keys_first: Array,
    queries_first: Array,
    frames: Array,
    out: Array,
    log_sum: Array,
    d_out: Array,
    *dropout: Array,
) -> tuple[Array, Array, Array]:
    """The gradients of qkv, gate and the bias."""
    kernels = _Kernels(how, qkv, keys_first)
    words = dropout[0] if dropout else None
    # What softmax's gradient takes off each query's: sum over s of weight * d weight, dropped or not. As all
    # gradients in the kernels it lacks the scale of dropout.
    mean = out.astype(gate.dtype) * d_out.astype(gate.dtype)
    mean = jnp.sum(mean / kernels.scale if how.dropped else mean, axis=-1).swapaxes(1, 2)
    like_qkv = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    every = kernels.all_queries
    d_qkv = kernels.call(
        _key_kernel,
        "attention_backward_key",
        grid=kernels.grid,
        in_specs=[
            *(kernels.all_of(0), kernels.part(1), kernels.part(2), kernels.all_rows),
            *(every, every, every, kernels.bias, kernels.frames, kernels.words),
        ],
        out_specs=pl.BlockSpec(
            (None, kernels.block, 3, None, kernels.head_size), lambda i, h, b: (b, i, 0, h, 0)
        ),
        out_shape=like_qkv,
    )(qkv, qkv, qkv, d_out, gate, log_sum, mean, keys_first, frames, words)
    # That of q is written into the same array, where a place was left for it.
    query = kernels.query
    d_qkv, d_gate = kernels.call(
        _query_kernel,
        "attention_backward_query",
        grid=kernels.grid,
        in_specs=[
            *(kernels.part(0), kernels.all_of(1), kernels.all_of(2), kernels.rows),
            *(query, query, query, kernels.bias, kernels.frames, kernels.words, kernels.part(0)),
        ],
        out_specs=[kernels.part(0), query],
        out_shape=[like_qkv, jax.ShapeDtypeStruct(gate.shape, gate.dtype)],
        input_output_aliases={9 if words is None else 10: 0},
    )(qkv, qkv, qkv, d_out, gate, log_sum, mean, queries_first, frames, words, d_qkv)
    return d_qkv, d_gate, _bias_gradient(kernels, qkv, d_out, gate, log_sum, mean, keys_first, frames, words)


def _bias_gradient(
    kernels: _Kernels,
    qkv: Array,
    d_out: Array,
    gate: Array,
    log_sum: Array,
    mean: Array,
    bias: Array,
    frames: Array,
    words: Array | None,
) -> Array:
    """A program makes the gradient of one tile: all along its diagonal of blocks, for a few of the clips."""
    clips = max(n for n in range(1, CLIPS_IN_PROGRAM + 1) if kernels.batch % n == 0)
    size, head_size = kernels.size, kernels.head_size

    def part(part: int) -> pl.BlockSpec:
        return pl.BlockSpec((clips, size, None, None, head_size), lambda d, h, c: (c, 0, part, h, 0))

    queries = pl.BlockSpec((clips, None, size), lambda d, h, c: (c, h, 0))
    tile = (None, None, kernels.block, kernels.block)
    d_bias = kernels.call(
        _diagonal_kernel,
        "attention_backward_bias",
        grid=(bias.shape[1], kernels.heads, kernels.batch // clips),
        in_specs=[
            *(part(0), part(1), part(2)),
            pl.BlockSpec((clips, size, None, head_size), lambda d, h, c: (c, 0, h, 0)),
            *(queries, queries, queries),
            pl.BlockSpec(tile, lambda d, h, c: (h, d, 0, 0)),
            pl.BlockSpec((clips,), lambda d, h, c: (c,)),
            None if words is None else pl.BlockSpec((clips, None, 2), lambda d, h, c: (c, h, 0)),
        ],
        out_specs=pl.BlockSpec((None, *tile), lambda d, h, c: (c, h, d, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((kernels.batch // clips, *bias.shape), bias.dtype),
    )(qkv, qkv, qkv, d_out, gate, log_sum, mean, bias, frames, words)
    return jnp.sum(d_bias, axis=0)


# --- Kernels ------------------------------------------------------------------------------------------------


def _forward_kernel(
    kernels: _Kernels, q_ref, k_ref, v_ref, gate_ref, bias_ref, frames_ref, words_ref, out_ref, log_sum_ref
):
    i, block, frames, words = pl.program_id(0), kernels.block, frames_ref[...], _words_of(words_ref)
    left = frames - i * block  # valid queries from this block on
    q, gate = kernels.load(q_ref, 0, left), kernels.load(gate_ref, 0, left)

    def step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, out = carry  # of the keys so far: [queries], [queries], [queries, K]
        k, v = kernels.load(k_ref, j, frames), kernels.load(v_ref, j, frames)
        bias, valid = bias_ref[i - j + kernels.count - 1], kernels.valid(j, frames)
        scores = kernels.scores(kernels.dot(q, k, (1, 1)), gate[:, None], bias, valid[None, :])
        # Never -inf - -inf: the first block holds a valid key.
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        shrink = jnp.exp2(highest - higher)
        weights = jnp.exp2(scores - higher[:, None])
        total = total * shrink + jnp.sum(weights, axis=1)
        weights = kernels.drop(words, weights, i, j, queries_first=True)
        return higher, total, out * shrink[:, None] + kernels.dot(weights.astype(v.dtype), v, (1, 0))

    start = jnp.full(block, -jnp.inf), jnp.zeros(block), jnp.zeros((block, kernels.head_size))
    highest, total, out = jax.lax.fori_loop(0, kernels.blocks(i, frames), step, start)
    valid = kernels.valid(0, left)
    kernels.store(out_ref, jnp.where(valid[:, None], kernels.scaled(out / total[:, None]), 0), i)
    kernels.store(log_sum_ref, jnp.where(valid, highest + jnp.log2(total), 0), i)


def _query_kernel(
    kernels: _Kernels,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    bias_ref,
    frames_ref,
    words_ref,
    _,
    d_q_ref,
    d_gate_ref,
):
    """d q and d gate of a block of queries: along the keys."""
    i, block, frames, words = pl.program_id(0), kernels.block, frames_ref[...], _words_of(words_ref)
    refs = (q_ref, d_out_ref, gate_ref, log_sum_ref, mean_ref)
    q, d_out, gate, log_sum, mean = (kernels.load(ref, 0, frames - i * block) for ref in refs)

    def step(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        d_q, d_gate, bias_mean, excess = carry  # [queries, K], and three of [queries]
        k, v = kernels.load(k_ref, j, frames), kernels.load(v_ref, j, frames)
        bias, valid = bias_ref[i - j + kernels.count - 1], kernels.valid(j, frames)
        scores = kernels.scores(kernels.dot(q, k, (1, 1)), gate[:, None], bias, valid[None, :])
        weights = jnp.exp2(scores - log_sum[:, None])
        d_weights = kernels.drop(words, kernels.dot(d_out, v, (1, 1)), i, j, queries_first=True)
        d_scores = weights * (d_weights - mean[:, None])
        d_gate = d_gate + jnp.sum(d_scores * bias, axis=1)
        bias_mean = bias_mean + jnp.sum(weights * bias, axis=1)
        d_q = d_q + kernels.dot(d_scores.astype(k.dtype), k, (1, 0))
        return d_q, d_gate, bias_mean, excess + jnp.sum(d_scores, axis=1)

    start = jnp.zeros((block, kernels.head_size)), *(jnp.zeros(block) for _ in range(3))
    d_q, d_gate, bias_mean, excess = jax.lax.fori_loop(0, kernels.blocks(i, frames), step, start)
    kernels.store(d_q_ref, kernels.scaled(d_q / math.sqrt(kernels.head_size)), i)
    # The scores' gradients of a query sum to 0, but for the rounding of `mean`; what that does to d gate,
    # whose terms all but cancel, is taken off again.
    kernels.store(d_gate_ref, kernels.scaled(d_gate - bias_mean * excess), i)


def _transposed_tile(
    kernels: _Kernels, q, k, v, d_out, gate, log_sum, mean, bias, valid_keys, words, i, j
) -> tuple[Array, Array]:
    """A tile of attention weights after dropout, and of the scores' gradient, keys as rows."""
    scores = kernels.scores(kernels.dot(k, q, (1, 1)), gate[None, :], bias, valid_keys[:, None])
    weights = jnp.exp2(scores - log_sum[None, :])
    d_weights = kernels.drop(words, kernels.dot(v, d_out, (1, 1)), i, j, queries_first=False)
    d_scores = weights * (d_weights - mean[None, :])
    return kernels.drop(words, weights, i, j, queries_first=False), d_scores


def _key_kernel(
    kernels: _Kernels,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    bias_ref,
    frames_ref,
    words_ref,
    d_qkv_ref,
):
    """d k and d v of a block of keys: along the queries."""
    j, block, frames, words = pl.program_id(0), kernels.block, frames_ref[...], _words_of(words_ref)
    k, v = (kernels.load(ref, 0, frames - j * block) for ref in (k_ref, v_ref))
    refs = (d_out_ref, gate_ref, log_sum_ref, mean_ref)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_k, d_v = carry  # [keys, K]
        q = kernels.load(q_ref, i, frames)
        d_out, gate, log_sum, mean = (kernels.load(ref, i, frames) for ref in refs)
        bias, valid = bias_ref[i - j + kernels.count - 1], kernels.valid(j, frames)
        weights, d_scores = _transposed_tile(
            kernels, q, k, v, d_out, gate, log_sum, mean, bias, valid, words, i, j
        )
        d_k = d_k + kernels.dot(d_scores.astype(q.dtype), q, (1, 0))
        return d_k, d_v + kernels.dot(weights.astype(d_out.dtype), d_out, (1, 0))

    start = jnp.zeros((block, kernels.head_size)), jnp.zeros((block, kernels.head_size))
    d_k, d_v = jax.lax.fori_loop(0, kernels.blocks(j, frames), step, start)
    kernels.store(d_qkv_ref.at[:, jnp.int32(1), :], kernels.scaled(d_k / math.sqrt(kernels.head_size)), j)
    kernels.store(d_qkv_ref.at[:, jnp.int32(2), :], kernels.scaled(d_v), j)


def _diagonal_kernel(
    kernels: _Kernels,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    gate_ref,
    log_sum_ref,
    mean_ref,
    bias_ref,
    frames_ref,
    words_ref,
    d_bias_ref,
):
    """The gradient of one tile of the bias, summed along its diagonal of blocks, and over some clips."""
    diagonal = pl.program_id(0) - (kernels.count - 1)
    bias = bias_ref[...]

    def add_clip(clip: Array, total: Array) -> Array:
        frames, words = frames_ref[clip], _words_of(words_ref, clip)
        blocks = pl.cdiv(frames, kernels.block)

        def step(j: Array, total: Array) -> Array:
            i = j + diagonal
            k, v = (kernels.load(ref, j, frames, clip) for ref in (k_ref, v_ref))
            refs = (q_ref, d_out_ref, gate_ref, log_sum_ref, mean_ref)
            q, d_out, gate, log_sum, mean = (kernels.load(ref, i, frames, clip) for ref in refs)
            valid = kernels.valid(j, frames)
            _, d_scores = _transposed_tile(
                kernels, q, k, v, d_out, gate, log_sum, mean, bias, valid, words, i, j
            )
            return total + gate[None, :] * d_scores

        first, end = jnp.maximum(0, -diagonal), jnp.minimum(blocks, blocks - diagonal)
        return jax.lax.fori_loop(first, end, step, total)

    d_bias = jax.lax.fori_loop(0, q_ref.shape[0], add_clip, jnp.zeros_like(bias))
    d_bias_ref[...] = kernels.scaled(d_bias)

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
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flax_wavlm.ops.attention.tiles import tiles
from flax_wavlm.ops.attention.weight_dropout import random_words, stays
from flax_wavlm.ops.dropout import STEPS
from flax_wavlm.ops.partition import shard_batch

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
        frames: [B] int32, each row's valid frames; of a row without any the first is taken.
        rate: the share of the attention weights that is dropped, as by `dropout.apply`; none without a seed.
        seed: [2] uint32, random; `kept` says what it makes.
        exact: products of float32 are not rounded to fewer bits.
        interpret: run on a CPU, for tests.
    Returns: [B, T, H, K]; 0 beyond a row's frames. Differentiable in qkv, qkv_bias, gate and bias.
    """
    batch, time, _, heads, head_size = qkv.shape
    frames = jnp.clip(frames, 1, time).astype(jnp.int32)
    dropped = 0 if seed is None else round(rate * STEPS)
    if seed is None or dropped == 0:
        return _attention(_How(exact, interpret), qkv, qkv_bias, gate, *bias, frames)
    if dropped == STEPS:
        return jnp.zeros((batch, time, heads, head_size), qkv.dtype)
    words = random_words(seed, batch, heads)
    return _attention(_How(exact, interpret, dropped), qkv, qkv_bias, gate, *bias, frames, words)


class _How(NamedTuple):
    """What is asked of a call, before any array."""

    exact: bool
    interpret: bool
    dropped: int = 0  # so many of STEPS attention weights


# --- Calls --------------------------------------------------------------------------------------------------

# Where the biases of q, k and v are, so that no pass over memory adds them:
#   q's makes, of each key, a number that is added to all its scores: the key's `offset`;
#   k's adds the same to all scores of a query, of which softmax knows nothing: it is nowhere;
#   v's is added to the output, as the attention weights sum to 1, or to what is left of that by dropout.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: _How, *arrays: Array) -> Array:
    return _attention_forward(how, *arrays)[0]


def _attention_forward(
    how: _How, *arrays: Array
) -> tuple[Array, tuple[tuple[Array, ...], tuple[Array, ...]]]:
    made = shard_batch(functools.partial(_forward, how), whole=(1, 3, 4))(*arrays)
    return made[0], (arrays, made)


def _attention_backward(
    how: _How, saved: tuple[tuple[Array, ...], tuple[Array, ...]], d_out: Array
) -> tuple[Array | None, ...]:
    given, made = saved
    function = shard_batch(functools.partial(_backward, how), whole=(1, 3, 4), summed=(1, 3))
    gradients = function(*given[:6], *made, d_out, *given[6:])
    return *gradients, *[None] * (len(given) - 4)


_attention.defvjp(_attention_forward, _attention_backward)


class _Kernels:
    """What all kernels of a call know beforehand, and what a program of the grid is given of an array.

    The grid is (block of time, head, clip), the first of them running fastest.
    """

    def __init__(self, how: _How, qkv: Array, queries_first: Array):
        self.how = how
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

    def scores(self, product: Array, gate: Array, bias: Array, offset: Array) -> Array:
        """A tile of scores, as powers of 2."""
        return product * (LOG2_E / math.sqrt(self.head_size)) + offset + (gate * LOG2_E) * bias

    # Of dropout the kernels do the zeros. The scale is taken out of the sums: `scaled` multiplies these.

    def drop(
        self, words: tuple[Array, Array] | None, x: Array, first: tuple[Any, Any], *, queries_first: bool
    ) -> Array:
        """A tile from this query and this key on, 0 where the attention weight is dropped."""
        if words is None:
            return x
        queries, keys = x.shape if queries_first else x.shape[::-1]
        query, key = first[0] + jnp.arange(queries), first[1] + jnp.arange(keys)
        pair = (query[:, None], key[None, :]) if queries_first else (query[None, :], key[:, None])
        return jnp.where(stays(*words, *pair, self.how.dropped), x, 0)

    def scaled(self, x: Array) -> Array:
        return x * self.scale if self.how.dropped else x


def _words_of(ref: Any, *clip: Array) -> tuple[Array, Array] | None:
    """A clip's and head's two words in a kernel; None without dropout."""
    return None if ref is None else (ref[(*clip, 0)], ref[(*clip, 1)])


def _forward(
    how: _How,
    qkv: Array,
    qkv_bias: Array,
    gate: Array,
    _: Array,
    bias: Array,
    frames: Array,
    *dropout: Array,
) -> tuple[Array, Array, Array]:
    """The output [B, T, H, K]; of each query the logarithm to base 2 of its sum of exponentials [B, H, T];
    of each key its offset [B, H, T], as a power of 2.

    `dropout`: the words of every clip and head, or nothing.
    """
    kernels = _Kernels(how, qkv, bias)
    words = dropout[0] if dropout else None
    offset = jnp.sum(qkv[:, :, 1].astype(gate.dtype) * qkv_bias[0], axis=-1).swapaxes(1, 2)
    offset = offset * (LOG2_E / math.sqrt(kernels.head_size))
    offset = jnp.where(jnp.arange(kernels.time) < frames[:, None, None], offset, -jnp.inf)
    offset = jnp.pad(offset, ((0, 0), (0, 0), (0, kernels.size - kernels.time)), constant_values=-jnp.inf)
    out, log_sum = kernels.call(
        _forward_kernel,
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
    """What both kernels that go by keys are given."""

    qkv: Array
    d_out: Array  # [B, T, H, K]
    gate: Array  # this and what follows is of each query [B, H, T]
    log_sum: Array
    mean: Array  # the sum over keys of weight * d weight: what the gradient of softmax takes off
    added: Array | None  # with dropout: what v's bias adds to all d weights (else it cancels)
    offset: Array  # of each key [B, H, N]
    frames: Array
    words: Array | None


def _backward(
    how: _How,
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
    kernels = _Kernels(how, qkv, queries_first)
    v_bias = qkv_bias[2]

    def by_query(x: Array) -> Array:  # [B, T, H, K] -> [B, H, T]
        return jnp.sum(x * d_out.astype(x.dtype), axis=-1).swapaxes(1, 2)

    # As all gradients in the kernels these lack the scale of dropout.
    words, added, mean = None, None, by_query(out.astype(gate.dtype) - v_bias)
    if dropout:
        words, added = dropout[0], by_query(jnp.broadcast_to(v_bias, out.shape))
        mean = by_query(out.astype(gate.dtype)) / kernels.scale
    query, of_query = kernels.query, jax.ShapeDtypeStruct(gate.shape, gate.dtype)
    d_qkv, d_gate, mean, d_q_bias = kernels.call(
        _query_kernel,
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
    kernels: _Kernels, operands: _Operands, d_qkv: Array, q_bias: Array, bias: Array
) -> tuple[Array, Array]:
    """`d_qkv` with the gradients of k and v in their places; those of v summed over blocks of keys."""
    qkv, d_out, *rest = operands
    every = kernels.all_queries
    inputs = (qkv, qkv, qkv, d_out, *rest, q_bias, bias, d_qkv)
    return kernels.call(
        _key_kernel,
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


def _bias_gradient(kernels: _Kernels, operands: _Operands, bias: Array) -> Array:
    """A program makes the gradient of one tile: all along its diagonal of blocks, for a few of the clips."""
    clips = max(n for n in range(1, CLIPS_IN_PROGRAM + 1) if kernels.batch % n == 0)
    size, head_size = kernels.size, kernels.head_size

    def part(part: int) -> pl.BlockSpec:
        return pl.BlockSpec((clips, size, None, None, head_size), lambda d, h, c: (c, 0, part, h, 0))

    qkv, d_out, *rest = operands
    vector = pl.BlockSpec((clips, None, size), lambda d, h, c: (c, h, 0))
    tile = (None, None, kernels.block, kernels.block)
    d_bias = kernels.call(
        _diagonal_kernel,
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


# --- Kernels ------------------------------------------------------------------------------------------------


def _forward_kernel(
    kernels: _Kernels,
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


def _query_kernel(
    kernels: _Kernels,
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
    kernels: _Kernels,
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


def _key_kernel(
    kernels: _Kernels,
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


def _diagonal_kernel(
    kernels: _Kernels,
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

"""WavLM's attention with a gated relative position bias (Chen et al. 2022, section III-B), in plain jnp.

    out[t] = softmax over s of (q[t] . k[s] / sqrt(K) + gate[t] * table[s - t]) . v[s]

for each clip and head, over the clip's valid keys s.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_wavlm.ops.dropout import draw_keep_mask, drop

Array = jax.Array


class Plain(NamedTuple):
    """The settings of plain attention: the rate of dropout, and the precision of float32 products."""

    rate: float
    precision: str

    def product(self, axes: str, a: Array, b: Array) -> Array:
        """The products for each clip and head, accumulated in float32 (or wider)."""
        wide = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.einsum(axes, a, b, precision=self.precision, preferred_element_type=wide)

    def drop(self, weights: Array, keep_mask: Array | None) -> Array:
        return drop(weights, keep_mask, self.rate)

    def weights(self, q: Array, k: Array, gate: Array, bias: Array, mask: Array | None) -> Array:
        """The attention weights [B, H, T, T], of q (already scaled) and k [B, H, T, K]."""
        scores = self.product("bhtk,bhsk->bhts", q, k)
        scores = scores + (gate[..., None] * bias + (0 if mask is None else mask))
        return jax.nn.softmax(scores)

    def mean(self, weights: Array, v: Array, keep_mask: Array | None) -> Array:
        """The weighted mean [B, H, T, K] of v [B, H, T, K]."""
        out = self.product("bhts,bhsk->bhtk", self.drop(weights, keep_mask).astype(v.dtype), v)
        return out.astype(v.dtype)


class Operands(NamedTuple):
    """The arrays of plain attention, heads before frames."""

    q: Array  # [B, H, T, K], divided by sqrt(K)
    k: Array
    v: Array
    gate: Array  # [B, H, T]
    bias: Array  # [H, T, T]
    mask: Array | None  # [B, 1, 1, T], 0 or a large negative number, to be added to the scores
    keep_mask: Array | None  # [B, H, T, T] bool, the attention weights that stay


def operands(
    q: Array,
    k: Array,
    v: Array,
    gate: Array,
    bias: Array,
    valid: Array | None,
    *,
    rate: float,
    key: Array | None,
) -> Operands:
    """From the arguments of `attention`."""
    time = q.shape[1]
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q / math.sqrt(q.shape[-1]), k, v))
    mask = None
    if valid is not None:
        mask = jnp.where(valid, 0, jnp.finfo(gate.dtype).min).astype(gate.dtype)[:, None, None, :]
    keep_mask = None if key is None else draw_keep_mask(key, (*q.shape[:2], time, time), rate)
    return Operands(q, k, v, gate, bias, mask, keep_mask)


def attention(
    q: Array,
    k: Array,
    v: Array,
    gate: Array,
    bias: Array,
    valid: Array | None,
    *,
    rate: float = 0.0,
    key: Array | None = None,
    precision: str = "highest",
) -> Array:
    """Attention with the bias as a whole.

    Args:
        q, k, v: [B, T, H, K].
        gate: [B, H, T] float32.
        bias: [H, T, T] float32, see `toeplitz`.
        valid: [B, T] bool, the keys that are attended to; None: all. In a row without any, queries attend to
            all keys alike.
        rate, key: with a key, a share `rate` of the attention weights is dropped.
        precision: of float32 products.
    Returns: [B, T, H, K].
    """
    plain = Plain(rate, precision)
    x = operands(q, k, v, gate, bias, valid, rate=rate, key=key)
    weights = plain.weights(x.q, x.k, x.gate, x.bias, x.mask)
    return jnp.swapaxes(plain.mean(weights, x.v, x.keep_mask), 1, 2)


def toeplitz(table: Array) -> Array:
    """The position bias [H, T, T] of every query t and key s, from the table [H, 2T - 1] by distance."""
    time = (table.shape[1] + 1) // 2
    # Row t of a Toeplitz matrix is a window of the table: distance s - t stands at T - 1 + s - t.
    # The index is computed where it is used: as a constant, that of a minute would be gigabytes to compile.
    query, key = (jax.lax.broadcasted_iota(jnp.int32, (time, time), axis) for axis in (0, 1))
    return table.at[:, key - query + time - 1].get(mode="promise_in_bounds")

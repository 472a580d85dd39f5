"""TODO."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_wavlm.ops.dropout import apply, kept

Array = jax.Array


def xla(
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
    """Plain operations. q, k, v [B, T, H, K], gate [B, H, T], bias [H, T, T], valid [B, T] -> [B, T, H, K].

    With a key, a share `rate` of the attention weights is dropped. All queries of a row without valid keys
    attend to all alike. The precision is that of float32 products, which a gradient of its own does not take
    from the context.
    """
    time = q.shape[1]
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q / math.sqrt(q.shape[-1]), k, v))  # [B, H, T, K]
    mask = None
    if valid is not None:
        mask = jnp.where(valid, 0, jnp.finfo(gate.dtype).min).astype(gate.dtype)[:, None, None, :]
    keep = None if key is None else kept(key, (*q.shape[:2], time, time), rate)
    return jnp.swapaxes(_weighted_mean(_Plainly(rate, precision), q, k, v, gate, bias, mask, keep), 1, 2)


class _Plainly(NamedTuple):
    """What is known before any array, for the plain operations."""

    rate: float
    precision: str

    def product(self, axes: str, a: Array, b: Array) -> Array:
        """The products for each clip and head, accumulated in float32 (or wider)."""
        wide = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.einsum(axes, a, b, precision=self.precision, preferred_element_type=wide)

    def drop(self, weights: Array, keep: Array | None) -> Array:
        return apply(weights, keep, self.rate)


# Its own gradient, because of what the automatic one does to memory and to the layout of the products. This
# one keeps one array of weights, and its products need no transposed copies of [B, H, T, T].


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_mean(how: _Plainly, *arrays: Array | None) -> Array:
    return _weighted_mean_forward(how, *arrays)[0]


def _weighted_mean_forward(how, q, k, v, gate, bias, mask, keep):
    scores = how.product("bhtk,bhsk->bhts", q, k)
    scores = scores + (gate[..., None] * bias + (0 if mask is None else mask))
    weights = jax.nn.softmax(scores)
    out = how.product("bhts,bhsk->bhtk", how.drop(weights, keep).astype(v.dtype), v)
    return out.astype(v.dtype), (q, k, v, gate, bias, weights, keep)


def _weighted_mean_backward(how, saved, d_out):
    q, k, v, gate, bias, weights, keep = saved
    d_weights = how.drop(how.product("bhtk,bhsk->bhts", d_out, v), keep)
    d_scores = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
    d_v = how.product("bhts,bhtk->bhsk", how.drop(weights, keep).astype(d_out.dtype), d_out)
    d_gate, d_bias = _bias_gradients(gate, bias, d_scores)
    d_scores = d_scores.astype(q.dtype)
    d_q = how.product("bhts,bhsk->bhtk", d_scores, k)
    d_k = how.product("bhts,bhtk->bhsk", d_scores, q)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), d_gate, d_bias, None, None


def _bias_gradients(gate: Array, bias: Array, d_scores: Array) -> tuple[Array, Array]:
    """d gate [B, H, T] and d bias [H, T, T], from [B, H, T], [H, T, T] and [B, H, T, T].

    On a CPU clip by clip, since what XLA makes of both sums over whole batches is slow there. Not where clips
    may lie on several devices, which would have to exchange them.
    """
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        return _bias_gradients_by_clips(gate, bias, d_scores)
    return jnp.sum(d_scores * bias, axis=-1), jnp.sum(d_scores * gate[..., None], axis=0)


def _bias_gradients_by_clips(gate: Array, bias: Array, d_scores: Array) -> tuple[Array, Array]:
    def add(d_bias: Array, clip: tuple[Array, Array]) -> tuple[Array, Array]:
        gate, d_scores = clip  # [H, T], [H, T, T]
        return d_bias + gate[..., None] * d_scores, jnp.sum(d_scores * bias, axis=-1)

    d_bias, d_gate = jax.lax.scan(add, jnp.zeros_like(bias), (gate, d_scores))
    return d_gate, d_bias


_weighted_mean.defvjp(_weighted_mean_forward, _weighted_mean_backward)

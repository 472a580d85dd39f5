"""Plain attention with a custom VJP: any platform and dtype, with attention dropout. Holds [B, H, T, T].

The automatic gradient keeps several arrays of that size, and transposes copies of them for its products. This
one keeps the attention weights alone, and its products need no copies.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from flax_wavlm.ops.attention.reference import Operands, Plain, operands

Array = jax.Array


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
    """`flax_wavlm.ops.attention.reference.attention`, with the same arguments."""
    x = operands(q, k, v, gate, bias, valid, rate=rate, key=key)
    return jnp.swapaxes(_attention(Plain(rate, precision), *x), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plain: Plain, *arrays: Array | None) -> Array:
    return _forward(plain, *arrays)[0]


def _forward(plain: Plain, *arrays: Array | None) -> tuple[Array, tuple[Operands, Array]]:
    x = Operands(*arrays)  # type: ignore[arg-type]  # the two that may be None are so declared there
    weights = plain.weights(x.q, x.k, x.gate, x.bias, x.mask)
    return plain.mean(weights, x.v, x.keep_mask), (x._replace(mask=None), weights)


def _backward(plain: Plain, residuals: tuple[Operands, Array], d_out: Array) -> tuple[Array | None, ...]:
    x, weights = residuals
    d_weights = plain.drop(plain.product("bhtk,bhsk->bhts", d_out, x.v), x.keep_mask)
    d_scores = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
    dropped = plain.drop(weights, x.keep_mask).astype(d_out.dtype)
    d_v = plain.product("bhts,bhtk->bhsk", dropped, d_out)
    d_gate, d_bias = _bias_gradients(x.gate, x.bias, d_scores)
    d_scores = d_scores.astype(x.q.dtype)
    d_q = plain.product("bhts,bhsk->bhtk", d_scores, x.k)
    d_k = plain.product("bhts,bhtk->bhsk", d_scores, x.q)
    return d_q.astype(x.q.dtype), d_k.astype(x.k.dtype), d_v.astype(x.v.dtype), d_gate, d_bias, None, None


_attention.defvjp(_forward, _backward)


def _bias_gradients(gate: Array, bias: Array, d_scores: Array) -> tuple[Array, Array]:
    """d gate [B, H, T] and d bias [H, T, T], from [B, H, T], [H, T, T] and [B, H, T, T].

    XLA is slow at both sums over a whole batch on a CPU, so there they go clip by clip. With several devices
    they do not, as clips would have to be exchanged.
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

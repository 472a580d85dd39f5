"""Layer norms, and what they do in the same pass, beside their definitions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.kernels import normalised, vjp_equal

from flax_wavlm.ops.gelu.api import gelu
from flax_wavlm.ops.norm.api import layer_norm, norm_gelu, residual_norm


def test_layer_norm() -> None:
    random = np.random.default_rng(0)
    x, scale, bias = 3 + random.standard_normal((2, 7, 12)), *random.standard_normal((2, 12))
    vjp_equal(lambda *arrays: layer_norm(*arrays, 1e-5, jnp.float64), normalised, x, scale, bias)


@pytest.mark.parametrize("with_bias", [False, True])
def test_residual_norm(with_bias: bool) -> None:
    """The sum and its norm, both with gradients."""
    random = np.random.default_rng(0)
    (x, delta), vectors = random.standard_normal((2, 2, 7, 12)), random.standard_normal((2 + with_bias, 12))

    def ours(
        x: jax.Array, delta: jax.Array, scale: jax.Array, bias: jax.Array, *delta_bias: Any
    ) -> jax.Array:
        both = residual_norm(x, (delta, *delta_bias), scale, bias, 1e-5, jnp.float64)
        return jnp.concatenate(both, axis=-1)

    def definition(
        x: jax.Array, delta: jax.Array, scale: jax.Array, bias: jax.Array, delta_bias: Any = 0
    ) -> jax.Array:
        total = x + delta + delta_bias
        return jnp.concatenate([total, normalised(total, scale, bias)], axis=-1)

    vjp_equal(ours, definition, x, delta, *vectors)


def test_residual_norm_keeps_types() -> None:
    """A stream in float32, a branch and its norm in bfloat16; d delta is d x, rounded, all else is not."""
    x, delta, ones = jnp.ones((3, 8)), jnp.arange(24, dtype=jnp.bfloat16).reshape(3, 8), jnp.ones(8)
    delta_bias = jnp.full(8, 0.3)  # another number in bfloat16
    branch = delta, delta_bias
    y, gradient = jax.vjp(lambda *a: residual_norm(*a, 1e-5, jnp.bfloat16), x, branch, ones, ones)
    dx, (d_delta, d_delta_bias), *others = gradient(y)
    types = [array.dtype for array in (*y, dx, d_delta, d_delta_bias, *others)]
    assert types == ["float32", "bfloat16", "float32", "bfloat16", *["float32"] * 3]
    np.testing.assert_array_equal(y[0], x + (delta.astype(jnp.float32) + delta_bias))
    np.testing.assert_array_equal(dx.astype(jnp.bfloat16), d_delta)
    np.testing.assert_allclose(d_delta_bias, dx.sum(0), rtol=1e-6)


def test_norms_under_vmap() -> None:
    random = np.random.default_rng(0)
    x, delta, scale = (jnp.asarray(random.standard_normal(shape)) for shape in [(4, 3, 8), (4, 3, 8), (8,)])

    def loss(x: jax.Array, delta: jax.Array, delta_bias: jax.Array) -> jax.Array:
        total, y = residual_norm(x, (delta, delta_bias), scale, scale, 1e-5, jnp.float32)
        return jnp.sum(jnp.square(total) * y)

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    expected = [gradient(*pair, scale) for pair in zip(x, delta, strict=True)]
    vmapped = jax.vmap(gradient, in_axes=(0, 0, None))(x, delta, scale)
    for got, rows in zip(vmapped, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(got, jnp.stack(rows), rtol=1e-5, atol=1e-6)


def test_norm_gelu() -> None:
    random = np.random.default_rng(0)
    x, scale, bias = 3 + random.standard_normal((2, 7, 12)), *random.standard_normal((2, 12))

    def definition(*arrays: jax.Array) -> jax.Array:
        return jax.nn.gelu(normalised(*arrays), approximate=False)

    vjp_equal(lambda *arrays: norm_gelu(*arrays, 1e-5, jnp.float64), definition, x, scale, bias)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm_gelu_is_both_after_another(dtype: str) -> None:
    """To the last bit, gradients too: the norm in float32, then the activation, then rounded."""
    random = np.random.default_rng(0)
    x = jnp.asarray(3 + random.standard_normal((2, 7, 96)), dtype)
    scale, bias = jnp.asarray(random.standard_normal((2, 96)), jnp.float32)

    def after_another(*arrays: jax.Array) -> jax.Array:
        return gelu(layer_norm(*arrays, 1e-5, jnp.float32)).astype(dtype)

    def at_once(*arrays: jax.Array) -> jax.Array:
        return norm_gelu(*arrays, 1e-5, jnp.dtype(dtype))

    @functools.partial(jax.jit, static_argnums=0)
    def both(function: Callable, *arrays: jax.Array) -> list[jax.Array]:
        y, gradient = jax.vjp(function, *arrays)
        return [y, *gradient(jnp.ones_like(y))]

    for a, b in zip(both(at_once, x, scale, bias), both(after_another, x, scale, bias), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_rounds_its_result_alone(dtype: str) -> None:
    """Also of what comes in rounded: mean and variance in float32. The gradient has the type of x."""
    random = np.random.default_rng(0)
    x = jnp.asarray(5 + random.standard_normal((40, 512)), dtype)
    scale, bias = jnp.asarray(random.standard_normal((2, 512)), jnp.float32)
    y, gradient = jax.vjp(lambda *arrays: layer_norm(*arrays, 1e-5, jnp.dtype(dtype)), x, scale, bias)
    assert y.dtype == dtype
    assert [d.dtype for d in gradient(y)] == [dtype, "float32", "float32"]
    expected = torch.nn.functional.layer_norm(
        torch.tensor(np.asarray(x, np.float64)),
        (512,),
        torch.tensor(np.asarray(scale, np.float64)),
        torch.tensor(np.asarray(bias, np.float64)),
        1e-5,
    )
    tolerance = {"float32": 1e-5, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=tolerance, atol=tolerance)

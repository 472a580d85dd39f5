"""Operations with gradients of their own against their definitions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flax_wavlm.ops import positional_conv
from flax_wavlm.ops.dense import add_bias, product
from flax_wavlm.ops.first_conv.api import conv_norm_gelu
from flax_wavlm.ops.gates.api import gates
from flax_wavlm.ops.gelu import gelu
from flax_wavlm.ops.norm.api import layer_norm, norm_gelu, residual_norm
from flax_wavlm.ops.positional_conv import BLOCK, grouped_conv


def vjp_equal(ours: Callable, definition: Callable, *arrays: Any, rtol: float = 1e-11) -> None:
    """Values and all gradients, in float64."""
    with jax.enable_x64(True):
        arrays = tuple(jnp.asarray(array) for array in arrays)
        (y, gradient), (expected_y, expected) = jax.vjp(ours, *arrays), jax.vjp(definition, *arrays)
        dy = jax.random.normal(jax.random.key(0), y.shape, y.dtype)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, expected_y, rtol=rtol, atol=1e-13)
        for a, b in zip(gradient(dy), expected(dy), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_gelu(dtype: str, tolerance: float) -> None:
    """Values and slope against torch's in float64: in bfloat16 nothing but the result is rounded."""
    x = jnp.linspace(-9, 9, 2001).astype(dtype)
    exact = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    expected = torch.nn.functional.gelu(exact)
    expected.sum().backward()
    y, slope = gelu(x), jax.vmap(jax.grad(gelu))(x)
    assert slope.dtype == y.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), expected.detach(), rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(np.asarray(slope, np.float64), exact.grad, rtol=tolerance, atol=1e-6)


def normalised(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    normal = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * scale + bias


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


def test_conv_norm_gelu() -> None:
    random = np.random.default_rng(0)
    audio, taps = random.standard_normal((2, 50)), random.standard_normal((10, 8))
    vectors = random.standard_normal((3, 8))

    def definition(audio: jax.Array, taps: jax.Array, conv_bias: jax.Array, *norm: jax.Array) -> jax.Array:
        windows = jnp.stack([audio[:, 3 * t : 3 * t + 10] for t in range(14)], axis=1)
        return jax.nn.gelu(normalised(windows @ taps + conv_bias, *norm), approximate=False)

    def ours(*arrays: jax.Array) -> jax.Array:
        return conv_norm_gelu(*arrays, 3, 1e-5, jnp.float64)

    vjp_equal(ours, definition, audio, taps, *vectors)


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


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return add_bias(product(x, kernel), bias)


@pytest.mark.parametrize("outputs", [(5,), (30,), (3, 10)])  # narrower than the input, and wider
def test_dense(outputs: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((2, 7, 12)), random.standard_normal((12, *outputs))
    letters = "op"[: len(outputs)]
    vjp_equal(
        dense,
        lambda x, kernel, bias: jnp.einsum(f"bti,i{letters}->bt{letters}", x, kernel) + bias,
        *(x, kernel, random.standard_normal(outputs)),
    )


def test_bias_gradient_is_summed_in_float32() -> None:
    """Thousands of rows in bfloat16, whose own sum stops growing at 256."""
    x, kernel, bias = jnp.ones((5000, 1), jnp.bfloat16), jnp.ones((1, 3), jnp.bfloat16), jnp.zeros(3)
    _, gradient = jax.vjp(dense, x, kernel, bias)
    np.testing.assert_array_equal(gradient(jnp.ones((5000, 3), jnp.bfloat16))[2], 5000)


def automatic_gates(x: jax.Array, kernel: jax.Array, bias: jax.Array, const: jax.Array) -> jax.Array:
    """As `WavLMAttention` has them: [B, H, T]. The 8 outputs in the type of x, the rest in that of const."""
    by_head = x.reshape(*x.shape[:2], len(const), -1).swapaxes(1, 2)
    groups = (by_head @ kernel + bias.astype(x.dtype)).astype(const.dtype)
    a, b = jnp.moveaxis(jax.nn.sigmoid(groups.reshape(*groups.shape[:3], 2, 4).sum(-1)), -1, 0)
    return a * (b * const[:, None] - 1) + 2


def gate_arrays(dtype: str) -> tuple[jax.Array, ...]:
    """x [2, 40, 3 * 5], kernel, bias, const."""
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((2, 40, 15)), 0.3 * random.standard_normal((5, 8))
    bias, const = random.standard_normal(8), random.standard_normal(3)
    return *(jnp.asarray(a, dtype) for a in (x, kernel)), *(
        jnp.asarray(a, jnp.float32) for a in (bias, const)
    )


def test_gates() -> None:
    """The gates, x itself, and the gradients of both."""

    def results(x: jax.Array, gates: jax.Array) -> jax.Array:
        return jnp.concatenate([x.ravel(), gates.ravel()])

    vjp_equal(
        lambda *arrays: results(*gates(*arrays)),
        lambda x, *parameters: results(x, automatic_gates(x, *parameters)),
        *(np.asarray(array, np.float64) for array in gate_arrays("float32")),
    )


def test_gates_in_bfloat16() -> None:
    """All types are kept, and nothing is further from its value in float32 than the automatic gradient's."""
    arrays = gate_arrays("bfloat16")
    d_x, d_gate = jax.random.normal(jax.random.key(0), arrays[0].shape, "bfloat16"), jnp.ones((2, 3, 40))

    def definition(x: jax.Array, *parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x, automatic_gates(x, *parameters)

    def results(function: Callable, *arrays: jax.Array) -> list[jax.Array]:
        (x, gates), gradient = jax.vjp(function, *arrays)
        return [gates, *gradient((d_x.astype(x.dtype), d_gate))]

    exact = results(definition, *(array.astype(jnp.float32) for array in arrays))
    for ours, automatic, value in zip(
        results(gates, *arrays), results(definition, *arrays), exact, strict=True
    ):
        assert ours.dtype == automatic.dtype
        error, allowed = (
            np.linalg.norm(np.asarray(array, np.float32) - value) for array in (ours, automatic)
        )
        assert error <= 1.001 * allowed


def test_gates_under_vmap() -> None:
    x, *parameters = gate_arrays("float32")
    xs = jnp.stack([x, -x, 2 * x])

    def loss(x: jax.Array, *parameters: jax.Array) -> jax.Array:
        x, gate = gates(x, *parameters)
        return jnp.sum(jnp.square(x)) + jnp.sum(jnp.square(gate))

    gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
    expected = [gradient(x, *parameters) for x in xs]
    got = jax.vmap(gradient, in_axes=(0, None, None, None))(xs, *parameters)
    for a, rows in zip(got, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(a, jnp.stack(rows), rtol=1e-5, atol=1e-5)


def automatic_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """torch's conv1d(padding=taps // 2, groups), without the last frame of an even kernel."""
    taps = len(kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(taps // 2, (taps - 1) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[2] // kernel.shape[1],
    )


@pytest.mark.parametrize("form", ["of a CPU", "in blocks"])
@pytest.mark.parametrize("taps", [8, 5, 40])  # even, odd, and longer than the clip and than a block
@pytest.mark.parametrize("time", [13, 2 * BLOCK, 33])
def test_grouped_conv(form: str, taps: int, time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms, also where the frames are not a multiple of a block."""
    if form == "in blocks":
        monkeypatch.setattr(
            positional_conv, "by_platform", lambda _, f, settings, *arrays: f(*settings, *arrays)
        )
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((2, time, 12)), random.standard_normal((taps, 4, 12))
    vjp_equal(grouped_conv, automatic_conv, x, kernel)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_grouped_conv_takes_its_form_by_the_platform(platform: str) -> None:
    x, kernel = jnp.ones((2, 20, 12)), jnp.ones((5, 4, 12))
    gradient = jax.grad(lambda x, kernel: grouped_conv(x, kernel).sum(), argnums=(0, 1))
    lowered = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in lowered) == (platform != "cuda")

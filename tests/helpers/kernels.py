"""What the tests of kernels share: random arrays, and how close a kernel comes to its definition."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from flax_wavlm.ops.platform import compiling_for_cuda

TRITON = "__gpu$xla.gpu.triton"


def normal(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def equal(got: Any, expected: Any) -> None:
    """In types too; a result in bfloat16 to its last bit."""
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        tolerance = 1e-5 if a.dtype == jnp.float32 else 2**-7
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max() / 4)


def triton_kernels(function: Callable[..., Any], *arrays: Any, platform: str = "cuda") -> int:
    """How many Triton kernels the function has as a program for the platform; it needs no GPU."""
    with compiling_for_cuda():
        exported = jax.export.export(
            jax.jit(function),
            platforms=[platform],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(TRITON)],
        )(*arrays)
    return exported.mlir_module().count(f"@{TRITON}")


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


def normalised(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer norm by its definition."""
    normal = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * scale + bias

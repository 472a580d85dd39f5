"""What the tests of kernels share: random arrays, and how close a kernel comes to its definition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def equal(got: Any, expected: Any) -> None:
    """In types too; a result in bfloat16 to its last bit."""
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        tolerance = 1e-5 if a.dtype == jnp.float32 else 2**-7
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max() / 4)

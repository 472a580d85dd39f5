"""Dense maps: the product and the bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernels import vjp_equal

from flax_wavlm.ops.dense.api import add_bias, product


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

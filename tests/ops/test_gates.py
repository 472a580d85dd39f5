"""The gates of the position bias, and their gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from helpers.kernels import vjp_equal

from flax_wavlm.ops.gates.api import gates


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

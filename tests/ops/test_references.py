"""Every operation, as users run it, equals its reference in value and gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernels import normal

from flax_wavlm.ops.attention.api import prepare
from flax_wavlm.ops.attention.choice import AttentionSpec
from flax_wavlm.ops.ctc.api import ctc_loss
from flax_wavlm.ops.dense.api import add_bias, product
from flax_wavlm.ops.first_conv.api import conv_norm_gelu
from flax_wavlm.ops.gates.api import gates
from flax_wavlm.ops.gelu.api import gelu
from flax_wavlm.ops.norm.api import layer_norm, norm_gelu, residual_norm
from flax_wavlm.ops.positional_conv.api import grouped_conv
from flax_wavlm.ops.switch import kernels

EPS = 1e-5
SIMPLE = 1e-5  # of the largest value: the tolerance for a simple module in float32


class Case(NamedTuple):
    """An operation with its settings, and the arrays that it is differentiated in."""

    function: Callable[..., Any]
    arrays: tuple[Any, ...]


def attend(q_k_v: jax.Array, bias: jax.Array, gate: jax.Array, table: jax.Array) -> jax.Array:
    spec = AttentionSpec("auto", "float32", head_size=8, dropout=0.3, precision="highest")
    valid = jnp.arange(13) < jnp.array([[13], [6]])
    function = prepare(spec, table, valid, 2, training=True)
    out = function(q_k_v, bias, gate, jax.random.key(0))
    return jnp.where(valid[:, :, None, None], out, 0)


def ctc(logits: jax.Array) -> jax.Array:
    """A clip with repeats, one without labels, and one whose labels do not fit."""
    labels = jnp.array([[1, 1, 2, 3], [0, 0, 0, 0], [4, 4, 4, 4]])
    loss, feasible = ctc_loss(logits, jnp.array([9, 5, 4]), labels, jnp.array([4, 0, 4]), blank_id=0)
    return loss * (1 + feasible)


def ctc_with_prior(logits: jax.Array, prior: jax.Array) -> jax.Array:
    labels = jnp.array([[1, 1, 2], [3, 2, 0]])
    lengths = jnp.array([3, 2])
    return ctc_loss(logits, jnp.array([9, 5]), labels, lengths, blank_id=0, log_prior=prior)[0]


CASES = {
    "gelu": Case(gelu, (normal(0, 3, 40),)),
    "product": Case(product, (normal(0, 2, 5, 12), normal(1, 12, 3, 4))),
    "add_bias": Case(add_bias, (normal(0, 2, 5, 12), normal(1, 12))),
    "layer_norm": Case(
        lambda *a: layer_norm(*a, EPS, jnp.float32), (3 + normal(0, 2, 5, 12), normal(1, 12), normal(2, 12))
    ),
    "residual_norm": Case(
        lambda x, delta, delta_bias, scale, bias: residual_norm(
            x, (delta, delta_bias), scale, bias, EPS, jnp.float32
        ),
        (normal(0, 2, 5, 12), normal(1, 2, 5, 12), normal(2, 12), normal(3, 12), normal(4, 12)),
    ),
    "norm_gelu": Case(
        lambda *a: norm_gelu(*a, EPS, jnp.float32), (3 + normal(0, 2, 5, 12), normal(1, 12), normal(2, 12))
    ),
    "conv_norm_gelu": Case(
        lambda *a: conv_norm_gelu(*a, 5, EPS, jnp.float32),
        (normal(0, 2, 100), normal(1, 10, 8), normal(2, 8), normal(3, 8), normal(4, 8)),
    ),
    "gates": Case(gates, (normal(0, 2, 7, 15), 0.3 * normal(1, 5, 8), normal(2, 8), normal(3, 3))),
    "grouped_conv": Case(grouped_conv, (normal(0, 2, 21, 12), normal(1, 8, 4, 12))),
    "attention": Case(
        attend,
        (
            normal(0, 2, 13, 3, 2, 8),
            normal(1, 3, 2, 8),
            1 + 0.5 * normal(2, 2, 2, 13),
            2 * normal(3, 2, 25),
        ),
    ),
    "ctc_loss": Case(ctc, (normal(0, 3, 9, 6),)),
    "ctc_loss with a prior": Case(ctc_with_prior, (normal(0, 2, 9, 6), normal(1, 6))),
}


def values_and_gradients(case: Case, mode: str) -> list[Any]:
    """The results, and the gradients of a random sum of them."""

    @jax.jit
    def run(*arrays: Any) -> Any:
        results, pull = jax.vjp(case.function, *arrays)
        leaves, structure = jax.tree.flatten(results)
        weights = [normal(10 + i, *leaf.shape) for i, leaf in enumerate(leaves)]
        return results, pull(jax.tree.unflatten(structure, weights))

    with kernels(mode):
        return jax.tree.leaves(run(*case.arrays))


def custom_vjps(case: Case, mode: str) -> int:
    """How many custom VJPs the program of a gradient goes through."""

    def fresh(*arrays: Any) -> Any:  # JAX keeps what it traced of a function, whatever the switch says
        return case.function(*arrays)

    with kernels(mode):
        return str(jax.make_jaxpr(fresh)(*case.arrays)).count("custom_vjp_call")


@pytest.mark.parametrize("name", CASES)
def test_auto_equals_reference(name: str) -> None:
    ours, references = (values_and_gradients(CASES[name], mode) for mode in ("auto", "reference"))
    for got, expected in zip(ours, references, strict=True):
        assert got.dtype == expected.dtype
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got, expected, rtol=0, atol=SIMPLE * scale)


@pytest.mark.parametrize("name", CASES)
def test_references_have_automatic_gradients(name: str) -> None:
    assert custom_vjps(CASES[name], "auto") > 0
    assert custom_vjps(CASES[name], "reference") == 0

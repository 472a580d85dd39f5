"""The kernels of layer norms, interpreted, beside the plain operations."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernels import equal, normal, triton_kernels

from flax_wavlm.ops.gelu.api import gelu
from flax_wavlm.ops.norm import gpu as fused_norm
from flax_wavlm.ops.norm import reference
from flax_wavlm.ops.norm.api import layer_norm, norm_gelu, norm_gradient, residual_norm
from flax_wavlm.parallel import sharding

EPS = 1e-5


@pytest.mark.parametrize(
    ("shape", "types"),  # those of x, delta, and the norm
    [
        ((2, 40, 128), "float32 bfloat16 bfloat16"),  # tiles without a rest: no mask
        ((3, 17, 96), "float32 float32 float32"),  # padded to a power of 2
        ((5, 3, 768), "float32 bfloat16 bfloat16"),
        ((2, 9, 5), "bfloat16 bfloat16 float32"),
    ],
    ids=str,
)
def test_kernels_equal_the_definitions(
    shape: tuple[int, ...], types: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiles of 8 rows or less, so that the backward programs have some each, and not equally many."""
    width = 2 ** (shape[-1] - 1).bit_length()
    monkeypatch.setattr(fused_norm, "TILE", 8 * width)
    monkeypatch.setattr(fused_norm, "TILE_BACKWARD", 4 * width)
    monkeypatch.setattr(fused_norm, "PROGRAMS", 3)
    kind, delta_kind, dtype = types.split()
    x, d_x = 3 + normal(0, *shape, dtype=kind), normal(1, *shape, dtype=kind)
    delta, dy = normal(2, *shape, dtype=delta_kind), normal(3, *shape, dtype=dtype)
    scale, bias, delta_bias = (normal(seed, shape[-1]) for seed in (4, 5, 6))
    branch_types = delta.dtype, delta_bias.dtype

    @jax.jit
    def fused() -> list[tuple[jax.Array, ...]]:
        how = {"interpret": True}
        return [
            fused_norm.forward(EPS, dtype, x, scale, bias, **how),
            fused_norm.forward(EPS, dtype, x, delta, scale, bias, **how),
            fused_norm.forward(EPS, dtype, x, delta, delta_bias, scale, bias, **how),
            fused_norm.forward(EPS, dtype, x, scale, bias, gelu=True, **how),
            fused_norm.backward(EPS, (), x, scale, dy, **how),
            fused_norm.backward(EPS, branch_types[:1], x, scale, dy, d_x, **how),
            fused_norm.backward(EPS, branch_types, x, scale, dy, d_x, **how),
        ]

    @jax.jit
    def plain() -> list[tuple[jax.Array, ...]]:
        return [
            (reference.layer_norm(x, scale, bias, EPS, dtype),),
            reference.residual_norm(x, (delta,), scale, bias, EPS, dtype),
            reference.residual_norm(x, (delta, delta_bias), scale, bias, EPS, dtype),
            (reference.norm_gelu(x, scale, bias, EPS, dtype),),
            norm_gradient(EPS, (), x, scale, dy),
            norm_gradient(EPS, branch_types[:1], x, scale, dy, d_x),
            norm_gradient(EPS, branch_types, x, scale, dy, d_x),
        ]

    for got, expected in zip(fused(), plain(), strict=True):
        equal(got, expected)


def test_padded_rows_are_not_seen_without_an_epsilon() -> None:
    """Their variance is 0."""
    x, dy, scale = normal(0, 1, 3, 16), normal(1, 1, 3, 16), normal(2, 16)
    for arguments in [(0.0, (), x, scale, dy), (0.0, (x.dtype, x.dtype), x, scale, dy, x)]:
        equal(fused_norm.backward(*arguments, interpret=True), norm_gradient(*arguments))


def test_gelu() -> None:
    x = jnp.linspace(-12, 12, 20001)
    np.testing.assert_allclose(fused_norm.erf_gelu(x), gelu(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_cuda(dtype: Any) -> None:
    """One kernel forward and one backward; with GELU the forward alone."""
    x, delta, vector = normal(0, 2, 5, 24), normal(1, 2, 5, 24).astype(dtype), jnp.ones(24)

    def kernels(function: Any, *arrays: Any) -> int:
        def gradient(*arrays: Any) -> Any:
            y, pull = jax.vjp(function, *arrays)
            return y, pull(y)

        return triton_kernels(gradient, *arrays)

    assert kernels(lambda *a: layer_norm(*a, EPS, dtype), x, vector, vector) == 2
    for branch in [(delta,), (delta, vector)]:
        assert kernels(lambda *a: residual_norm(*a, EPS, dtype), x, branch, vector, vector) == 2
    assert kernels(lambda *a: norm_gelu(*a, EPS, dtype), delta, vector, vector) == 1


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_sharded_over_devices() -> None:
    """Each device runs the kernels on its own rows; the gradients of vectors alone are summed."""
    x, delta, dy, d_x = (normal(i, 8, 3, 16) for i in range(4))
    delta_bias, scale, bias = (normal(i, 16) for i in (4, 5, 6))

    def both(forward: Any, backward: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        x, delta, delta_bias, scale, bias, dy, d_x = arrays
        total, y = forward(EPS, jnp.float32, x, delta, delta_bias, scale, bias)
        return total, y, *backward(EPS, (jnp.bfloat16, jnp.float32), total, scale, dy, d_x)

    def fused(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        def interpreted(kernel: Any) -> Any:
            return lambda *arguments: kernel(*arguments, interpret=True)

        return both(interpreted(fused_norm.forward), interpreted(fused_norm.backward), *arrays)

    mesh = sharding.make_mesh(fsdp=2)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    placed = (rows, rows, whole, whole, whole, rows, rows)
    arrays = (x, delta, delta_bias, scale, bias, dy, d_x)
    everything = [jax.device_put(array, place) for array, place in zip(arrays, placed, strict=True)]
    compiled = jax.jit(fused, in_shardings=placed).lower(*everything).compile()
    program = compiled.as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", program)
    assert "all-reduce" in program
    got = compiled(*everything)

    def plain(eps: float, dtype: Any, x: jax.Array, *others: jax.Array) -> tuple[jax.Array, jax.Array]:
        return reference.residual_norm(x, others[:2], *others[2:], eps, dtype)

    equal(got, both(plain, norm_gradient, *arrays))
    assert all(array.sharding.is_equivalent_to(rows, 3) for array in got[:4])

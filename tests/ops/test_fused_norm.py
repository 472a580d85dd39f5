"""The kernels of layer norms, interpreted, against the plain operations of ops.py."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernels import equal, normal

from flax_wavlm.ops.first_conv.api import conv_norm_gelu
from flax_wavlm.ops.first_conv.reference import conv_norm_gelu_reference
from flax_wavlm.ops.gelu import gelu
from flax_wavlm.ops.norm import gpu as fused_norm
from flax_wavlm.ops.norm.api import layer_norm, norm_gelu, residual_norm
from flax_wavlm.ops.norm.reference import norm, norm_gelu_reference, norm_gradient, residual_norm_reference
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
            norm(EPS, dtype, x, scale, bias),
            residual_norm_reference(EPS, dtype, x, delta, scale, bias),
            residual_norm_reference(EPS, dtype, x, delta, delta_bias, scale, bias),
            norm_gelu_reference(EPS, dtype, x, scale, bias),
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


def conv_inputs(clips: int, samples: int, taps: int, size: int, dtype: str) -> list[jax.Array]:
    """Audio, taps, and three vectors."""
    arrays = [normal(0, clips, samples, dtype=dtype), normal(1, taps, size, dtype=dtype)]
    return arrays + [normal(i, size) for i in (2, 3, 4)]


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((2, 400, 10, 64), 5),  # 79 frames: the last tile makes some of those before again
        ((2, 1285, 10, 32), 5),  # 256: two programs without a rest
        ((1, 50, 3, 12), 2),  # 24, of channels that are padded
        ((3, 29, 10, 16), 5),  # 4, fewer than a tile
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolution_equals_the_definition(shape: tuple[int, ...], stride: int, dtype: str) -> None:
    arrays = conv_inputs(*shape, dtype)
    settings = stride, EPS, jnp.dtype(dtype), "highest"
    got = fused_norm.conv_gelu(*settings, *arrays, interpret=True)
    if dtype == "bfloat16":  # the definition rounds what the convolution gives
        arrays = [x.astype(jnp.float32) for x in arrays]
        settings = stride, EPS, jnp.dtype("float32"), "highest"
    (expected,) = conv_norm_gelu_reference(*settings, *arrays)
    equal(got, [expected.astype(dtype)])


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_convolution_is_sharded_over_devices() -> None:
    arrays = conv_inputs(8, 100, 10, 16, "float32")
    settings = 5, EPS, jnp.float32, "highest"
    mesh = sharding.make_mesh(fsdp=2)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    placed = (rows, whole, whole, whole, whole)
    everything = [jax.device_put(array, place) for array, place in zip(arrays, placed, strict=True)]
    fused = jax.jit(lambda *a: fused_norm.conv_gelu(*settings, *a, interpret=True), in_shardings=placed)
    compiled = fused.lower(*everything).compile()
    assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce", compiled.as_text())
    got = compiled(*everything)
    equal(got, conv_norm_gelu_reference(*settings, *arrays))
    assert got[0].sharding.is_equivalent_to(rows, 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_cuda(dtype: Any) -> None:
    """One kernel forward and one backward; of GELU the forward alone."""
    triton = "__gpu$xla.gpu.triton"
    x, delta, vector = normal(0, 2, 5, 24), normal(1, 2, 5, 24).astype(dtype), jnp.ones(24)

    def kernels(function: Any, *arrays: Any) -> int:
        def gradient(*arrays: Any) -> Any:
            y, pull = jax.vjp(function, *arrays)
            return y, pull(y)

        exported = jax.export.export(
            jax.jit(gradient),
            platforms=["cuda"],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(triton)],
        )(*arrays)
        return exported.mlir_module().count(f"@{triton}")

    assert kernels(lambda *a: layer_norm(*a, EPS, dtype), x, vector, vector) == 2
    for branch in [(delta,), (delta, vector)]:
        assert kernels(lambda *a: residual_norm(*a, EPS, dtype), x, branch, vector, vector) == 2
    assert kernels(lambda *a: norm_gelu(*a, EPS, dtype), delta, vector, vector) == 1
    arrays = conv_inputs(2, 400, 10, 24, dtype)
    assert kernels(lambda *a: conv_norm_gelu(*a, 5, EPS, dtype), *arrays) == 1


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
    equal(got, both(residual_norm_reference, norm_gradient, *arrays))
    assert all(array.sharding.is_equivalent_to(rows, 3) for array in got[:4])

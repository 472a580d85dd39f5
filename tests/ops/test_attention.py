"""Every implementation of attention beside the definition in float64."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.attention import (
    ARGUMENTS,
    SEED,
    SIMPLE,
    Arrays,
    biases,
    by_cudnn,
    by_pallas,
    by_pallas_gpu,
    by_xla,
    exactly,
    inputs,
    output_and_gradients,
    plain,
    plain_with_gpu_dropout,
)
from jax.test_util import check_grads

from flax_wavlm.ops.attention.reference import toeplitz
from flax_wavlm.ops.attention.tiles import tiles

SHAPES = [
    # B, T, H, K, block | valid keys of each row
    ((1, 1, 1, 8, 8), [1]),
    ((1, 16, 2, 8, 8), [16]),  # a multiple of the block
    ((3, 17, 1, 16, 8), [17, 1, 9]),  # one frame more; one valid frame
    ((2, 39, 3, 24, 16), [39, 16]),  # one frame less than three blocks, padding of whole blocks
    ((2, 12, 2, 64, None), [12, 7]),  # the block of the platform
]


MANY_SHAPES = [
    *[((2, time, 2, 16, 8), [time, (time + 1) // 2]) for time in (2, 3, 7, 8, 9, 15, 23, 24, 25, 31, 32, 33)],
    *[((2, 21, 1, size, 8), [21, 5]) for size in (8, 24, 32, 40, 48, 64)],
    *[((1, 40, heads, 8, block), [33]) for heads, block in ((1, 16), (2, 8), (5, 64), (12, 32))],
    ((2, 199, 2, 64, None), [199, 131]),
    ((2, 200, 2, 64, 64), [200, 1]),
    ((1, 399, 1, 64, None), [300]),
]


every = pytest.mark.parametrize(
    ("shape", "frames"),
    SHAPES + [pytest.param(*case, marks=pytest.mark.slow) for case in MANY_SHAPES],
    ids=str,
)


@pytest.mark.parametrize("name", ["xla", "xla on one device", "cudnn", "pallas", "pallas on a GPU"])
@every
def test_equals_the_definition(
    name: str,
    shape: tuple,
    frames: list[int],
    measured: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For cuDNN it is odd T, padding, and the bias's gradient that are tested; its kernel needs a GPU."""
    *sizes, block = shape
    arrays = inputs(*sizes)
    if name == "xla on one device":  # some gradients are summed otherwise there
        monkeypatch.setattr(jax, "device_count", lambda: 1)
    function = {
        "xla": by_xla,
        "xla on one device": by_xla,
        "cudnn": by_cudnn,
        "pallas": functools.partial(by_pallas, block=block),
        "pallas on a GPU": functools.partial(by_pallas_gpu, block=block),
    }[name]
    got = output_and_gradients(function, arrays, frames)
    expected = exactly(tuple(frames), *sizes)
    for what, x, y in zip(("out", *ARGUMENTS), got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=SIMPLE, atol=SIMPLE, err_msg=what)
    assert shape[1] == 1 or all(np.abs(x).max() > 100 * SIMPLE for x in expected)  # there is something to see
    differences = [np.abs(x - y).max() for x, y in zip(got, expected, strict=True)]
    measured(f"{name} in float32 against float64, {shape}: largest difference {max(differences):.1e}")


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_biases_inside_the_kernels_for_gpus(dtype: str, rate: float) -> None:
    """Against the definition, in float32, for q, k and v with their biases added.

    In bfloat16 no further from it than twice the definition in bfloat16, which rounds what it adds them to.
    """
    frames, seed = [37, 20, 1], jnp.asarray(SEED)
    rounded = inputs(3, 37, 2, 16, dtype)
    exact = [x.astype(jnp.float32) for x in rounded]
    bias = biases(2, 16)

    def added(q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array, bias: jax.Array) -> jax.Array:
        qkv = (x + b.astype(x.dtype) for x, b in zip((q, k, v), bias, strict=True))
        return plain_with_gpu_dropout(*qkv, *rest, frames=frames, rate=rate, seed=seed)

    def fused(*arrays: jax.Array, bias: jax.Array) -> jax.Array:
        return by_pallas_gpu(*arrays, frames=frames, qkv_bias=bias, rate=rate, seed=seed)

    def results(function: Callable, arrays: Arrays) -> list[np.ndarray]:
        """Output and gradients, the last that of the biases."""
        weight = np.random.default_rng(3).normal(size=exact[0].shape)

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=range(6), has_aux=True)
        def loss(bias: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = function(*arrays, bias=bias).astype(jnp.float32)
            return jnp.sum(out * weight), out

        (_, out), (d_bias, *gradients) = loss(bias, *arrays)
        return [np.asarray(x, np.float32) for x in (out, *gradients, d_bias)]

    got, expected = results(fused, rounded), results(added, exact)
    assert not got[-1][1].any()  # that of k's bias, of which softmax knows nothing
    for x, y, usual in zip(got, expected, results(added, rounded), strict=True):
        if dtype == "float32":
            np.testing.assert_allclose(x, y, rtol=SIMPLE, atol=SIMPLE * np.abs(y).max())
        else:
            assert np.linalg.norm(x - y) < 2 * np.linalg.norm(usual - y)


@pytest.mark.parametrize("function", [by_xla, by_pallas, by_pallas_gpu, by_cudnn])
def test_bfloat16(function: Callable) -> None:
    """Against the plain one in float32: no further from it than twice the plain one in bfloat16."""
    frames = [37, 20, 1]
    exact = inputs(3, 37, 2, 16)
    rounded = [x.astype(jnp.bfloat16) for x in exact[:3]] + exact[3:]
    exact = [x.astype(jnp.float32) for x in rounded]
    expected = output_and_gradients(plain, exact, frames)
    usual = output_and_gradients(plain, rounded, frames)
    got = output_and_gradients(function, rounded, frames)
    for name, x, y, z in zip(("out", *ARGUMENTS), got, usual, expected, strict=True):
        error, allowed = (np.sqrt(np.mean(np.square(a - z))) for a in (x, y))
        # cuDNN wants its bias in bfloat16, half a percent off: that is its own error.
        bias = 0 if function is not by_cudnn else 2**-8 * np.sqrt(np.mean(np.square(z)))
        assert error <= 2 * allowed + bias, name


@pytest.mark.parametrize("function", [by_pallas, by_pallas_gpu])
def test_padding_is_not_seen(function: Callable) -> None:
    """What stands in padded frames changes nothing, and gets no gradient."""
    frames = [11, 4]
    arrays = inputs(2, 11, 2, 8)
    padding = (jnp.arange(11) >= jnp.asarray(frames)[:, None])[:, :, None, None]
    other = [arrays[0], *(jnp.where(padding, 50.0, x) for x in arrays[1:3]), *arrays[3:]]
    function = functools.partial(function, block=8)
    got, expected = (output_and_gradients(function, x, frames) for x in (other, arrays))
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_array_equal(x, y)
    for gradient in got[2:4]:
        assert not np.any(np.where(padding, gradient, 0))


@pytest.mark.parametrize(
    "function",
    [functools.partial(by_pallas, block=8), functools.partial(by_pallas_gpu, block=8), by_cudnn],
    ids=["pallas", "pallas on a GPU", "cudnn"],
)
def test_a_row_without_frames_is_finite_and_alone(function: Callable) -> None:
    arrays = inputs(2, 11, 2, 8)
    out, *gradients = output_and_gradients(function, arrays, [9, 0])
    expected, *_ = output_and_gradients(function, arrays, [9, 5])
    assert all(np.isfinite(x).all() for x in (out, *gradients))
    np.testing.assert_array_equal(out[0], expected[0])


def test_pallas_gradients_numerically() -> None:
    """In float64, against finite differences; and the plain one in float64, beyond float32's rounding."""
    with jax.enable_x64(True):
        arrays = [x.astype(jnp.float64) for x in inputs(2, 11, 1, 8)]
        function = functools.partial(by_pallas, frames=[11, 6], block=8)
        check_grads(function, arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("time", "block"), [(1, 8), (7, 8), (8, 8), (9, 8), (40, 16), (130, 128)])
def test_tiles_are_the_toeplitz_matrix(time: int, block: int) -> None:
    table = jnp.arange(1.0, 4 * time - 1).reshape(2, -1)
    count = math.ceil(time / block)
    tiled = tiles(table, block)
    assert tiled.shape == (2, 2 * count - 1, block, block)
    rows = [
        np.concatenate([tiled[:, i - j + count - 1].swapaxes(1, 2) for j in range(count)], axis=2)
        for i in range(count)
    ]
    whole = np.concatenate(rows, axis=1)
    np.testing.assert_array_equal(whole[:, :time, :time], toeplitz(table))

"""The first layer of the feature encoder as one operation, and its kernel, interpreted."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernels import equal, normal, normalised, triton_kernels, vjp_equal

from flax_wavlm.ops.first_conv import gpu as fused_conv
from flax_wavlm.ops.first_conv import reference as conv_reference
from flax_wavlm.ops.first_conv.api import conv_norm_gelu
from flax_wavlm.parallel import sharding

EPS = 1e-5


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
    got = fused_conv.forward(*settings, *arrays, interpret=True)
    if dtype == "bfloat16":  # the definition rounds what the convolution gives
        arrays = [x.astype(jnp.float32) for x in arrays]
        settings = stride, EPS, jnp.dtype("float32"), "highest"
    expected = conv_reference.conv_norm_gelu(*arrays, *settings)
    equal(got, [expected.astype(dtype)])


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_convolution_is_sharded_over_devices() -> None:
    arrays = conv_inputs(8, 100, 10, 16, "float32")
    settings = 5, EPS, jnp.float32, "highest"
    mesh = sharding.make_mesh(fsdp=2)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    placed = (rows, whole, whole, whole, whole)
    everything = [jax.device_put(array, place) for array, place in zip(arrays, placed, strict=True)]
    fused = jax.jit(lambda *a: fused_conv.forward(*settings, *a, interpret=True), in_shardings=placed)
    compiled = fused.lower(*everything).compile()
    assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce", compiled.as_text())
    got = compiled(*everything)
    equal(got, (conv_reference.conv_norm_gelu(*arrays, *settings),))
    assert got[0].sharding.is_equivalent_to(rows, 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_cuda(dtype: Any) -> None:
    """One kernel, forward."""

    def gradient(*arrays: Any) -> Any:
        y, pull = jax.vjp(lambda *a: conv_norm_gelu(*a, 5, EPS, dtype), *arrays)
        return y, pull(y)

    assert triton_kernels(gradient, *conv_inputs(2, 400, 10, 24, dtype)) == 1

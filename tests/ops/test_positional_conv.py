"""The positional convolution in both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernels import vjp_equal

from flax_wavlm.ops.platform import compiling_for_cuda
from flax_wavlm.ops.positional_conv import api as positional_conv
from flax_wavlm.ops.positional_conv.api import grouped_conv
from flax_wavlm.ops.positional_conv.blocks import BLOCK


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
    with compiling_for_cuda():
        lowered = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in lowered) == (platform != "cuda")

"""Dropout of the attention weights, in plain operations and in the kernels for GPUs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.attention import (
    ARGUMENTS,
    SEED,
    SIMPLE,
    biases,
    by_pallas_gpu,
    by_xla,
    inputs,
    output_and_gradients,
    plain,
    plain_with_gpu_dropout,
)

from flax_wavlm import WavLMConfig
from flax_wavlm.models.wavlm import attention_spec
from flax_wavlm.ops.attention import gpu as fused_attention_gpu
from flax_wavlm.ops.attention import weight_dropout
from flax_wavlm.ops.attention.api import prepare
from flax_wavlm.ops.dropout import draw_keep_mask, drop


def test_dropout_of_the_weights() -> None:
    """As the definition with the same weights dropped, and their gradients with them."""
    arrays, frames, rate, key = inputs(3, 17, 2, 8), [17, 9, 1], 0.3, jax.random.key(3)
    keep = draw_keep_mask(key, (3, 2, 17, 17), rate)
    assert abs(float(jnp.mean(keep)) - 0.7) < 0.05

    def expected(*arrays: jax.Array, frames: Any) -> jax.Array:
        return plain(*arrays, frames=frames, drop=lambda weights: drop(weights, keep, rate))

    got = output_and_gradients(functools.partial(by_xla, rate=rate, key=key), arrays, frames)
    for what, x, y in zip(
        ("out", *ARGUMENTS), got, output_and_gradients(expected, arrays, frames), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=SIMPLE, atol=SIMPLE, err_msg=what)


@pytest.mark.parametrize(
    ("shape", "frames", "rate"),
    [
        ((3, 17, 1, 16, 8), [17, 1, 9], 0.1),
        ((2, 39, 3, 24, 16), [39, 16], 0.3),
        ((5, 33, 2, 16, None), [33, 32, 31, 1, 5], 0.5),
    ],
    ids=str,
)
def test_dropout_in_the_gpu_kernels(shape: tuple, frames: list[int], rate: float) -> None:
    """As the definition with the same weights dropped, whatever the block is, and so in both layouts."""
    *sizes, block = shape
    arrays = inputs(*sizes)
    function = functools.partial(by_pallas_gpu, rate=rate, seed=jnp.asarray(SEED), block=block)
    got = output_and_gradients(function, arrays, frames)
    with jax.enable_x64(True):
        exact = [x.astype(jnp.float64) for x in arrays]
        function = functools.partial(plain_with_gpu_dropout, rate=rate, seed=jnp.asarray(SEED))
        expected = output_and_gradients(function, exact, frames)
    for what, x, y in zip(("out", *ARGUMENTS), got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=SIMPLE, atol=SIMPLE, err_msg=what)
        assert np.abs(y).max() > 100 * SIMPLE


def test_dropout_in_the_gpu_kernels_in_bfloat16() -> None:
    """No further from float32 than twice the definition in bfloat16, as `test_bfloat16`."""
    frames, how = [37, 20], {"rate": 0.1, "seed": jnp.asarray(SEED)}
    exact = inputs(2, 37, 2, 16)
    rounded = [x.astype(jnp.bfloat16) for x in exact[:3]] + exact[3:]
    exact = [x.astype(jnp.float32) for x in rounded]
    definition = functools.partial(plain_with_gpu_dropout, **how)
    expected = output_and_gradients(definition, exact, frames)
    usual = output_and_gradients(definition, rounded, frames)
    got = output_and_gradients(functools.partial(by_pallas_gpu, block=16, **how), rounded, frames)
    for name, x, y, z in zip(("out", *ARGUMENTS), got, usual, expected, strict=True):
        error, allowed = (np.sqrt(np.mean(np.square(a - z))) for a in (x, y))
        assert error <= 2 * allowed, name


def test_gpu_kernels_where_nothing_or_everything_is_dropped() -> None:
    arrays, frames, seed = inputs(2, 11, 2, 16), [11, 4], jnp.asarray(SEED)

    def result(**how: Any) -> list[np.ndarray]:
        return output_and_gradients(functools.partial(by_pallas_gpu, block=8, **how), arrays, frames)

    expected = result()
    for how in ({"rate": 0.0, "seed": seed}, {"rate": 0.3}):
        for x, y in zip(result(**how), expected, strict=True):
            np.testing.assert_array_equal(x, y)
    assert not any(x.any() for x in result(rate=1.0, seed=seed))

    def kernels(**how: Any) -> str:
        call = functools.partial(by_pallas_gpu, frames=jnp.asarray(frames), block=8, **how)
        return str(jax.make_jaxpr(jax.grad(lambda *arrays: jnp.sum(call(*arrays))))(*arrays))

    assert kernels(rate=0.0, seed=seed) == kernels()
    assert "u32" not in kernels()
    assert "u32" in kernels(rate=0.1, seed=seed)


def test_mask_of_the_gpu_kernels() -> None:
    """Its share, and that neighbours in any direction are dropped independently of one another."""
    rate, (batch, heads, time) = 0.1, (4, 4, 128)
    # Seeds that are neighbours themselves, which random ones are not.
    masks = [
        np.asarray(weight_dropout.kept(jnp.asarray(seed, jnp.uint32), batch, heads, time, rate))
        for seed in ([0, 0], [0, 1], [1, 0], [1, 1], [2**31, 1], [2**32 - 1, 0])
    ]
    off = np.stack(masks) - (1 - round(rate * 2**16) / 2**16)  # [seeds, B, H, T, T], on average 0
    variance = rate * (1 - rate)
    assert abs(off.mean()) < 5 * np.sqrt(variance / off.size)

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        """In standard deviations of what independent ones have."""
        return abs(float(np.mean(a * b))) / variance * np.sqrt(a.size)

    for axis in range(5):
        for step in (1, 2, 3, 16, 64):
            if step < off.shape[axis]:
                first, second = np.split(np.moveaxis(off, axis, 0), [step])[1], np.moveaxis(off, axis, 0)
                assert correlation(first, second[:-step]) < 5, (axis, step)
    assert correlation(off[..., 1:, 1:], off[..., :-1, :-1]) < 5
    assert correlation(off[..., 1:, :-1], off[..., :-1, 1:]) < 5
    t, s = np.triu_indices(time, 1)
    assert correlation(off[..., t, s], off[..., s, t]) < 5
    # Nor four together, the corners of a rectangle.
    rows = off[..., 1:, :] * off[..., :-1, :]
    assert correlation(rows[..., 1:] / np.sqrt(variance), rows[..., :-1] / np.sqrt(variance)) < 5
    # A clip's mask is its own: of how many others there are nothing is seen.
    fewer = weight_dropout.kept(jnp.zeros(2, jnp.uint32), 2, heads, 100, rate)
    np.testing.assert_array_equal(fewer, masks[0][:2, :, :100, :100])


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_layers_on_a_gpu_get_their_dropout(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `prepare` makes of a layer's key. Interpreted, as if the CPU were a GPU."""
    q, k, v, gate, table = inputs(2, 11, 2, 16)
    valid = jnp.arange(11) < jnp.asarray([[11], [4]])
    config = WavLMConfig(
        hidden_size=32, num_attention_heads=2, attention="pallas", attention_dropout=0.3, dtype="float32"
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    interpreted = functools.partial(fused_attention_gpu.attention, interpret=True)
    monkeypatch.setattr(fused_attention_gpu, "attention", interpreted)
    attend = prepare(attention_spec(config), table, valid, 2, training=True)
    bias = biases(2, 16)
    qkv = jnp.stack([q, k, v], axis=2) - bias
    one, same, other, none = (
        attend(qkv, bias, gate, None if number is None else jax.random.key(number, impl=kind))
        for number in (0, 0, 1, None)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    for out, keep in ((one, jax.random.key(0, impl=kind)), (none, None)):
        how = {"rate": 0.0, "seed": jnp.zeros(2, jnp.uint32)}
        if keep is not None:
            how = {"rate": 0.3, "seed": jax.random.bits(keep, (2,), jnp.uint32)}
        expected = plain_with_gpu_dropout(q, k, v, gate, table, frames=[11, 4], **how)
        np.testing.assert_allclose(out, expected, rtol=SIMPLE, atol=SIMPLE)

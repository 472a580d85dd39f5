"""The fused implementations of attention against the plain one, and which of them a run takes."""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.reference import NO_REGULARISATION, Reference
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, Mesh
from jax.test_util import check_grads

from flax_wavlm import WavLMConfig, WavLMForCTC
from flax_wavlm.errors import UserError
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import merge, split
from flax_wavlm.ops.attention import gpu as fused_attention_gpu
from flax_wavlm.ops.attention import tpu as fused_attention
from flax_wavlm.ops.attention.api import prepare
from flax_wavlm.ops.attention.cudnn import cudnn
from flax_wavlm.ops.attention.reference import toeplitz
from flax_wavlm.ops.attention.xla import xla
from flax_wavlm.ops.dropout import apply, kept
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.training.state import init_state
from flax_wavlm.training.step import jit_train_step, make_train_step

SIMPLE = 1e-5  # tolerance for a simple module in float32
DEEP = 1e-4  # and for a whole model
ARGUMENTS = ("q", "k", "v", "gate", "table")
Arrays = list[jax.Array]


def inputs(batch: int, time: int, heads: int, size: int, dtype: str = "float32") -> Arrays:
    """q, k, v, gate and table, of the sizes that they have in a trained model."""
    rng = np.random.default_rng(time)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, k, v = (normal(batch, time, heads, size).astype(dtype) for _ in range(3))
    return [q, k, v, 1 + 0.5 * normal(batch, heads, time), 2 * normal(heads, 2 * time - 1)]


def biases(heads: int, size: int) -> jax.Array:
    """Those of q, k and v."""
    return jnp.asarray(np.random.default_rng(size).normal(size=(3, heads, size)), jnp.float32)


def plain(*arrays: jax.Array, frames: Any, drop: Callable = lambda weights: weights) -> jax.Array:
    """The definition, word for word, differentiated by JAX."""
    q, k, v, gate, table = arrays
    time = q.shape[1]
    bias = jnp.stack([table[:, time - 1 - t : 2 * time - 1 - t] for t in range(time)], axis=1)  # [H, T, T]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = (
        jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=wide) / math.sqrt(q.shape[-1])
        + gate[..., None] * bias
    )
    valid = jnp.arange(time) < jnp.asarray(frames)[:, None]
    weights = jax.nn.softmax(jnp.where(valid[:, None, None, :], scores, -jnp.inf))
    return jnp.einsum("bhts,bshk->bthk", drop(weights).astype(v.dtype), v)


def by_xla(*arrays: jax.Array, frames: Any, **how: Any) -> jax.Array:
    *qkv_gate, table = arrays
    valid = jnp.arange(arrays[0].shape[1]) < jnp.asarray(frames)[:, None]
    return xla(*qkv_gate, toeplitz(table), valid, **how)


def by_cudnn(*arrays: jax.Array, frames: Any) -> jax.Array:
    """What "cudnn" computes around cuDNN's kernel, which is replaced by plain operations."""
    *qkv_gate, table = arrays
    bias = toeplitz(table)
    return cudnn(*qkv_gate, bias, jnp.asarray(frames), implementation="xla")


def by_pallas(*arrays: jax.Array, frames: Any, block: int | None = None) -> jax.Array:
    return fused_attention.attention(*arrays, jnp.asarray(frames), block=block)


def by_pallas_gpu(
    *arrays: jax.Array, frames: Any, qkv_bias: jax.Array | None = None, block: int | None = None, **how: Any
) -> jax.Array:
    """The kernels for GPUs, interpreted unless said otherwise."""
    q, k, v, gate, table = arrays
    qkv = jnp.stack([q, k, v], axis=2)
    qkv_bias = jnp.zeros(qkv.shape[2:]) if qkv_bias is None else qkv_bias
    bias = fused_attention_gpu.prepare_bias(table, q.dtype, block=block)
    how = {"interpret": True} | how
    return fused_attention_gpu.attention(qkv, qkv_bias, gate, bias, jnp.asarray(frames), **how)


def plain_with_gpu_dropout(*arrays: jax.Array, frames: Any, rate: float, seed: jax.Array) -> jax.Array:
    """The definition, with the weights dropped that the kernels for GPUs drop; 0 beyond a row's frames."""
    batch, time, heads, _ = arrays[0].shape
    keep = fused_attention_gpu.kept(seed, batch, heads, time, rate)
    out = plain(*arrays, frames=frames, drop=lambda weights: apply(weights, keep, rate))
    valid = jnp.arange(time) < jnp.asarray(frames)[:, None]
    return jnp.where(valid[:, :, None, None], out, 0)


def output_and_gradients(function: Callable, arrays: Arrays, frames: Any) -> list[np.ndarray]:
    """The output, and the gradients of a random sum of it in q, k, v, gate and table; float32 or wider.

    Of valid queries: what comes out for the others, nothing looks at. Scaled so that an attention weight's
    gradient, as the weight's score, is of size 1.
    """
    weight = np.random.default_rng(1).normal(size=arrays[0].shape) / math.sqrt(arrays[0].shape[-1])
    valid = (np.arange(weight.shape[1]) < np.asarray(frames)[:, None])[:, :, None, None]
    wide = jnp.promote_types(arrays[0].dtype, jnp.float32)

    @functools.partial(jax.value_and_grad, argnums=range(5), has_aux=True)
    def loss(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = jnp.where(valid, function(*arrays, frames=frames), 0)
        return jnp.sum(out.astype(wide) * weight.astype(wide)), out

    (_, out), gradients = jax.jit(loss)(*arrays)
    return [np.asarray(x, wide) for x in (out, *gradients)]


@functools.cache
def exactly(frames: tuple[int, ...], *sizes: int) -> list[np.ndarray]:
    """`output_and_gradients` of the definition, for `inputs(*sizes)` in float64."""
    with jax.enable_x64(True):
        exact = output_and_gradients(plain, [x.astype(jnp.float64) for x in inputs(*sizes)], frames)
    assert all(x.dtype == np.float64 for x in exact)
    return exact


# --- Equal to the plain one ---------------------------------------------------------------------------------

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


def test_dropout_of_the_weights() -> None:
    """As the definition with the same weights dropped, and their gradients with them."""
    arrays, frames, rate, key = inputs(3, 17, 2, 8), [17, 9, 1], 0.3, jax.random.key(3)
    keep = kept(key, (3, 2, 17, 17), rate)
    assert abs(float(jnp.mean(keep)) - 0.7) < 0.05

    def expected(*arrays: jax.Array, frames: Any) -> jax.Array:
        return plain(*arrays, frames=frames, drop=lambda weights: apply(weights, keep, rate))

    got = output_and_gradients(functools.partial(by_xla, rate=rate, key=key), arrays, frames)
    for what, x, y in zip(
        ("out", *ARGUMENTS), got, output_and_gradients(expected, arrays, frames), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=SIMPLE, atol=SIMPLE, err_msg=what)


SEED = np.array([123456789, 4000000000], np.uint32)


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
        np.asarray(fused_attention_gpu.kept(jnp.asarray(seed, jnp.uint32), batch, heads, time, rate))
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
    fewer = fused_attention_gpu.kept(jnp.zeros(2, jnp.uint32), 2, heads, 100, rate)
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
    attend = prepare(config, table, valid, 2, training=True)
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
    tiled = fused_attention.tiles(table, block)
    assert tiled.shape == (2, 2 * count - 1, block, block)
    rows = [
        np.concatenate([tiled[:, i - j + count - 1].swapaxes(1, 2) for j in range(count)], axis=2)
        for i in range(count)
    ]
    whole = np.concatenate(rows, axis=1)
    np.testing.assert_array_equal(whole[:, :time, :time], toeplitz(table))


# --- The whole model ----------------------------------------------------------------------------------------


def model_outputs(reference: Reference, rows: Any, lengths: Any, **how: Any) -> tuple[jax.Array, Any]:
    """Logits of an evaluation, and the gradient of a training call without regularisation."""
    config = reference.config.replace(**NO_REGULARISATION, **how)
    params = split(load_model(reference.folder))[1]
    graphdef, _ = structure(config)

    @functools.partial(jax.grad, has_aux=True)
    def gradient(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, frames = merge(graphdef, params)(rows, lengths, key=key)
        valid = jnp.arange(logits.shape[1]) < frames[:, None]
        return jnp.mean(jnp.where(valid[:, :, None], jax.nn.log_softmax(logits)[:, :, :3], 0)), logits

    return jax.jit(gradient)(params, jax.random.key(0))[::-1]


@pytest.mark.parametrize(
    "how", [{}, pytest.param({"remat": "full", "unroll": 3}, marks=pytest.mark.slow)], ids=str
)
def test_model_with_pallas(large_reference: Reference, how: dict, measured: Callable[[str], None]) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 8000)).astype(np.float32)
    lengths = np.array([8000, 5000, 400])
    expected, expected_gradient = model_outputs(large_reference, rows, lengths, attention="xla")
    logits, gradient = model_outputs(large_reference, rows, lengths, attention="pallas", **how)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=DEEP)
    worst = 0.0
    for path, leaf in jax.tree.leaves_with_path(expected_gradient):
        got = functools.reduce(lambda tree, key: tree[key.key], path, gradient)
        np.testing.assert_allclose(got, leaf, rtol=DEEP, atol=DEEP, err_msg=str(path))
        worst = max(worst, float(np.abs(got - leaf).max()))
    bias = np.abs(expected_gradient["wavlm"]["encoder"]["bucket_bias"]).max()
    difference = float(np.abs(logits - expected).max())
    measured(
        f"tiny model, pallas against xla: logits {difference:.1e}, gradients {worst:.1e} (bias {bias:.1e})"
    )


def test_attention_dropout_is_never_left_out(large_reference: Reference) -> None:
    """A training call that cannot have its dropout is refused; an evaluation has none."""
    config = large_reference.config.replace(attention="pallas")
    assert config.attention_dropout > 0
    model = merge(*split(load_model(large_reference.folder, overrides={"attention": "pallas"})))
    rows = np.zeros((1, 800), np.float32)
    with pytest.raises(UserError, match="attention_dropout"):
        jax.eval_shape(lambda key: model(rows, key=key), jax.random.key(0))
    jax.eval_shape(lambda: model(rows))


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
@pytest.mark.parametrize("function", [by_pallas, by_pallas_gpu])
def test_sharded_over_devices(function: Callable) -> None:
    """Each device runs the kernel on its own rows: nothing of a batch's size is gathered."""
    arrays, frames = inputs(16, 19, 2, 8), np.arange(16) + 3
    weight = np.random.default_rng(2).random(size=arrays[0].shape).astype(np.float32)
    weight[np.arange(19) >= frames[:, None]] = 0

    def loss(function: Callable, *arrays: jax.Array) -> jax.Array:
        *arguments, frames = arrays
        return jnp.sum(jnp.square(function(*arguments, frames=frames)) * weight)

    mesh = sharding.make_mesh(fsdp=2)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    placed = (rows, rows, rows, rows, whole, rows)
    everything = [jax.device_put(x, place) for x, place in zip((*arrays, frames), placed, strict=True)]
    fused = jax.value_and_grad(functools.partial(loss, functools.partial(function, block=8)), range(5))
    compiled = jax.jit(fused, in_shardings=placed).lower(*everything).compile()
    program = compiled.as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", program)
    assert "all-reduce" in program  # the table's gradient
    got = compiled(*everything)
    expected = jax.jit(jax.value_and_grad(functools.partial(loss, plain), range(5)))(*arrays, frames)
    for x, y in zip(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=SIMPLE, atol=SIMPLE)
    np.testing.assert_allclose(got[0], expected[0], rtol=SIMPLE)
    assert [x.sharding.is_equivalent_to(p, x.ndim) for x, p in zip(got[1], placed[:5], strict=True)] == [
        True
    ] * 5


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_dropout_does_not_depend_on_the_devices() -> None:
    """The kernels for GPUs, a clip on each of eight devices and all of them on one."""
    arrays, frames = inputs(8, 11, 2, 16), np.arange(8) + 4
    weight = np.random.default_rng(2).normal(size=arrays[0].shape).astype(np.float32)

    def loss(frames: jax.Array, seed: jax.Array, qkv_bias: jax.Array, *arrays: jax.Array) -> jax.Array:
        how = {"block": 8, "rate": 0.3, "seed": seed, "qkv_bias": qkv_bias}
        return jnp.sum(by_pallas_gpu(*arrays, frames=frames, **how) * weight)

    gradient = jax.value_and_grad(loss, argnums=range(2, 8))
    mesh = sharding.make_mesh(fsdp=2)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    places = (rows, whole, whole, rows, rows, rows, rows, whole)
    arguments = (jnp.asarray(frames), jnp.asarray(SEED), biases(2, 16), *arrays)
    everything = [jax.device_put(x, place) for x, place in zip(arguments, places, strict=True)]
    compiled = jax.jit(gradient, in_shardings=places).lower(*everything).compile()
    assert not re.search(r"all-gather|all-to-all|collective-permute", compiled.as_text())
    got, expected = compiled(*everything), jax.jit(gradient)(*arguments)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_sharded_step() -> None:
    """One update on four by two devices with the kernel is one on a single device with the plain one."""
    convs = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 64)}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = WavLMConfig(**NO_REGULARISATION, **convs, **sizes, do_stable_layer_norm=True)
    params = split(WavLMForCTC(config, nnx.Rngs(0)))[1]
    rng = np.random.default_rng(0)
    batch = {
        "samples": rng.normal(size=(8, 6400)).astype(np.float32),
        "mean": np.zeros(8, np.float32),
        "scale": np.ones(8, np.float32),
        "lengths": np.arange(6400, 6400 - 8 * 400, -400, dtype=np.int32),
        "labels": rng.integers(1, 30, (8, 4)).astype(np.int32),
        "label_lengths": np.full(8, 3, np.int32),
        "valid": np.ones(8, bool),
    }
    optimizer = optax.sgd(1.0)

    def updated(name: str, mesh: Mesh) -> Any:
        graphdef, _ = structure(config.replace(attention=name))
        step = make_train_step(graphdef, optimizer, loss_of_ctc(0), seed=0)
        state = init_state(jax.tree.map(jnp.copy, params), {}, optimizer)
        state = jax.device_put(state, sharding.tree_sharding(mesh, state))
        state = jit_train_step(step, mesh, state)(state, sharding.put_batch(mesh, batch))
        return jax.device_get(state.params)

    auto = (AxisType.Auto, AxisType.Auto)
    one = jax.make_mesh((1, 1), sharding.BATCH_AXES, axis_types=auto, devices=jax.devices()[:1])
    expected, got = updated("xla", one), updated("pallas", sharding.make_mesh(fsdp=2))
    for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=DEEP, err_msg=str(path))
    moved = expected["wavlm"]["encoder"]["bucket_bias"] - params["wavlm"]["encoder"]["bucket_bias"]
    assert np.abs(moved).max() > 0


# --- Memory -------------------------------------------------------------------------------------------------


def shapes_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """The shape of every value in a program, those inside its loops, branches and kernels too."""
    for variable in (*jaxpr.invars, *jaxpr.constvars):
        yield getattr(variable.aval, "shape", ())
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "shape", ())
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


def layer_gradient(function: Callable) -> Callable:
    return jax.grad(lambda frames, *arrays: jnp.sum(function(*arrays, frames=frames)), argnums=range(1, 6))


def layer_inputs(batch: int, time: int, heads: int, size: int, dtype: Any = jnp.float32) -> list:
    """Shapes of the arguments of `layer_gradient`."""
    qkv = jax.ShapeDtypeStruct((batch, time, heads, size), dtype)
    gate, table = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, heads, time), (heads, 2 * time - 1))
    )
    return [jax.ShapeDtypeStruct((batch,), jnp.int32), qkv, qkv, qkv, gate, table]


@pytest.mark.parametrize("time", [517, 1500])
@pytest.mark.parametrize("fused", [by_pallas, by_pallas_gpu])
def test_nothing_is_frames_by_frames(time: int, fused: Callable) -> None:
    def squares(function: Callable) -> list[tuple[int, ...]]:
        jaxpr = jax.make_jaxpr(layer_gradient(function))(*layer_inputs(2, time, 3, 64))
        long = [[size for size in shape if size >= time] for shape in shapes_in(jaxpr.jaxpr)]
        return [tuple(sizes) for sizes in long if len(sizes) > 1]

    assert not squares(fused)
    assert squares(plain)  # the walk can see them
    # Inside: kernels, and loops over them.
    inner = list(shapes_in(jax.make_jaxpr(layer_gradient(fused))(*layer_inputs(2, time, 3, 64)).jaxpr))
    block = 128 if fused is by_pallas else 32
    assert (block, block) in inner


def test_model_with_pallas_holds_no_bias() -> None:
    """Nor does the model around the kernel."""
    config = WavLMConfig(
        **NO_REGULARISATION, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, attention="pallas"
    )
    rows = jax.ShapeDtypeStruct((2, 320 * 331 + 80), jnp.float32)
    time = config.frame_count(rows.shape[1])
    assert time == 331

    def squares(config: WavLMConfig) -> int:
        graphdef, params = structure(config)

        def loss(params: Any, rows: jax.Array) -> jax.Array:
            return jnp.sum(
                merge(graphdef, params)(rows, jnp.array([time * 320, 9000]), key=jax.random.key(0))[0]
            )

        jaxpr = jax.make_jaxpr(jax.grad(loss))(params, rows)
        return sum(shape.count(time) > 1 for shape in shapes_in(jaxpr.jaxpr))

    assert squares(config) == 0
    assert squares(config.replace(attention="xla")) > 0


def memory_exponent(function: Callable, times: list[int]) -> tuple[float, list[float]]:
    """The power of T with which a layer's temporary memory grows, forward and backward; and megabytes."""
    sizes = []
    for time in times:
        compiled = jax.jit(layer_gradient(function)).lower(*layer_inputs(1, time, 4, 64)).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes / 1e6)
    exponent, _ = np.polyfit(np.log(times), np.log(sizes), 1)
    return float(exponent), sizes


@pytest.mark.slow
def test_memory_is_linear_in_the_frames(measured: Callable[[str], None]) -> None:
    """5 to 60 s of speech."""
    times = [250, 500, 1000, 2000, 3000]
    for name, function in (("pallas", by_pallas), ("xla", plain)):
        exponent, sizes = memory_exponent(function, times)
        figures = ", ".join(f"{size:.1f}" for size in sizes)
        measured(f"memory of {name} for {times} frames: {figures} MB, exponent {exponent:.2f}")
        if name == "pallas":
            assert exponent <= 1.1
        else:
            assert exponent > 1.5


# --- For other platforms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("time", [199, 200, 399, 512, 1500, 2999])
def test_lowers_for_tpu(time: int, dtype: Any) -> None:
    """Forward and backward: one kernel, and three more."""
    arguments = layer_inputs(2, time, 16, 64, dtype)
    forward = jax.jit(lambda frames, *arrays: by_pallas(*arrays, frames=frames))
    for function, kernels in ((forward, 1), (jax.jit(layer_gradient(by_pallas)), 4)):
        program = jax.export.export(function, platforms=["tpu"])(*arguments).mlir_module()
        assert program.count("@tpu_custom_call") == kernels


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("time", [199, 2999])
def test_lowers_for_cuda(time: int, dtype: Any) -> None:
    """Forward and backward: one kernel, and three more."""

    fused = functools.partial(by_pallas_gpu, interpret=False)
    triton = "__gpu$xla.gpu.triton"
    exported = jax.export.export(
        jax.jit(layer_gradient(fused)),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(triton)],
    )(*layer_inputs(2, time, 16, 64, dtype))
    assert exported.mlir_module().count(f"@{triton}") == 4


def test_dropout_lowers_for_cuda() -> None:
    triton = "__gpu$xla.gpu.triton"

    def dropped(*arrays: jax.Array, frames: jax.Array) -> jax.Array:
        seed = jnp.asarray(SEED)
        return by_pallas_gpu(*arrays, frames=frames, rate=0.1, seed=seed, interpret=False)

    exported = jax.export.export(
        jax.jit(layer_gradient(dropped)),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(triton)],
    )(*layer_inputs(2, 200, 16, 64, jnp.bfloat16))
    assert exported.mlir_module().count(f"@{triton}") == 4


@pytest.mark.parametrize("time", [199, 200])
def test_cudnn_lowers_for_cuda(time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes without a GPU: cuDNN's version is not there to be asked for."""
    own = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(own, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(own, "check_compute_capability", lambda _: True)

    def fused(*arrays: jax.Array, frames: jax.Array) -> jax.Array:
        *qkv_gate, table = arrays
        return cudnn(*qkv_gate, toeplitz(table), frames)

    arguments = layer_inputs(2, time, 16, 64, jnp.bfloat16)
    lowered = jax.jit(layer_gradient(fused)).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    kernels = re.findall(r"@__cudnn\$(\w+)", lowered)
    assert kernels == ["fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"]

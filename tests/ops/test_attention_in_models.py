"""Fused attention in a whole model, and over several devices."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.attention import (
    DEEP,
    SEED,
    SIMPLE,
    biases,
    by_pallas,
    by_pallas_gpu,
    inputs,
    plain,
)
from helpers.reference import NO_REGULARISATION, Reference
from jax.sharding import AxisType, Mesh

from flax_wavlm import WavLMConfig, WavLMForCTC
from flax_wavlm.errors import UserError
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import merge, split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.training.state import init_state
from flax_wavlm.training.step import jit_train_step, make_train_step


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

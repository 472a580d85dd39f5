"""Fused attention as programs for GPUs and TPUs, and the memory that it plans."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.attention import (
    SEED,
    by_pallas,
    by_pallas_gpu,
    plain,
)
from helpers.reference import NO_REGULARISATION
from jax.extend.core import jaxprs_in_params

from flax_wavlm import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import merge
from flax_wavlm.ops.attention.cudnn import cudnn
from flax_wavlm.ops.attention.reference import toeplitz


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

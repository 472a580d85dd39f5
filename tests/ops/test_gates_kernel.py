"""The kernel of the gates' gradient, interpreted, against the plain operations of ops.py."""

import re
from typing import Any

import jax
import pytest
from helpers.kernels import equal, normal, triton_kernels

from flax_wavlm.ops.gates import gpu as fused_gates
from flax_wavlm.ops.gates.api import gates, gates_gradient
from flax_wavlm.parallel import sharding


def arrays_of(shape: tuple[int, int, int, int], dtype: str) -> tuple[jax.Array, ...]:
    """x, kernel, d x, d gate, and three slopes."""
    batch, time, heads, size = shape
    return (
        normal(0, *shape, dtype=dtype),
        normal(1, size, 8, dtype=dtype),
        normal(2, *shape, dtype=dtype),
        *(normal(seed, batch, heads, time) for seed in range(3, 7)),
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 16, 4, 8), "float32"),  # tiles without a rest
        ((3, 13, 2, 12), "float32"),  # frames and head size padded
        ((2, 5, 3, 1), "float32"),  # less wide than what a program adds up
        ((1, 1, 1, 64), "float32"),
        ((3, 13, 2, 16), "bfloat16"),
        ((2, 9, 12, 24), "bfloat16"),
    ],
    ids=str,
)
def test_kernel_equals_the_definition(
    shape: tuple[int, int, int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiles of 4 frames, so that programs have some each, and not equally many."""
    width = max(2 ** (shape[-1] - 1).bit_length(), 4)
    monkeypatch.setattr(fused_gates, "TILE", 4 * width)
    monkeypatch.setattr(fused_gates, "PROGRAMS", 3 * shape[2])
    arrays = arrays_of(shape, dtype)
    equal(
        fused_gates.backward(*arrays, interpret=True),
        jax.jit(gates_gradient, static_argnums=0)("highest", *arrays),
    )


def test_tiles_longer_than_a_clip() -> None:
    """As cut for an H100: fewer frames than in a tile, and one tile a program."""
    arrays = arrays_of((2, 9, 2, 64), "bfloat16")
    equal(fused_gates.backward(*arrays, interpret=True), gates_gradient("highest", *arrays))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_cuda(dtype: str) -> None:
    """One kernel, backward."""
    x, kernel = normal(0, 2, 5, 3 * 24, dtype=dtype), normal(1, 24, 8, dtype=dtype)

    def gradient(*arrays: jax.Array) -> Any:
        y, pull = jax.vjp(gates, *arrays)
        return y, pull(y)

    assert triton_kernels(gradient, x, kernel, normal(2, 8), normal(3, 3)) == 1


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_sharded_over_devices() -> None:
    """Each device runs the kernel on its own clips; the gradients of parameters alone are summed."""
    arrays = arrays_of((8, 3, 2, 16), "float32")
    mesh = sharding.make_mesh(fsdp=2)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    placed = (rows, whole, *[rows] * 5)
    everything = [jax.device_put(array, place) for array, place in zip(arrays, placed, strict=True)]

    def fused(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return fused_gates.backward(*arrays, interpret=True)

    compiled = jax.jit(fused, in_shardings=placed).lower(*everything).compile()
    program = compiled.as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", program)
    assert len(re.findall(r" all-reduce(-start)?\(", program)) == 1
    got = compiled(*everything)
    equal(got, gates_gradient("highest", *arrays))
    assert got[0].sharding.is_equivalent_to(rows, 4)

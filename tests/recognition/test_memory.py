"""A device that is out of memory in an evaluation or a transcription: one line that names a smaller batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.errors import refused

from flax_wavlm.cli import app
from flax_wavlm.cli.names import in_flags
from flax_wavlm.data.clips import Clip
from flax_wavlm.errors import UserError
from flax_wavlm.parallel import machine, memory, sharding
from flax_wavlm.recognition import memory as explanation
from flax_wavlm.recognition.forward import ClipBatches, jit_over_batches, run_over

pytestmark = pytest.mark.usefixtures("one_device")


def evaluated(message: str, monkeypatch: pytest.MonkeyPatch, batch_size: int = 8) -> None:
    """Runs over batches of clips of a second, with a device that fails at the second batch."""
    put_batch, calls = sharding.put_batch, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise jax.errors.JaxRuntimeError(message)
        return put_batch(*arguments)

    def total(scale: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.sum(jnp.sort(batch["samples"] * scale))

    monkeypatch.setattr(sharding, "put_batch", failing)
    clip = Clip("a", np.ones(16_000, np.int16), np.zeros(1, np.int32), "", "")
    batches = ClipBatches([clip] * 2 * batch_size, batch_size, 1, do_normalize=False)
    mesh = sharding.make_mesh()
    scale = jax.device_put(jnp.float32(1), sharding.replicated(mesh))
    assert len(list(run_over(jit_over_batches(total, mesh), scale, batches, mesh, field="batch_size"))) == 2


FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 41000000000 bytes.\nBuffer 1: ..."


def test_a_smaller_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(
        r"ran out of memory: by XLA's plan, batch_size=8 of clips of up to 1\.00 s needs .* GB",
        field="batch_size",
        do=r"set batch_size=6, which needs [\d.e-]+ GB$",
    ):
        evaluated(FULL, monkeypatch)


def test_it_is_one_line_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as raised:
        evaluated(FULL, monkeypatch)
    for command in ("evaluate", "transcribe"):
        said = str(in_flags(raised.value, app.COMMANDS[command].fields))
        assert "set --batch_size=6, which needs" in said
        assert "\n" not in said
        assert "RESOURCE" not in said


def test_a_single_clip_that_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(do="no smaller batch fits: leave out the longest clips"):
        evaluated(FULL, monkeypatch, batch_size=1)


def test_the_advice_fits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "device_bytes", lambda: 70)
    monkeypatch.setattr(explanation, "forward_bytes", lambda *arguments: 10 * arguments[-1])
    with refused("needs 8e-08 GB of the 7e-08 GB there are", do="set batch_size=6, which needs 6e-08 GB$"):
        evaluated(FULL, monkeypatch)


def test_another_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        evaluated("INTERNAL: something else", monkeypatch)


@pytest.mark.parametrize(
    ("batch_size", "unit", "sizes"),
    [
        (8, 1, [6, 4, 3, 2, 1]),
        (8, 2, [6, 4, 2]),
        (24, 8, [16, 8]),
        (10, 1, [7, 5, 3, 2, 1]),
        (32, 8, [24, 16, 8]),
        (1, 1, []),
    ],
)
def test_smaller_batches(batch_size: int, unit: int, sizes: list[int]) -> None:
    assert memory.smaller(batch_size, unit) == sizes


def test_held_memory_grows_by_what_is_allocated_and_is_given_back() -> None:
    before = machine.held_bytes()
    if not before:
        pytest.skip("the system does not say")
    array = np.ones(64 << 20, np.uint8)
    assert 0.9 * array.nbytes < machine.held_bytes() - before < 1.5 * array.nbytes
    del array
    memory.release_freed()
    assert machine.held_bytes() - before < 32 << 20

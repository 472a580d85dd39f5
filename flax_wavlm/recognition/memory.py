"""Evaluation and transcription on a device that is out of memory: what a smaller batch would need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError
from flax_wavlm.parallel.machine import held_bytes, in_gb
from flax_wavlm.parallel.memory import (
    OUT_OF_MEMORY,
    device_bytes,
    on_cpu,
    planned_bytes,
    smaller,
)

SCORE_BYTES = 12  # that a CPU holds for each attention score of a batch, measured for windows of 60 to 100 s


class Batches(Protocol):
    """Batches of clips, as `forward.ClipBatches` and `recordings.WindowBatches` have them."""

    batch_size: int

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...

    def longest(self) -> dict[str, np.ndarray]:
        """A batch of the largest shape."""
        ...


def forward_bytes(function: Any, params: Any, batch: Mapping[str, np.ndarray], rows: int) -> int:
    """Bytes that a function of parameters and a batch needs on each device. It is compiled and not run.

    Args:
        function: jitted, (params, batch) -> results.
        params: arrays, or their shapes with shardings.
        batch: one that has the shapes of all others of its length.
        rows: clips of all devices together, in place of those that the batch has.
    """
    shapes = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    return planned_bytes(function.lower(params, shapes).compile().memory_analysis())


@contextlib.contextmanager
def out_of_memory_explained(
    function: Any, params: Any, batches: Batches, devices: int, field: str
) -> Iterator[None]:
    """Turns XLA's report of a device that is out of memory into one line that says what to change.

    Args:
        function, params: as in `forward_bytes`.
        batches: of which the longest is looked at.
        devices: a batch's size is a multiple of their number.
        field: what sets the batch size.
    Raises:
        UserError: in place of jax's error. Its advice was compiled for these devices.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        batch, limit = batches.longest(), device_bytes()
        seconds = batch["samples"].shape[1] / SAMPLE_RATE
        needed = forward_bytes(function, params, batch, batches.batch_size)
        there = f"of the {in_gb(limit)} there are" if limit else "of its memory"
        raise UserError(
            f"the device ran out of memory: by XLA's plan, {field}={batches.batch_size} of clips of up to "
            f"{seconds:.2f} s needs {in_gb(needed)} {there}",
            field=field,
            do=smaller_batch(function, params, batches, devices, field, min(limit or needed, needed - 1)),
        ) from None


def smaller_batch(
    function: Any,
    params: Any,
    batches: Batches,
    devices: int,
    field: str,
    most: int,
) -> str:
    """A sentence about the largest smaller batch that needs no more than `most` bytes. It was compiled."""
    batch = batches.longest()
    for size in smaller(batches.batch_size, devices):
        if (needed := forward_bytes(function, params, batch, size)) <= most:
            return f"set {field}={size}, which needs {in_gb(needed)}"
    return "no smaller batch fits: leave out the longest clips, or cut them up at pauses"


def check_memory(
    function: Any,
    params: Any,
    batches: Batches,
    devices: int,
    field: str,
    *,
    seconds: float,
    scores: int,
) -> None:
    """UserError where the longest batch needs more than the device's memory, before anything is computed.

    On a CPU it is reckoned by the attention scores, because XLA's plan leaves out what its libraries take for
    products. Elsewhere it is XLA's plan.

    Args:
        function, params, batches, devices, field: as for `out_of_memory_explained`.
        seconds: of a window.
        scores: of the attention of one window in one layer.
    """
    limit, held = device_bytes(), held_bytes()

    def needed(rows: int) -> int:
        if on_cpu():
            return held + SCORE_BYTES * scores * rows
        return forward_bytes(function, params, batches.longest(), rows)

    size = batches.batch_size
    if not limit or (asked := needed(size)) <= limit:
        return
    fits = next((rows for rows in smaller(size, devices) if needed(rows) <= limit), 0)
    raise UserError(
        f"{field}={size} with windows of {seconds:.0f} s needs {in_gb(asked)}, of {in_gb(limit)} there are",
        field=field if fits else "window",
        do=f"set {field}={fits}, which needs {in_gb(needed(fits))}" if fits else "set a shorter window",
    )

"""What a training step needs of a device's memory, by XLA's plan of the compiled step, and what to change.

The plan has the parameters, the optimizer's moments, the batch, and the largest amount of temporary arrays
that live at the same time. It does not have what the runtime takes for itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_wavlm.data.batches import Batches
from flax_wavlm.errors import UserError
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.prepare import Parts, Programs, make_programs
from flax_wavlm.training.step import STEP_INPUTS

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
REMAT = ("dots", "full")  # the settings of model.remat that save memory, the cheaper one first


def step_bytes(programs: Programs, batches: Batches, samples: int, batch_size: int = 0) -> int:
    """Bytes that a step on clips padded to `samples` needs on each device. It is compiled and not run.

    Args:
        programs: of the run.
        batches: of the run; they say what a batch is made of.
        samples: padded length of the clips.
        batch_size: clips of all devices together; 0: the run's.
    """
    batch = _shapes(batches, samples, batch_size or batches.rows(samples))
    return max(_needed(plan) for plan in programs.train_step.plans(programs.template, batch))


def _needed(plan: Any) -> int:
    """The bytes of a plan: what goes in and out, an array that is both counted once, and temporary arrays."""
    return int(
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.generated_code_size_in_bytes
    )


def _shapes(batches: Batches, samples: int, rows: int) -> dict[str, Any]:
    """A batch of so many clips as shapes and types, over all processes."""
    step = next(step for step in range(batches.steps_per_epoch) if batches.samples(step) == samples)
    batch = {name: array for name, array in batches[step].items() if name in STEP_INPUTS}
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype) for name, array in batch.items()
    }


def device_bytes() -> int:
    """The memory of a device; of a CPU, what the machine or the container gives the process. 0: unknown."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if limit := statistics.get("bytes_limit", 0):
        return int(limit)
    if jax.local_devices()[0].platform != "cpu":
        return 0
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return min(limits)


def in_gb(count: float) -> str:
    """Bytes in GB (10^9), as vendors count a device's memory."""
    return f"{count / 1e9:.3g} GB"


def advice(config: TrainConfig, run: Parts, limit: int) -> str:
    """What to change so that the longest batch needs no more than `limit` bytes: settings that were tried.

    A smaller batch and `model.remat` are compiled, one after the other, until one of each fits.
    """
    batches = run.speech.train
    longest = max(batches.buckets)
    found = []
    unit = int(np.prod(run.mesh.devices.shape)) * config.train.accumulation
    sizes = [size for size in _smaller(batches.rows(longest)) if size % unit == 0]
    for size in sizes:
        if (needed := step_bytes(run.programs, batches, longest, size)) <= limit:
            found.append(f"train.batch_size={size} needs {in_gb(needed)}")
            break
    for remat in REMAT[REMAT.index(run.origin.config.remat) + 1 if run.origin.config.remat in REMAT else 0 :]:
        origin = run.origin._replace(config=run.origin.config.replace(remat=remat))
        programs = make_programs(config, origin, run.mesh, len(batches))
        if (needed := step_bytes(programs, batches, longest)) <= limit:
            found.append(f"model.remat={remat} needs {in_gb(needed)}")
            break
    if found:
        return f"set one of: {', '.join(found)}"
    return "no smaller batch and no setting of model.remat fits: take shorter clips (data.train_max_seconds)"


def _smaller(batch_size: int) -> list[int]:
    """Batch sizes to try: three quarters and a half of each power of two of the whole, descending."""
    sizes, size = [], float(batch_size)
    while size >= 1:
        sizes += [int(size * 0.75), int(size * 0.5)]
        size /= 2
    return sorted({size for size in sizes if size >= 1}, reverse=True)


@contextlib.contextmanager
def out_of_memory_explained(config: TrainConfig, run: Parts) -> Iterator[None]:
    """Turns XLA's report of a device that is out of memory into one line that says what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        limit = device_bytes()
        batches = run.speech.train
        needed = step_bytes(run.programs, batches, max(batches.buckets))
        there = f"of the {in_gb(limit)} there are" if limit else "of its memory"
        # By the plan alone it may fit: the runtime, and other programs, take memory too.
        fits = min(limit or needed, needed - 1)
        raise UserError(
            "the device ran out of memory: by XLA's plan, a step of "
            f"train.batch_size={batches.batch_size} on the longest clips needs {in_gb(needed)} {there}",
            do=advice(config, run, fits),
        ) from None

"""What a run needs of a device's memory, by XLA's plans of its compiled programs, and what to change.

A plan has the parameters, the optimizer's moments, the batch, and the largest amount of temporary arrays
that live at the same time. It does not have what the runtime takes for itself, or on a CPU the rest of the
process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError
from flax_wavlm.models.parameters import combine
from flax_wavlm.parallel.machine import in_gb
from flax_wavlm.parallel.memory import (
    OUT_OF_MEMORY,
    array_bytes,
    device_bytes,
    planned_bytes,
    smaller,
)
from flax_wavlm.recognition.memory import forward_bytes
from flax_wavlm.training.checkpoints import saved_trees
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.integrity import checksums_plan
from flax_wavlm.training.prepare import Parts, Programs, make_programs
from flax_wavlm.training.step import STEP_INPUTS

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
    return max(map(planned_bytes, programs.train_step.plans(programs.template, batch)))


def evaluation_bytes(run: Parts, *, state_too: bool = True) -> int:
    """Bytes that an evaluation on the longest clips needs on each device.

    `state_too`: with the rest of the training state, which waits meanwhile.
    """
    state = run.programs.template
    params = combine(state.params, state.frozen)
    needed = forward_bytes(run.eval_step, params, next(iter(run.speech.dev)), run.speech.dev.batch_size)
    return needed + (array_bytes(state) - array_bytes(params) if state_too else 0)


def saving_bytes(run: Parts) -> int:
    """Bytes that a checkpoint needs on each device while its checksums are computed.

    On a CPU its writing needs no more: encoded arrays are not larger than temporary ones of the checksums.
    """
    return planned_bytes(checksums_plan(saved_trees(run.programs.template)))


def _shapes(batches: Batches, samples: int, rows: int) -> dict[str, Any]:
    """A batch of so many clips of a padded length as shapes and types, over all processes."""
    padded = {"samples": samples}
    if batches.features is not None:
        padded["features"] = batches.features.frame_count(samples)
    found = {}
    for name, array in batches[0].items():
        if name in STEP_INPUTS:
            rest = array.shape[1:] if name not in padded else (padded[name], *array.shape[2:])
            found[name] = jax.ShapeDtypeStruct((rows, *rest), array.dtype)
    return found


def largest(batches: Batches) -> int:
    """The padded length of the batches that have most samples, the longest of those."""
    return max(batches.buckets, key=lambda samples: (batches.rows(samples) * samples, samples))


def batch_setting(config: TrainConfig, rows: int, samples: int) -> str:
    """The setting that gives batches of so many clips of this padded length, as "field=value"."""
    if config.train.batch_seconds:
        return f"train.batch_seconds={rows * samples / SAMPLE_RATE:g}"
    return f"train.batch_size={rows}"


def advice(config: TrainConfig, run: Parts, limit: int) -> str:
    """What to change so that the largest batch needs no more than `limit` bytes: settings that were tried.

    A smaller batch and `model.remat` are compiled, one after the other, until one of each fits.
    """
    batches = run.speech.train
    samples = largest(batches)
    found = []
    for size in smaller(batches.rows(samples), run.mesh.size * config.train.accumulation):
        if (needed := step_bytes(run.programs, batches, samples, size)) <= limit:
            found.append(f"{batch_setting(config, size, samples)} needs {in_gb(needed)}")
            break
    for remat in REMAT[REMAT.index(run.origin.config.remat) + 1 if run.origin.config.remat in REMAT else 0 :]:
        origin = run.origin._replace(config=run.origin.config.replace(remat=remat))
        programs = make_programs(config, origin, run.mesh, len(batches))
        if (needed := step_bytes(programs, batches, samples)) <= limit:
            found.append(f"model.remat={remat} needs {in_gb(needed)}")
            break
    if found:
        return f"set one of: {', '.join(found)}"
    return "no smaller batch and no setting of model.remat fits: take shorter clips (data.train_max_seconds)"


@contextlib.contextmanager
def out_of_memory_explained(config: TrainConfig, run: Parts) -> Iterator[None]:
    """Turns XLA's report of a device that is out of memory into one line that says what to change.

    It is for training. An evaluation explains itself (`recognition.memory`).
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        limit = device_bytes()
        samples = largest(batches := run.speech.train)
        needed = step_bytes(run.programs, batches, samples)
        there = f"of the {in_gb(limit)} there are" if limit else "of its memory"
        # By the plan alone it may fit: the runtime, and other programs, take memory too.
        fits = min(limit or needed, needed - 1)
        raise UserError(
            "the device ran out of memory: by XLA's plan, a step of "
            f"{batch_setting(config, batches.rows(samples), samples)} on the longest clips needs "
            f"{in_gb(needed)} {there}",
            do=advice(config, run, fits),
        ) from None

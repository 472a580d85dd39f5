"""`train --dry_run`: reads and checks everything, trains nothing, and says what the run would take.

It compiles the programs of the run, makes a few steps of each length, evaluates a few batches and writes one
checkpoint, to time them. Decoded audio and compiled programs are kept, as a run keeps them, so the run that
follows begins sooner.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.corpora.utterance import Skipped
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.files import write_atomically, writing
from flax_wavlm.models.parameters import combine
from flax_wavlm.parallel.machine import held_bytes, in_gb
from flax_wavlm.parallel.memory import device_bytes, on_cpu, release_freed
from flax_wavlm.recognition.memory import smaller_batch
from flax_wavlm.training.config import LoopSettings, TrainConfig
from flax_wavlm.training.memory import (
    advice,
    batch_setting,
    evaluation_bytes,
    largest,
    saving_bytes,
    step_bytes,
)
from flax_wavlm.training.prepare import Parts
from flax_wavlm.training.report.dry_run import Bucket, report
from flax_wavlm.training.speech import Speech
from flax_wavlm.training.trial import Timed, Trial, agreed

log = logging.getLogger(__name__)

BINS = 10  # of the histogram


class _Device(NamedTuple):
    """The memory of a device."""

    limit: int  # 0: unknown
    held: int  # on a CPU, what the process holds beside the arrays of the run; else 0

    @property
    def free(self) -> int:
        return self.limit - self.held

    def fits(self, needed: int) -> bool:
        return not self.limit or needed <= self.free


def foretell(config: TrainConfig, run: Parts, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """What the run would read, need and take; also in `dry_run.json` in its workdir, and in the log.

    Args:
        config: of the run.
        run: its parts.
        warnings: that were given while these were prepared.
    Raises:
        UserError: the workdir cannot be written.
    """
    batches = run.speech.train
    steps = steps_by_bucket(batches)
    plans = {samples: _plan(run, samples) for samples in sorted(steps)}
    evaluating, saving = evaluation_bytes(run), saving_bytes(run)
    device = _device()
    fitting = [samples for samples, plan in plans.items() if device.fits(plan[0])]
    all_fit = len(fitting) == len(plans) and device.fits(max(evaluating, saving))
    timed: dict[int, Timed] = {}
    evaluation, (save_seconds, save_bytes) = None, (None, None)
    if fitting:
        trial = Trial(run)
        timed = {samples: trial.step(samples) for samples in fitting}
        if all_fit:
            scratch = Path(config.workdir) / "dry_run"  # removed again
            evaluation = trial.evaluation(scratch)
            # After some steps: before them all moments are zero, which takes hardly any room on the disk.
            save_seconds, save_bytes = trial.checkpoint(scratch)
        del trial
    device = _device()  # now with all that is loaded or compiled for a run
    buckets = [
        Bucket(
            seconds=samples / SAMPLE_RATE,
            steps=steps[samples],
            memory_bytes=plan[0],
            seconds_per_step=timed[samples].seconds if samples in timed else None,
            compile_seconds=plan[1],
            start_seconds=timed[samples].start if samples in timed else None,
        )
        for samples, plan in plans.items()
    ]
    most = max(bucket.memory_bytes for bucket in buckets)
    found = {
        **what_there_is(run.speech),
        "warnings": list(warnings),
        "vocabulary": run.origin.tokenizer.size,
        "steps": len(batches),
        "steps_per_epoch": batches.steps_per_epoch,
        "padding": batches.padding(),
        "device": jax.devices()[0].device_kind,
        "device_bytes": device.limit,
        "held_bytes": device.held,
        "memory_bytes": {f"{bucket.seconds:.2f}": bucket.memory_bytes for bucket in buckets},
        "peak_bytes": device.held + max(most, evaluating, saving),
        "buckets": [bucket._asdict() for bucket in buckets],
        "evaluation": {
            "memory_bytes": evaluating,
            "seconds": evaluation and evaluation.seconds,
            "start_seconds": evaluation and evaluation.start,
            "count": _due(len(batches), config.train.eval_every),
        },
        "checkpoint": {
            "memory_bytes": saving,
            "seconds": save_seconds,
            "disk_bytes": save_bytes,
            "count": _checkpoints(len(batches), config.train),
        },
        "aligner": config.train.aligner,
        "advice": list(_advice(config, run, device, most, evaluating)),
    }
    found |= _seconds(found)
    if jax.process_index() == 0:
        path = Path(config.workdir) / "dry_run.json"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    log.info("%s", report(found))
    return found


# --- Memory and time ----------------------------------------------------------------------------------------


def _plan(run: Parts, samples: int) -> tuple[int, float]:
    """Bytes that a step on clips padded to `samples` needs, and the seconds until it was compiled."""
    began = time.perf_counter()
    needed = step_bytes(run.programs, run.speech.train, samples)
    return needed, time.perf_counter() - began


def _device() -> _Device:
    """A device's memory now, when no array of a run is there."""
    held = 0
    if on_cpu():
        gc.collect()
        release_freed()
        held = int(agreed(held_bytes()))
    return _Device(device_bytes(), held)


def _advice(
    config: TrainConfig, run: Parts, device: _Device, training: int, evaluating: int
) -> Iterator[str]:
    """What to change where the memory does not suffice."""
    free = in_gb(device.free) + (f" that the process leaves of {in_gb(device.limit)}" if device.held else "")
    if not device.fits(training):
        samples = largest(run.speech.train)
        setting = batch_setting(config, run.speech.train.rows(samples), samples)
        yield f"{setting} needs {in_gb(training)} of {free}: {advice(config, run, device.free)}"
    if not device.fits(evaluating):
        state = run.programs.template
        waiting = evaluating - evaluation_bytes(run, state_too=False)
        yield (
            f"train.eval_batch_size={config.train.eval_batch_size} needs {in_gb(evaluating)} of {free}: "
            + smaller_batch(
                run.eval_step,
                combine(state.params, state.frozen),
                run.speech.dev,
                run.mesh.size,
                "train.eval_batch_size",
                device.free - waiting,
            )
        )


def _seconds(found: dict[str, Any]) -> dict[str, float | None]:
    """Seconds of a step in the mean, of all, and from the first to the last evaluation; None: no room."""
    buckets, evaluation, checkpoint = found["buckets"], found["evaluation"], found["checkpoint"]
    if evaluation["seconds"] is None:
        return {"seconds_per_step": None, "training_seconds": None, "total_seconds": None}
    training = sum(bucket["steps"] * bucket["seconds_per_step"] for bucket in buckets)
    total = (
        training
        + sum(bucket["start_seconds"] for bucket in buckets)
        + evaluation["count"] * evaluation["seconds"]
        + evaluation["start_seconds"]
        + checkpoint["count"] * checkpoint["seconds"]
    )
    return {
        "seconds_per_step": training / found["steps"],
        "training_seconds": training,
        "total_seconds": total,
    }


def steps_by_bucket(batches: Batches) -> dict[int, int]:
    """Padded samples to the number of the run's steps that have it."""
    return dict(Counter(batches.samples(step) for step in range(len(batches))))


def _due(steps: int, every: int) -> int:
    """How often something is due that comes every so many steps (0: never), and at the end."""
    return -(-steps // every) if every else 1


def _checkpoints(steps: int, loop: LoopSettings) -> int:
    """The number of steps that are followed by a checkpoint."""
    due = {steps}
    for every in (loop.eval_every, loop.save_every):
        due.update(range(every, steps, every) if every else ())
    return len(due)


# --- What there is to read ----------------------------------------------------------------------------------


@contextlib.contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """Gives a list that gets the text of each warning of the package within the block."""
    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    logger, handler = logging.getLogger("flax_wavlm"), Keep(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield kept
    finally:
        logger.removeHandler(handler)


def what_there_is(speech: Speech) -> dict[str, Any]:
    """The fields of `dry_run.json` about the clips: their number, hours, lengths, those left out, leaks."""
    splits = {name: _split(clips, speech.skipped.get(name, ())) for name, clips in speech.clips().items()}
    return {
        "clips": {name: split["clips"] for name, split in splits.items()},
        "hours": {name: split["hours"] for name, split in splits.items()},
        "skipped": dict(sum((Counter(split["skipped"]) for split in splits.values()), Counter())),
        "splits": splits,
        "leaks": list(speech.leaks),
    }


def _split(clips: Sequence[Clip], skipped: Sequence[Skipped]) -> dict[str, Any]:
    seconds = np.array([len(clip.samples) for clip in clips]) / SAMPLE_RATE
    counts, edges = np.histogram(seconds, BINS, (0, float(seconds.max())))
    return {
        "clips": len(clips),
        "hours": float(seconds.sum() / 3600),
        "speakers": len({clip.speaker for clip in clips} - {""}),
        "skipped": dict(Counter(clip.reason.partition(":")[0] for clip in skipped).most_common()),
        "seconds": {
            "shortest": float(seconds.min()),
            "median": float(np.median(seconds)),
            "longest": float(seconds.max()),
        },
        "histogram": {"edges": edges.tolist(), "clips": counts.tolist()},
    }

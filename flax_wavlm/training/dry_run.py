"""`train --dry_run`: reads and checks everything, trains nothing, and says what the run would take.

It compiles the steps of the run and makes a few of each to time them. Their results are thrown away. Decoded
audio and compiled programs are kept, as a run keeps them, so the run that follows begins sooner.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.files import write_atomically, writing
from flax_wavlm.models.parameters import combine
from flax_wavlm.parallel import sharding
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.memory import advice, device_bytes, in_gb, step_bytes
from flax_wavlm.training.prepare import Parts
from flax_wavlm.training.state import TrainState
from flax_wavlm.training.step import STEP_INPUTS

log = logging.getLogger(__name__)

TIMED_SECONDS = 3.0  # of steps of one length, and
TIMED_STEPS = 3  # at least so many
BINS = 10  # of the histogram
WIDTH = 40  # of its longest bar, in characters


class Bucket(NamedTuple):
    """What the run does with clips of one padded length.

    Attributes:
        seconds: the padded length.
        steps: of the whole run.
        bytes: that a step needs on a device, by XLA's plan.
        step_seconds: median of the steps that were timed; None where the step does not fit the device.
        compile_seconds: until the first step had ended.
    """

    seconds: float
    steps: int
    bytes: int
    step_seconds: float | None
    compile_seconds: float


def foretell(config: TrainConfig, run: Parts) -> dict[str, Any]:
    """What the run would read, need and take; also in `dry_run.json` in its workdir, and in the log.

    Raises UserError where the file cannot be written.
    """
    batches = run.speech.train
    limit = device_bytes()
    steps = steps_by_bucket(batches)
    buckets = []
    state = None
    for samples in sorted(steps):
        began = time.perf_counter()
        needed = step_bytes(run.programs, batches, samples)
        seconds = None
        if not limit or needed <= limit:
            state = run.programs.new_state() if state is None else state
            seconds, state = _timed(run, state, samples)
        compiling = time.perf_counter() - began - (seconds or 0) * TIMED_STEPS
        buckets.append(Bucket(samples / SAMPLE_RATE, steps[samples], needed, seconds, compiling))
    evaluation = _timed_evaluation(run, state) if state is not None else None
    found = {
        "splits": {name: _split(clips) for name, clips in run.speech.clips().items()},
        "skipped": {name: _by_reason(skipped) for name, skipped in run.speech.skipped.items()},
        "leaks": run.speech.leaks,
        "vocabulary": run.origin.tokenizer.size,
        "steps": len(batches),
        "steps_per_epoch": batches.steps_per_epoch,
        "padding": padding(batches),
        "device": jax.devices()[0].device_kind,
        "device_bytes": limit,
        "buckets": [bucket._asdict() for bucket in buckets],
        "evaluation_seconds": evaluation,
        **_seconds(config, len(batches), buckets, evaluation),
    }
    if limit and (most := max(bucket.bytes for bucket in buckets)) > limit:
        found["advice"] = (
            f"train.batch_size={batches.batch_size} needs {in_gb(most)} of {in_gb(limit)}: "
            f"{advice(config, run, limit)}"
        )
    if jax.process_index() == 0:
        path = Path(config.workdir) / "dry_run.json"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    log.info("%s", report(found))
    return found


def steps_by_bucket(batches: Batches) -> dict[int, int]:
    """Padded samples to the number of the run's steps that have it."""
    epochs, rest = divmod(len(batches), batches.steps_per_epoch)
    counts: Counter[int] = Counter()
    if epochs:
        counts.update({int(k): epochs * n for k, n in Counter(batches.plan(0).samples.tolist()).items()})
    counts.update(batches.samples(step) for step in range(epochs * batches.steps_per_epoch, len(batches)))
    return dict(counts) if rest or epochs else {}


def padding(batches: Batches) -> float:
    """The share of an epoch's samples that belong to no clip: 0 to 1."""
    return batches.plan(0).padding(batches.lengths)


def _timed(run: Parts, state: TrainState, samples: int) -> tuple[float, TrainState]:
    """Seconds of a step on clips padded to `samples`, without its compilation, and the state after it."""
    batches = run.speech.train
    step = next(step for step in range(batches.steps_per_epoch) if batches.samples(step) == samples)
    batch = {name: array for name, array in batches[step].items() if name in STEP_INPUTS}
    state = jax.block_until_ready(run.programs.train_step(state, sharding.put_batch(run.mesh, batch)))
    taken: list[float] = []
    while len(taken) < TIMED_STEPS or sum(taken) < TIMED_SECONDS:
        began = time.perf_counter()
        state = run.programs.train_step(state, sharding.put_batch(run.mesh, batch))
        jax.block_until_ready(state)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), state


def _timed_evaluation(run: Parts, state: TrainState) -> float:
    """Seconds of an evaluation on the split that chooses, when its programs are compiled."""
    params = combine(state.params, state.frozen)
    run.evaluate(params, run.speech.dev)
    began = time.perf_counter()
    run.evaluate(params, run.speech.dev)
    return time.perf_counter() - began


def _seconds(
    config: TrainConfig, steps: int, buckets: Sequence[Bucket], evaluation: float | None
) -> dict[str, float | None]:
    """The run's time, from its first step to its export; None where a step does not fit."""
    if evaluation is None or any(bucket.step_seconds is None for bucket in buckets):
        return {"training_seconds": None, "total_seconds": None}
    every = config.train.eval_every
    evaluations = -(-steps // every) if every else 1
    training = sum(bucket.steps * (bucket.step_seconds or 0) for bucket in buckets)
    return {"training_seconds": training, "total_seconds": training + evaluations * evaluation}


# --- What there is to read ----------------------------------------------------------------------------------


def _split(clips: Sequence[Clip]) -> dict[str, Any]:
    seconds = np.array([len(clip.samples) for clip in clips]) / SAMPLE_RATE
    counts, edges = np.histogram(seconds, BINS, (0, float(seconds.max())))
    return {
        "clips": len(clips),
        "hours": float(seconds.sum() / 3600),
        "speakers": len({clip.speaker for clip in clips} - {""}),
        "seconds": {
            "shortest": float(seconds.min()),
            "median": float(np.median(seconds)),
            "longest": float(seconds.max()),
        },
        "histogram": {"edges": edges.tolist(), "clips": counts.tolist()},
    }


def _by_reason(skipped: Sequence[Any]) -> dict[str, int]:
    return dict(Counter(clip.reason.partition(":")[0] for clip in skipped).most_common())


# --- The report ---------------------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    """What `foretell` found as lines for a person."""
    lines = ["", "Dry run: nothing was trained."]
    for name, split in found["splits"].items():
        speakers = f", {split['speakers']:,} speakers" if split["speakers"] else ""
        lines.append(f"{name}: {split['clips']:,} clips, {split['hours']:.2f} hours{speakers}")
        for reason, count in found["skipped"].get(name, {}).items():
            lines.append(f"  left out {count:,}: {reason}")
        lines += histogram(split["histogram"])
    lines += [f"leak: {leak}" for leak in found["leaks"]] or ["leaks: none found"]
    lines.append(
        f"{found['vocabulary']} labels; {found['steps']:,} steps, {found['steps_per_epoch']:,} an epoch; "
        f"{found['padding']:.1%} of the samples are padding"
    )
    limit = f" of {in_gb(found['device_bytes'])}" if found["device_bytes"] else ""
    for bucket in map(lambda fields: Bucket(**fields), found["buckets"]):
        took = "does not fit" if bucket.step_seconds is None else f"{bucket.step_seconds:.3g} s a step"
        lines.append(
            f"clips of up to {bucket.seconds:.2f} s: {bucket.steps:,} steps, {in_gb(bucket.bytes)}{limit} on "
            f"{found['device']}, {took}"
        )
    if "advice" in found:
        lines.append(found["advice"])
    if found["total_seconds"] is not None:
        lines.append(
            f"about {duration(found['total_seconds'])}: {duration(found['training_seconds'])} of training, "
            f"the rest evaluations of {found['evaluation_seconds']:.3g} s; and compiling, once, "
            f"{duration(sum(bucket['compile_seconds'] for bucket in found['buckets']))}"
        )
    return "\n".join(lines)


def histogram(bins: dict[str, list[float]]) -> list[str]:
    """Lines such as "  0.0 - 1.5 s  ######  120"."""
    most = max(bins["clips"])
    return [
        f"  {low:5.1f} - {high:5.1f} s  {'#' * -(-int(count) * WIDTH // int(most)):<{WIDTH}}  {int(count):,}"
        for low, high, count in zip(bins["edges"], bins["edges"][1:], bins["clips"], strict=False)
    ]


def duration(seconds: float) -> str:
    """ "1 h 2 min", "3 min 4 s" or "5 s"."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{left} s"

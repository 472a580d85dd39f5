"""The lines that a dry run shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from flax_wavlm.parallel.machine import in_gb

WIDTH = 40  # of a histogram's longest bar, in characters


class Bucket(NamedTuple):
    """What the run does with clips of one padded length.

    Attributes:
        seconds: the padded length.
        steps: of the whole run.
        memory_bytes: that a step needs on a device, by XLA's plan.
        seconds_per_step: median of the steps that were timed; None where the step does not fit the device.
        compile_seconds: until the step was compiled.
        start_seconds: until what is compiled is loaded, at the run's first step of this length; or None.
    """

    seconds: float
    steps: int
    memory_bytes: int
    seconds_per_step: float | None
    compile_seconds: float
    start_seconds: float | None


def report(found: dict[str, Any]) -> str:
    """What `dry_run.foretell` found, as lines for a person."""
    return "\n".join(["", "Dry run: nothing was trained.", *_clips(found), *_memory(found), *_time(found)])


def _clips(found: dict[str, Any]) -> Iterator[str]:
    for name, split in found["splits"].items():
        speakers = f", {split['speakers']:,} speakers" if split["speakers"] else ""
        yield f"{name}: {split['clips']:,} clips, {split['hours']:.2f} hours{speakers}"
        for reason, count in split["skipped"].items():
            yield f"  left out {count:,}: {reason}"
        yield from histogram(split["histogram"])
    yield from [f"leak: {leak}" for leak in found["leaks"]] or ["leaks: none found"]
    yield (
        f"{found['vocabulary']} labels; {found['steps']:,} steps, {found['steps_per_epoch']:,} an epoch; "
        f"{found['padding']:.1%} of the samples are padding"
    )


def _memory(found: dict[str, Any]) -> Iterator[str]:
    for bucket in map(lambda fields: Bucket(**fields), found["buckets"]):
        each = bucket.seconds_per_step
        yield (
            f"clips of up to {bucket.seconds:.2f} s: {bucket.steps:,} steps, {in_gb(bucket.memory_bytes)}, "
            + ("does not fit" if each is None else f"{each:.3g} s a step")
        )
    limit = f" of {in_gb(found['device_bytes'])}" if found["device_bytes"] else ""
    held = f"; {in_gb(found['held_bytes'])} of it is the process itself" if found["held_bytes"] else ""
    yield (
        f"memory of a device ({found['device']}): {in_gb(found['peak_bytes'])}{limit}{held}; an evaluation "
        f"has {in_gb(found['evaluation']['memory_bytes'])}, a checkpoint "
        f"{in_gb(found['checkpoint']['memory_bytes'])}"
    )
    yield from found["advice"]


def _time(found: dict[str, Any]) -> Iterator[str]:
    if found["total_seconds"] is None:
        return
    evaluation, checkpoint = found["evaluation"], found["checkpoint"]
    compiling = sum(bucket["compile_seconds"] for bucket in found["buckets"])
    yield (
        f"about {duration(found['total_seconds'])}: {duration(found['training_seconds'])} of training, "
        f"{evaluation['count']:,} evaluations of {evaluation['seconds']:.3g} s, {checkpoint['count']:,} "
        f"checkpoints of {checkpoint['seconds']:.3g} s and {in_gb(checkpoint['disk_bytes'])} on the disk; "
        f"compiling took {duration(compiling)} and is kept"
    )
    if found["aligner"]:
        yield "at the end an aligner is fitted (train.aligner): its time and memory come on top"


def histogram(bins: dict[str, list[float]]) -> list[str]:
    """Lines such as "  0.0 - 1.5 s  ######  120"; bins before the first clip are left out."""
    most = max(bins["clips"])
    rows = list(zip(bins["edges"], bins["edges"][1:], bins["clips"], strict=False))
    first = next(number for number, row in enumerate(rows) if row[2])
    return [
        f"  {low:5.1f} - {high:5.1f} s  {'#' * -(-int(count) * WIDTH // int(most)):<{WIDTH}}  {int(count):,}"
        for low, high, count in rows[first:]
    ]


def duration(seconds: float) -> str:
    """ "1 h 2 min", "3 min 4 s" or "5 s"."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{left} s"

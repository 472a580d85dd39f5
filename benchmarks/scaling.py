"""The training step against the length of the clips, their number, and the number of devices.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --device cuda --size large --layers 24 --batch 8 --dtype bfloat16
    python benchmarks/scaling.py --attention pallas --plan_only

The last runs no step: on a CPU the kernel is interpreted, very slowly.

For each point: seconds a step of ours and of B1 in turns, and the bytes of temporaries by XLA's own plan.
The exponent of a quantity is the slope of a straight line through its logarithms over those of the length,
from 5 s on. On a CPU the devices are pretended: that shows that it works, and no speed.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import workload
from pairs import Worker

Lines = list[dict[str, Any]]  # of the table


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of log(values) over log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--size", choices=tuple(workload.SIZES), default="base")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 2, 5, 10, 20, 30, 60])
    parser.add_argument("--batch", type=int, default=1, help="clips, while their length is varied")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="of clips of 4 s")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4], help="pretended ones, of a CPU")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", help="WavLMConfig.attention, ours only")
    parser.add_argument("--remat", default="none", help="WavLMConfig.remat, ours only")
    parser.add_argument("--plan_only", action="store_true", help="memory against clip length, by the plan")
    parser.add_argument("--blocks", type=int, default=1, help="pairs of them")
    parser.add_argument("--steps", type=int, default=1, help="in a block")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    if options.rehearse:
        options.size, options.seconds, options.batches, options.devices = "tiny", [5, 10], [1], [1, 2]
    pairs.prepare(options)
    chosen = workload.settings(options.size, layers=options.layers)
    overrides = {"dtype": options.dtype, "remat": options.remat}
    if options.attention:
        overrides["attention"] = options.attention
    name = f"{options.size}, {options.layers} layers" + (
        f", {options.attention}" if options.attention else ""
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Worker("workload:save_weights", folder, chosen).close()
        if options.plan_only:
            lines, device = planned(options, name, folder, overrides)
        else:
            lines, device = against_theirs(options, name, folder, overrides)
            if options.device == "cpu":
                lines += pretended(options, name, folder, overrides)
    pairs.write(options, ran, "cpu" if options.device == "cpu" else pairs.slug(device), lines)


def against_theirs(
    options: argparse.Namespace, name: str, folder: Path, overrides: dict[str, str]
) -> tuple[Lines, str]:
    """Every length and every batch, both sides in turns; the exponents; and the device's name."""
    how = {"device": options.device, "bf16": options.dtype == "bfloat16", "threads": options.cores}
    lines, seconds, bytes_ = [], [], []
    points = [(options.batch, length) for length in options.seconds] + [(n, 4.0) for n in options.batches]
    with pairs.workers(
        ours=lambda: Worker("flax_side:FlaxTraining", folder, overrides),
        theirs=lambda: Worker("torch_side:TorchTraining", folder, "B1", **how),
    ) as (flax, torch):
        device = flax("device")
        for clips, length in points:
            batch = workload.make_batch(clips, length)
            compiled, _ = flax("compile", batch), torch("compile", batch)
            measured = pairs.alternate(
                lambda: flax("block", options.steps),
                lambda: torch("block", options.steps),
                options.blocks,
            )
            seconds.append(measured.ours.median)
            bytes_.append(compiled["temporary_bytes"])
            lines.append(
                pairs.row(
                    f"{name}, {clips} x {length:g} s",
                    "s a step",
                    measured.ours.median,
                    theirs=measured.theirs.median,
                    ratio=measured.ratio,
                    temporary_bytes=compiled["temporary_bytes"],
                )
            )
            print(pairs.describe(lines[-1]), f"{compiled['temporary_bytes'] / 2**20:.0f} MiB", flush=True)
    lines += exponents(options, name, time=seconds, memory=bytes_)
    return lines, device


def planned(
    options: argparse.Namespace, name: str, folder: Path, overrides: dict[str, str]
) -> tuple[Lines, str]:
    """The exponent of our memory, and the device's name."""
    bytes_ = []
    with pairs.workers(ours=lambda: Worker("flax_side:FlaxTraining", folder, overrides)) as (flax,):
        for length in options.seconds:
            compiled = flax("compile", workload.make_batch(options.batch, length))
            bytes_.append(compiled["temporary_bytes"])
            print(f"{name}, {options.batch} x {length:g} s: {bytes_[-1] / 2**20:.0f} MiB", flush=True)
        return exponents(options, name, memory=bytes_), flax("device")


def exponents(options: argparse.Namespace, name: str, **quantities: list[float]) -> Lines:
    """Of each quantity, measured at `options.seconds` (and what follows them)."""
    long = [i for i, length in enumerate(options.seconds) if length >= 5]
    fused = options.attention not in (None, "xla") and not options.rehearse
    return [
        pairs.row(
            f"{name}, {what} against clip length from 5 s",
            "exponent",
            exponent([options.seconds[i] for i in long], [values[i] for i in long]),
            at_most=1.1 if fused and what == "memory" else None,
            seconds=options.seconds,
            values=values[: len(options.seconds)],
        )
        for what, values in quantities.items()
    ]


def pretended(options: argparse.Namespace, name: str, folder: Path, overrides: dict[str, str]) -> Lines:
    """Seconds a step of one batch over several devices that are one CPU; the losses must agree."""
    batch = workload.make_batch(max(options.devices), 2.0)
    lines, first = [], None
    for count in options.devices:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
        with pairs.workers(ours=lambda: Worker("flax_side:FlaxTraining", folder, overrides)) as (flax,):
            flax("compile", batch)
            losses = flax("losses", 3)
            first = first or losses
            if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(losses, first, strict=True)):
                raise SystemExit(f"{count} devices give the losses {losses}, one gave {first}")
            taken = flax("block", options.steps)
        clips = len(batch["lengths"])
        lines.append(pairs.row(f"{name}, {clips} x 2 s, {count} pretended devices", "s a step", taken))
    return lines


if __name__ == "__main__":
    main()

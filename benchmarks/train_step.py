"""A training step, ours and PyTorch's in turns: forward, backward, clipping and AdamW, the encoder frozen.

    python benchmarks/train_step.py --size base --batch 8 --seconds 4
    python benchmarks/train_step.py --device cuda --size large --batch 32 --dtype bfloat16 --baseline B1 B2 B3

MFU is of the data sheet's dense bf16 peak; of a device without an entry, such as a CPU, of what PyTorch
reaches in one large float32 matrix product.

Both sides start from the same weights and repeat the same padded batch; the losses of their first steps
must agree. Without --recipe nothing is random: dropouts, LayerDrop and SpecAugment are off.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pairs
import workload
from pairs import Worker

# (device, size, clips, baseline) -> the most that the ratio should be.
TARGETS = {
    ("cpu", "demo", "B1"): 0.6,
    ("cpu", "base", "B1"): 0.6,
    ("cpu", "large", "B1"): 0.7,
    ("cuda", "large", "B1"): 1 / 2.5,
    ("cuda", "large", "B2"): 1 / 1.3,
}
# On an H100 in bfloat16, (size, clips, seconds) -> the most seconds that our step should take.
TIMES = {("large", 32, 4.0): 0.033, ("large", 32, 8.0): 0.060}
SEED_STEPS, SEED_MINUTES = 12_500, 10  # of the model card that we follow: steps of 32 clips
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # relative, of the first losses


def check_losses(ours: list[float], theirs: list[float], tolerance: float) -> None:
    print("losses", *(f"{loss:.4f}" for loss in ours), "and", *(f"{loss:.4f}" for loss in theirs))
    for a, b in zip(ours, theirs, strict=True):
        if not abs(a - b) <= tolerance * abs(b):
            raise SystemExit(f"the two sides do not compute the same: losses {ours} and {theirs}")


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--size", choices=tuple(workload.SIZES), default="base")
    parser.add_argument("--layers", type=int, default=0, help="in place of the size's own; 0: those")
    parser.add_argument("--batch", type=int, default=8, help="clips")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the longest clip")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--baseline", choices=("B1", "B2", "B3"), nargs="+", default=["B1"])
    parser.add_argument("--recipe", action="store_true", help="dropouts, LayerDrop, SpecAugment as released")
    parser.add_argument("--keep_features", action="store_true", help="data.cache_features, ours only")
    parser.add_argument("--attention", help="WavLMConfig.attention, ours only")
    parser.add_argument("--unroll", type=int, default=0, help="WavLMConfig.unroll, ours only")
    parser.add_argument("--blocks", type=int, default=5, help="pairs of them")
    parser.add_argument("--steps", type=int, default=30, help="in a block")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    if options.rehearse:
        options.size, options.batch, options.seconds, options.blocks, options.steps = "tiny", 2, 1.0, 2, 2
    pairs.prepare(options)

    chosen = workload.settings(options.size, layers=options.layers, recipe=options.recipe)
    if options.baseline != ["B1"]:
        chosen["layerdrop"] = 0.0
    batch = workload.make_batch(options.batch, options.seconds)
    overrides = {"dtype": options.dtype, "unroll": options.unroll}
    if options.attention:
        overrides["attention"] = options.attention
    how = {"device": options.device, "bf16": options.dtype == "bfloat16", "threads": options.cores}
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Worker("workload:save_weights", folder, chosen).close()

        def begin(worker: Worker) -> tuple[dict[str, float], list[float]]:
            return worker("compile", batch), worker("losses", 5)

        with pairs.workers(
            ours=lambda: Worker("flax_side:FlaxTraining", folder, overrides, options.keep_features)
        ) as (flax,):
            compiled, ours_first = begin(flax)
            # Torch compiles for minutes: the compiled ones do so at the same time, before anything is timed.
            for group in (["B1"], ["B2", "B3"]):
                names = [name for name in group if name in options.baseline]
                if not names:
                    continue
                make = {
                    name: functools.partial(Worker, "torch_side:TorchTraining", folder, name, **how)
                    for name in names
                }
                with pairs.workers(**make) as theirs:
                    firsts = pairs.at_once(begin, theirs)
                    for name, worker, first in zip(names, theirs, firsts, strict=True):
                        line = compare(options, chosen, flax, worker, name, ours_first, *first)
                        line["compile"] = compiled | line["compile"]
                        lines.append(line)
                        # After each, since the next may fail: the same command's rows are replaced.
                        where = "cpu" if options.device == "cpu" else pairs.slug(flax("device"))
                        pairs.write(options, ran, where, lines + absolute(options, lines))
    for line in lines:
        print(f"{line['job']}: MFU {line['mfu']:.0%} and {line['mfu_theirs']:.0%}", end=" ")
        print(f"of {line['peak_flops'] / 1e12:.3g} TFLOP/s", end="; ")
        print(f"compiling: {compiled['trace_seconds']:.1f} + {compiled['compile_seconds']:.1f} s", end="; ")
        peaks = line["peak_bytes"] / 2**30, line["peak_bytes_theirs"] / 2**30
        print("peak memory {:.2f} and {:.2f} GiB".format(*peaks))


def absolute(options: argparse.Namespace, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What has a target in seconds, from the median of our medians: lines of the table."""
    limit = TIMES.get((options.size, options.batch, options.seconds))
    if options.device == "cpu" or limit is None or options.recipe or options.keep_features:
        return []
    taken = statistics.median(line["ours"] for line in lines)
    job = lines[0]["job"].rsplit(", vs", 1)[0]
    rows = [pairs.row(f"{job}: a step", "s", taken, at_most=limit)]
    if options.seconds == 4:
        what = f"{job}: {SEED_STEPS:,} steps, without evaluations"
        rows.append(pairs.row(what, "minutes", SEED_STEPS * taken / 60, at_most=SEED_MINUTES))
    return rows


def compare(
    options: argparse.Namespace,
    chosen: dict[str, Any],
    flax: Worker,
    torch: Worker,
    baseline: str,
    ours_first: list[float],
    first: dict[str, float],
    theirs_first: list[float],
) -> dict[str, Any]:
    """Both sides in turns: a line of the table."""
    if options.recipe:  # each side draws its own masks
        ours_first, theirs_first = [statistics.mean(ours_first)], [statistics.mean(theirs_first)]
    check_losses(ours_first, theirs_first, 0.2 if options.recipe else TOLERANCE[options.dtype])
    measured = pairs.alternate(
        lambda: flax("block", options.steps), lambda: torch("block", options.steps), options.blocks
    )
    peak_flops = workload.peak_flops(flax("device")) or torch("product_flops")
    flops = workload.step_flops(chosen, options.batch, options.seconds)["total"]
    job = f"{options.size}, {options.batch} x {options.seconds:g} s, {options.dtype}"
    job += f", {options.layers} layers" if options.layers else ""
    job += f", unrolled by {options.unroll}" if options.unroll else ""
    job += f", attention {options.attention}" if options.attention else ""
    job += ", recipe" if options.recipe else ""
    job += ", features kept" if options.keep_features else ""
    whole = not (options.layers or options.recipe or options.keep_features or options.rehearse)
    line = pairs.row(
        f"{job}, vs {baseline}",
        "s a step",
        measured.ours.median,
        theirs=measured.theirs.median,
        ratio=measured.ratio,
        at_most=TARGETS.get((options.device, options.size, baseline)) if whole else None,
        blocks=measured.blocks,
        steps=options.steps,
        tflops=flops / 1e12,
        peak_flops=peak_flops,
        mfu=flops / peak_flops / measured.ours.median,
        mfu_theirs=flops / peak_flops / measured.theirs.median,
        compile=first,
        peak_bytes=flax("peak_bytes"),
        peak_bytes_theirs=torch("peak_bytes"),
        losses=ours_first,
        losses_theirs=theirs_first,
    )
    return line


if __name__ == "__main__":
    main()

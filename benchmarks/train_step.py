"""A training step, ours and PyTorch's in turns: forward, backward, clipping and AdamW, the encoder frozen.

    python benchmarks/train_step.py --size base --batch 8 --seconds 4
    python benchmarks/train_step.py --device cuda --size large --batch 32 --dtype bfloat16 --baseline B3

MFU is of the data sheet's dense bf16 peak; of a device without an entry, such as a CPU, of what PyTorch
reaches in one large float32 matrix product.

Both sides start from the same weights and repeat the same padded batch; the losses of their first steps
must agree. Without --recipe nothing is random: dropouts, LayerDrop and SpecAugment are off.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

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
    parser.add_argument("--baseline", choices=("B1", "B2", "B3"), default="B1")
    parser.add_argument("--recipe", action="store_true", help="dropouts, LayerDrop, SpecAugment as released")
    parser.add_argument("--keep_features", action="store_true", help="data.cache_features, ours only")
    parser.add_argument("--attention", help="WavLMConfig.attention, ours only")
    parser.add_argument("--unroll", type=int, default=1, help="WavLMConfig.unroll, ours only")
    parser.add_argument("--blocks", type=int, default=5, help="pairs of them")
    parser.add_argument("--steps", type=int, default=30, help="in a block")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    if options.rehearse:
        options.size, options.batch, options.seconds, options.blocks, options.steps = "tiny", 2, 1.0, 2, 2
    pairs.prepare(options)

    chosen = workload.settings(options.size, layers=options.layers, recipe=options.recipe)
    if options.baseline != "B1":
        chosen["layerdrop"] = 0.0
    batch = workload.make_batch(options.batch, options.seconds)
    overrides = {"dtype": options.dtype, "unroll": options.unroll}
    if options.attention:
        overrides["attention"] = options.attention
    how = {"device": options.device, "bf16": options.dtype == "bfloat16", "threads": options.cores}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Worker("workload:save_weights", folder, chosen).close()
        with pairs.workers(
            ours=lambda: Worker("flax_side:FlaxTraining", folder, overrides, options.keep_features),
            theirs=lambda: Worker("torch_side:TorchTraining", folder, options.baseline, **how),
        ) as (flax, torch):
            compiled, first = flax("compile", batch), torch("compile", batch)
            ours_first, theirs_first = flax("losses", 5), torch("losses", 5)
            if options.recipe:  # each side draws its own masks
                ours_first, theirs_first = [statistics.mean(ours_first)], [statistics.mean(theirs_first)]
            check_losses(ours_first, theirs_first, 0.2 if options.recipe else TOLERANCE[options.dtype])
            measured = pairs.alternate(
                lambda: flax("block", options.steps), lambda: torch("block", options.steps), options.blocks
            )
            peaks, device = (flax("peak_bytes"), torch("peak_bytes")), flax("device")
            peak_flops = workload.peak_flops(device) or torch("product_flops")

    flops = workload.step_flops(chosen, options.batch, options.seconds)
    job = f"{options.size}, {options.batch} x {options.seconds:g} s, {options.dtype}"
    job += f", {options.layers} layers" if options.layers else ""
    job += ", recipe" if options.recipe else ""
    job += ", features kept" if options.keep_features else ""
    job += f", vs {options.baseline}"
    whole = not (options.layers or options.recipe or options.keep_features or options.rehearse)
    line = pairs.row(
        job,
        "s a step",
        measured.ours.median,
        theirs=measured.theirs.median,
        ratio=measured.ratio,
        at_most=TARGETS.get((options.device, options.size, options.baseline)) if whole else None,
        blocks=measured.blocks,
        steps=options.steps,
        tflops=flops["total"] / 1e12,
        peak_flops=peak_flops,
        mfu=flops["total"] / peak_flops / measured.ours.median,
        mfu_theirs=flops["total"] / peak_flops / measured.theirs.median,
        compile=compiled | first,
        peak_bytes=peaks[0],
        peak_bytes_theirs=peaks[1],
        losses=ours_first,
        losses_theirs=theirs_first,
    )
    pairs.write(options, ran, "cpu" if options.device == "cpu" else pairs.slug(device), [line])
    print(f"MFU {line['mfu']:.0%} and {line['mfu_theirs']:.0%} of {peak_flops / 1e12:.3g} TFLOP/s", end="; ")
    print(f"compiling: {compiled['trace_seconds']:.1f} + {compiled['compile_seconds']:.1f} s", end="; ")
    print(f"peak memory {peaks[0] / 2**30:.2f} and {peaks[1] / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()

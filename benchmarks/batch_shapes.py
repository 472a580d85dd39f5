"""`train.batch_seconds`: padding, and the time to compile all shapes. `data.augment`: clips a second.

    python benchmarks/batch_shapes.py

Lengths are those of TIMIT's training clips under 4 s, as `input_pipeline.py` draws them, in batches of up to
96 s (32 clips of 3 s). For the bound, each clip is padded to the smallest bucket that holds it, and the
buckets are the best ones of their number. No plan pads less. "Compiled" is the tracing and compiling of a
training step for every shape, one after the other, none of it kept from before. The last rows are clips
a second that one thread changes as `data.augment` says: another speed, and recorded noise.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pairs
import workload
from workload import SAMPLE_RATE


def timit_lengths(clips: int) -> np.ndarray:
    """Samples of each clip: normal, 3.07 s in the mean, a standard deviation of 0.86 s, from 0.9 to 4 s."""
    seconds = np.random.default_rng(0).normal(3.07, 0.86, 4 * clips)
    return (seconds[(seconds > 0.9) & (seconds < 4)][:clips] * SAMPLE_RATE).astype(np.int64)


def padding_rows(lengths: np.ndarray, shapes: list[Any], bound: int, *, full: bool) -> list[dict[str, Any]]:
    from flax_wavlm.data.buckets import choose_buckets
    from flax_wavlm.data.plans import plan_epoch

    rows, buckets = [shape.rows for shape in shapes], [shape.samples for shape in shapes]
    padded = plan_epoch(lengths, rows, buckets, seed=0, epoch=0).padding(lengths)
    chosen = np.array(choose_buckets(lengths, bound))
    least = float(1 - lengths.sum() / chosen[np.searchsorted(chosen, lengths)].sum())
    limit = {6: least + 0.003, 16: 0.03}.get(bound) if full else None
    return [
        pairs.row(f"padding, {bound} shapes, batches of 96 s", "of all samples", padded, at_most=limit),
        pairs.row(f"the bound of any plan, {bound} shapes", "of all samples", least),
    ]


def compile_seconds(shapes: list[Any], size: str) -> float:
    from startup import Compilation

    began = time.perf_counter()
    for shape in shapes:
        Compilation(workload.settings(size), shape.rows, shape.samples / SAMPLE_RATE)
    return time.perf_counter() - began


def changed_a_second(lengths: np.ndarray, *, recorded: bool) -> float:
    """Clips that get another speed, and, where `recorded`, noise."""
    from flax_wavlm.data.augment import Augmentation, Noise
    from flax_wavlm.data.clips import Clip

    random = np.random.default_rng(0)
    clips = [
        Clip("", random.integers(-9000, 9000, n, dtype=np.int16), np.array([], np.int32), "", "")
        for n in lengths
    ]
    noise = Noise([random.integers(-9000, 9000, 600_000, dtype=np.int16)], 1.0, (5.0, 20.0))
    change = Augmentation((0.9, 1.1), noise=noise if recorded else None)
    began = time.perf_counter()
    for row, clip in enumerate(clips):
        change(clip, (0.9, 1.1)[row % 2], seed=0, step=0, row=row)
    return len(clips) / (time.perf_counter() - began)


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument(
        "--size", default="base", choices=workload.SIZES, help="of the model that is compiled"
    )
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    options.device = "cpu"
    pairs.prepare(options)
    from flax_wavlm.data.buckets import choose_shapes
    from flax_wavlm.models.config import WavLMConfig

    lengths = timit_lengths(200 if options.rehearse else 3978)
    lines = []
    for count in (2,) if options.rehearse else (6, 16):
        shapes = list(
            choose_shapes(
                lengths,
                count,
                batch_samples=96 * SAMPLE_RATE,
                min_batches=3,
                frame_count=WavLMConfig().frame_count,
            )
        )
        lines += padding_rows(lengths, shapes, count, full=not options.rehearse)
        size = "tiny" if options.rehearse else options.size
        lines.append(pairs.row(f"{count} shapes compiled, {size}", "s", compile_seconds(shapes, size)))
    for recorded, job in ((False, "another speed"), (True, "another speed and noise")):
        rate = changed_a_second(lengths[:500], recorded=recorded)
        lines.append(pairs.row(f"clips changed: {job}, one thread", "clips a second", rate))
    pairs.write(options, ran, "cpu", lines)


if __name__ == "__main__":
    main()

"""How much what a model says of a frame depends on where in its window the frame is.

    python scripts/train_flax.py --config configs/demo.py
    python benchmarks/window_edges.py --model runs/demo/export

Sentences are joined without pauses. Windows of the model's usual length begin at every eighth of it, so each
frame is heard in eight places. Each is compared with the window that has the frame nearest to its middle:
the share of frames with another label, and the mean difference of posteriors (total
variation, 0 to 1). Windows that end at no pause are joined in the middle of what they share
(`flax_wavlm.recognition.windows.OVERLAP`). So no frame is used that is nearer to an edge than half of that.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pairs

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.synthetic import make_corpus
from flax_wavlm.data.corpora.utterance import Samples
from flax_wavlm.data.sampling import SAMPLE_RATE

STEPS = 8  # beginnings of windows in the length of one
PLACES = ((0.0, 0.05), (0.05, 0.125), (0.125, 0.25), (0.25, 0.375), (0.375, 0.45))  # shares of a window


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    from flax_wavlm.recognition.recogniser import Recogniser
    from flax_wavlm.recognition.recordings import Source
    from flax_wavlm.recognition.windows import OVERLAP

    make_corpus(folder, seed=1, train_clips=1, test_clips=options.clips)
    clips, _ = load_corpus("synthetic", folder, "test")
    samples = np.concatenate([read_audio(clip.audio) for clip in clips])
    recogniser = Recogniser.from_pretrained(options.model)
    windowing = recogniser.windowing()
    size, step = windowing.usual, max(1, windowing.usual // STEPS)
    begins = range(0, windowing.frames(len(samples)) - size, step)
    pieces = [samples[begin * windowing.hop :][: windowing.samples(size)] for begin in begins]
    sources = [
        Source(str(begin), Samples(piece, SAMPLE_RATE)) for begin, piece in zip(begins, pieces, strict=True)
    ]
    heard = [np.exp(found.log_probs) for found in recogniser.every_emissions(sources)]  # [T, V] each

    middle: dict[int, tuple[int, np.ndarray]] = {}  # by frame: its distance from the edge, and its posteriors
    for begin, posteriors in zip(begins, heard, strict=True):
        for frame in range(size):
            distance = min(frame, size - 1 - frame)
            if distance > middle.get(begin + frame, (-1,))[0]:
                middle[begin + frame] = distance, posteriors[frame]
    lines = []
    for low, high in PLACES:
        other, apart = [], []
        for begin, posteriors in zip(begins, heard, strict=True):
            for frame in range(size):
                distance, best = middle[begin + frame]
                share = min(frame, size - 1 - frame) / size
                if low <= share < high and distance >= (0.5 - 0.5 / STEPS) * size - 1:
                    other.append(posteriors[frame].argmax() != best.argmax())
                    apart.append(np.abs(posteriors[frame] - best).sum() / 2)
        where = f"{low:g} to {high:g} of a window from its edge"
        lines.append(
            pairs.row(
                f"{where}: another label than in the middle",
                "of frames",
                float(np.mean(other)),
                posteriors_apart=float(np.mean(apart)),
                window_seconds=windowing.samples(size) / SAMPLE_RATE,
                joined_at=OVERLAP / 2,
                frames=len(other),
            )
        )
    return lines


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--model", required=True, help="the demo's export folder")
    parser.add_argument("--clips", type=int, default=100)
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    options.device = "cpu"
    options.clips = 10 if options.rehearse else options.clips
    pairs.prepare(options)
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(options, Path(folder) / "speech")
    pairs.write(options, ran, "cpu", lines)


if __name__ == "__main__":
    main()

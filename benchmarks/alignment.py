"""Half an hour of speech aligned with its text: seconds, and memory beyond what the model said of each frame.

    python benchmarks/alignment.py --model runs/demo/export

The recording is the synthetic corpus's test clips, joined with pauses of 0.4 s, in another order every time,
until they are 30 minutes. The model hears it once. Then the alignment is timed alone: about 90,000 frames and
43,000 states. Its memory is the most that the process holds for itself meanwhile, less what it held before.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pairs
from dry_run import held

MINUTES, PAUSE = 30.0, 0.4
MAX_SECONDS, MAX_GB = 60, 2
RATE = 16_000


class Joined(NamedTuple):
    """A recording, and what is said in it."""

    samples: np.ndarray  # int16 [N], 16 kHz
    text: str


def joined(corpus: Path, minutes: float, test_clips: int) -> Joined:
    """Clips of the corpus's test split, which is made where it is not there yet."""
    from flax_wavlm.data.audio import read_audio
    from flax_wavlm.data.corpora.load import load_corpus
    from flax_wavlm.data.corpora.synthetic import make_corpus

    make_corpus(corpus, train_clips=10, test_clips=test_clips)
    utterances, _ = load_corpus("synthetic", corpus, "test")
    clips = [read_audio(utterance.audio) for utterance in utterances if isinstance(utterance.audio, Path)]
    random, silence = np.random.default_rng(0), np.zeros(round(PAUSE * RATE), np.int16)
    parts: list[np.ndarray] = []
    texts: list[str] = []
    samples = 0
    while samples < minutes * 60 * RATE:
        for place in random.permutation(len(clips)):
            parts += [clips[place], silence]
            texts.append(utterances[place].text)
            samples += len(clips[place]) + len(silence)
            if samples >= minutes * 60 * RATE:
                break
    return Joined(np.concatenate(parts), " ".join(texts))


def hear(model: Path, recording: Joined, heard: Path) -> float:
    """Writes what the model says of each frame; the seconds that it took."""
    from flax_wavlm.data.corpora.utterance import Samples
    from flax_wavlm.recognition.recogniser import Recogniser

    recogniser = Recogniser.from_pretrained(model)
    start = time.perf_counter()
    found = recogniser.emissions(Samples(recording.samples, RATE))
    seconds = time.perf_counter() - start
    np.savez(heard, **{n: a for n, a in found._asdict().items() if a is not None})
    return seconds


class Aligner:
    """A process that holds what the model said of each frame, and the text. It has heard nothing itself."""

    def __init__(self, model: Path, text: str, heard: Path):
        from flax_wavlm.data.tokenizer import CTCTokenizer
        from flax_wavlm.porting.extras import read_extras
        from flax_wavlm.recognition.emissions import Emissions
        from flax_wavlm.recognition.known_text import known_text

        extras = read_extras(model)
        tokenizer = CTCTokenizer.from_pretrained(model, rule=extras.text, follows=extras.follows_vocabulary)
        self._known = known_text(tokenizer, text)
        arrays = np.load(heard)
        self._emissions = Emissions(
            arrays["log_probs"],
            arrays.get("aligner"),
            float(arrays["frame_seconds"]),
            float(arrays["duration"]),
        )

    def align(self, stars: bool) -> dict[str, Any]:
        from flax_wavlm.recognition.align import align_text

        aligned, seconds, more = watched(
            lambda: align_text(self._emissions, self._known, "joined", stars=stars)
        )
        confidences = np.array([word.confidence for word in aligned.transcript.words])
        return {
            "seconds": seconds,
            "bytes": more,
            "frames": len(self._emissions.log_probs),
            "states": 2 * len(self._known.ids) + 1,
            "words": len(confidences),
            "median_confidence": float(np.median(confidences)),
            "share_of_words_above_half": float(np.mean(confidences > 0.5)),
        }


def watched(function: Callable[[], Any]) -> tuple[Any, float, int]:
    """What the function gives, its seconds, and the most bytes that it made the process hold."""
    before, most, done = held(os.getpid()), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, held(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        found = function()
        return found, time.perf_counter() - start, max(0, most - before)
    finally:
        done.set()
        watcher.join()


def measure(model: Path, recording: Joined, scratch: Path, *, full: bool) -> list[dict[str, Any]]:
    heard = scratch / "heard.npz"
    hearing = hear(model, recording, heard)
    rows = []
    for name, stars in (("", True), (", without stars", False)):
        with pairs.workers(ours=lambda: pairs.Worker("alignment:Aligner", model, recording.text, heard)) as (
            worker,
        ):
            found = worker("align", stars)
        size = f"{found['frames']:,} frames, {found['states']:,} states{name}"
        limits = (MAX_SECONDS, MAX_GB) if full else (None, None)
        details = found | {"seconds_of_the_model": hearing, "audio_seconds": len(recording.samples) / RATE}
        rows += [
            pairs.row(f"{size}: time", "s", found["seconds"], at_most=limits[0], **details),
            pairs.row(f"{size}: time with the model's", "s", hearing + found["seconds"], at_most=limits[0]),
            pairs.row(
                f"{size}: memory beyond the model's outputs", "GB", found["bytes"] / 1e9, at_most=limits[1]
            ),
        ]
    return rows


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the demo's export; to rehearse, random weights")
    parser.add_argument("--corpus", type=Path, help="a folder for the synthetic corpus; default: temporary")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    if options.model is None and not options.rehearse:
        raise SystemExit("--model is missing: train the demo (configs/demo.py), and give its export folder")
    pairs.prepare(options)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            import workload

            model = Path(scratch) / "model"
            pairs.Worker("inference:save_model", model, workload.settings("tiny")).close()
        minutes, clips = (0.2, 10) if options.rehearse else (MINUTES, 100)
        recording = joined(options.corpus or Path(scratch) / "speech", minutes, clips)
        rows = measure(model, recording, Path(scratch), full=not options.rehearse)
    heard = rows[0]
    print(
        f"{heard['audio_seconds'] / 60:.1f} minutes, {heard['words']:,} words; the model took "
        f"{heard['seconds_of_the_model']:.1f} s; median confidence {heard['median_confidence']:.2f}"
    )
    pairs.write(options, ran, "cpu" if options.device == "cpu" else options.device, rows)


if __name__ == "__main__":
    main()

"""An hour of speech in one file, against the same clips one by one and transformers' pipeline with chunks.

    python scripts/train_flax.py --config configs/demo.py
    python benchmarks/long_recordings.py --model runs/demo/export

Sentences of the demo's grammar by its test voices, which the model has not heard, joined with pauses of 0.4 s
and without; clean, and over white noise that is 40 dB below full scale, or below the speech. A word is right
where jiwer aligns it with the same word of the reference. Ours ends windows at pauses. The pipeline has
chunks of the same length (`chunk_length_s`) and its own stride, a sixth. Both are timed in turns, on a sixth
of the recording. In some rows windows end anywhere, and neighbours share more or less of their length.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pairs
import soundfile
from pairs import Worker

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.synthetic import make_corpus
from flax_wavlm.data.sampling import SAMPLE_RATE

PAUSE = 0.4  # seconds
NOISE = -40.0  # dB
OVERLAPS = (0.25, 0.5, 0.75)
SHARE_OF_CLIPS, MEMORY = 0.995, 1.2  # targets
FULL_SECONDS = 3600.0
BATCH = 8


class Ours:
    """The package's own, as scripts/transcribe.py calls it."""

    def __init__(self, model: str):
        from flax_wavlm.recognition.recogniser import Recogniser

        self.recogniser = Recogniser.from_pretrained(model)

    def window(self) -> float:
        """Seconds of a window."""
        windowing = self.recogniser.windowing()
        return windowing.samples(windowing.usual) / SAMPLE_RATE

    def text(self, file: Path, *, at_pauses: bool = True, overlap: float = 0.0) -> str:
        from flax_wavlm.recognition import windows

        windows.OVERLAP = overlap or windows.OVERLAP
        [found] = self.recogniser.transcribe_files([file], at_pauses=at_pauses, times=False)
        if found.error is not None:
            raise found.error
        return found.text

    def clips(self, clips: list[np.ndarray]) -> str:
        return " ".join(found.text for found in self.recogniser.transcribe(clips))

    def block(self, file: Path) -> float:
        began = time.perf_counter()
        self.text(file)
        return time.perf_counter() - began

    def peak(self) -> int:
        return pairs.peak_rss()


class Theirs:
    """transformers' pipeline as its documentation calls it for long files."""

    def __init__(self, model: str, window: float, threads: int):
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.pipeline = transformers.pipeline("automatic-speech-recognition", model=model, device="cpu")
        self.window = window

    def text(self, file: Path) -> str:
        samples, _ = soundfile.read(file, dtype="float32")
        return str(self.pipeline(samples, chunk_length_s=self.window, batch_size=BATCH)["text"])

    def block(self, file: Path) -> float:
        began = time.perf_counter()
        self.text(file)
        return time.perf_counter() - began


class Speech:
    """Clips of the test voices, and files in which they are joined."""

    def __init__(self, folder: Path, seconds: float):
        count = round(seconds / 1.9) + 1  # a clip and its pause take 2 s
        make_corpus(folder / "speech", seed=1, train_clips=1, test_clips=count)
        clips, _ = load_corpus("synthetic", folder / "speech", "test")
        order = np.random.default_rng(0).permutation(len(clips))
        self.clips, self.texts, total = [], [], 0.0
        for i in order:
            if total >= seconds:
                break
            self.clips.append(read_audio(clips[i].audio))
            self.texts.append(clips[i].text.lower().rstrip("."))
            total += len(self.clips[-1]) / SAMPLE_RATE + PAUSE
        self.folder = folder

    def noisy(self, below_speech: bool) -> list[np.ndarray]:
        """The clips over the noise that their recording has."""
        random = np.random.default_rng(2)
        rms = np.sqrt(np.mean(np.square(np.concatenate(self.clips) / 32768))) if below_speech else 1.0
        level = 32768 * rms * 10 ** (NOISE / 20)
        return [
            np.clip(np.rint(clip + level * random.standard_normal(len(clip))), -32768, 32767).astype(np.int16)
            for clip in self.clips
        ]

    def file(self, name: str, clips: Sequence[np.ndarray], pause: float, level: float = 0.0) -> Path:
        """The clips in one file, with pauses of noise of that level between them."""
        random = np.random.default_rng(3)
        path = self.folder / f"{name}.wav"
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
            for clip in clips:
                silence = level * random.standard_normal(round(pause * SAMPLE_RATE))
                file.write(clip)
                file.write(np.rint(silence).astype(np.int16))
        return path

    def right(self, text: str) -> int:
        """Words of the references that the text has in their place."""
        return int(jiwer.process_words(" ".join(self.texts), text).hits)

    def wrong(self, text: str) -> int:
        """Words that are replaced, missing or too many."""
        found = jiwer.process_words(" ".join(self.texts), text)
        return int(found.substitutions + found.deletions + found.insertions)


def level_of(clips: Sequence[np.ndarray], noisy: Sequence[np.ndarray]) -> float:
    return float(np.std(np.concatenate([a.astype(int) - b for a, b in zip(clips, noisy, strict=True)])))


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    speech = Speech(folder, options.seconds)
    total = sum(map(len, speech.clips)) / SAMPLE_RATE + PAUSE * len(speech.clips)
    named = f"{total / 60:.0f} minutes"
    # Of few words, one that is heard differently by chance is too large a share.
    bound = {"at_least": SHARE_OF_CLIPS} if options.seconds >= FULL_SECONDS else {}
    first = round(len(speech.clips) / 6)
    whole = speech.file("whole", speech.clips, PAUSE)
    part = speech.file("part", speech.clips[:first], PAUSE)
    lines = []

    def words(job: str, text: str, alone: str, **target: float) -> None:
        share = speech.right(text) / max(1, speech.right(alone))
        details = {"words": len(" ".join(speech.texts).split()), "wrong": speech.wrong(text)}
        details["wrong_clip_by_clip"] = speech.wrong(alone)
        lines.append(
            pairs.row(f"{named}, {job}", "of clip by clip's right words", share, **target, **details)
        )

    with pairs.workers(ours=lambda: Worker("long_recordings:Ours", options.model)) as [ours]:
        window = ours("window")
        alone = ours("clips", speech.clips)
        text = ours("text", whole)
        words("pauses of 0.4 s", text, alone, **bound)
        for job, below in (("noise 40 dB below full scale", False), ("noise 40 dB below the speech", True)):
            noisy = speech.noisy(below)
            level = level_of(speech.clips, noisy)
            file = speech.file("noisy", noisy, PAUSE, level)
            words(f"pauses of 0.4 s, {job}", ours("text", file), ours("clips", noisy), **bound)
        joined = speech.file("joined", speech.clips, 0.0)
        words("no pauses", ours("text", joined), alone)
        for overlap in OVERLAPS:
            fixed = ours("text", joined, at_pauses=False, overlap=overlap)
            words(f"no pauses, fixed windows that share {overlap:g}", fixed, alone)

    peaks = []
    for file in (part, whole):
        with pairs.workers(ours=lambda: Worker("long_recordings:Ours", options.model)) as [ours]:
            ours("text", file)
            peaks.append(ours("peak"))
    job = f"peak memory, {named} against a sixth of it"
    bound = {} if options.rehearse else {"at_most": MEMORY}
    lines.append(
        pairs.row(job, "times", peaks[1] / peaks[0], bytes=peaks[1], bytes_of_a_sixth=peaks[0], **bound)
    )

    with pairs.workers(
        ours=lambda: Worker("long_recordings:Ours", options.model),
        theirs=lambda: Worker("long_recordings:Theirs", options.model, window, options.cores),
    ) as [ours, theirs]:
        timed = pairs.alternate(lambda: ours("block", part), lambda: theirs("block", part), options.blocks)
        their_text = theirs("text", whole)
    job = f"a sixth of {named}, pauses of 0.4 s, vs the pipeline with chunks of {window:.2f} s"
    bound = {} if options.rehearse else {"at_most": 1.0}
    lines.append(
        pairs.row(job, "s", timed.ours.median, theirs=timed.theirs.median, ratio=timed.ratio, **bound)
    )
    lines.append(
        pairs.row(
            f"{named}, pauses of 0.4 s, wrong words, vs the pipeline",
            "words",
            speech.wrong(text),
            theirs=speech.wrong(their_text),
            ratio=pairs.Spread.of([speech.wrong(text) / max(1, speech.wrong(their_text))]),
            **bound,
        )
    )
    return lines


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--model", required=True, help="the demo's export folder")
    parser.add_argument("--seconds", type=float, default=FULL_SECONDS)
    parser.add_argument("--blocks", type=int, default=3)
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    options.device = "cpu"
    if options.rehearse:
        options.seconds, options.blocks = min(options.seconds, 30.0), 1
    pairs.prepare(options)
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(options, Path(folder))
    pairs.write(options, ran, "cpu", lines)


if __name__ == "__main__":
    main()

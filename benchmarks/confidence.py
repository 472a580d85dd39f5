"""What the confidences of words say of right and wrong words, with a temperature fitted on dev and without.

    python scripts/train_flax.py --config configs/demo.py
    python benchmarks/confidence.py --model runs/demo/export --data runs/synthetic-speech

The temperature is fitted on dev, as a run does it at its end. Test is judged as it is, and with white noise
over each clip. A word is right if it stands in the reference, by the alignment of the fewest edits.

The demo's dev has harder voices than its test: 18 % of the words are wrong, and 2 %. On dev the posteriors
are too sure, and a temperature of 2 amends it. On test they are about right, and that temperature makes them
too careful. With noise at -10 dB test is harder than dev, and gains as dev does. A temperature serves speech
that is as hard as the speech that it was fitted on.

cross-entropy       of what is true of a word, by its confidence; lower is better
calibration error   the mean distance between confidence and share of right words, in ten bins
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import inference
import numpy as np
import pairs
import workload

from flax_wavlm.data.clips import Clip, usable_clips
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.preprocessor import full_scale
from flax_wavlm.recognition.calibration import (
    AT_1,
    TEMPERATURES,
    JudgedWords,
    calibration_error,
    cross_entropies,
    fit_temperature,
    judged_words,
    some_clips,
)
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.recognition.recogniser import BUCKETS, Recogniser

BATCH = 8


def corpus_clips(recogniser: Recogniser, data: Path, split: str) -> list[Clip]:
    utterances, _ = load_corpus("synthetic", data, split)
    clips, _ = usable_clips(
        utterances,
        recogniser.tokenizer,
        name=split,
        frame_count=recogniser.config.frame_count,
        drop_infeasible=False,
    )
    return clips


def random_clips(recogniser: Recogniser, count: int) -> list[Clip]:
    """Every other clip has what the model says of it for its text."""
    samples = inference.make_clips(count)
    texts = [found.text for found in recogniser.transcribe(samples, batch_size=2)]
    texts = [text if i % 2 else "a b c" for i, text in enumerate(texts)]
    labels = [np.array(recogniser.tokenizer.encode(text), np.int32) for text in texts]
    return [
        Clip(str(i), *parts, speaker="") for i, parts in enumerate(zip(samples, labels, texts, strict=True))
    ]


def with_noise(clips: list[Clip], decibels: float) -> list[Clip]:
    """The clips with white noise, which is that many decibels below each clip's mean power."""
    random = np.random.default_rng(0)

    def noisy(clip: Clip) -> Clip:
        speech = full_scale(clip.samples)
        level = np.sqrt(np.mean(speech**2) / 10 ** (decibels / 10))
        noise = random.normal(0, level, len(speech))
        return dataclasses.replace(clip, samples=(speech + noise).astype(np.float32))

    return [noisy(clip) for clip in clips]


def judge(recogniser: Recogniser, clips: list[Clip]) -> JudgedWords:
    batches = ClipBatches(clips, BATCH, BUCKETS, do_normalize=recogniser.preprocessor.do_normalize)
    return judged_words(
        recogniser.task, recogniser.config, recogniser.params, recogniser.tokenizer, batches, recogniser.mesh
    )


def report(name: str, words: JudgedWords, fitted: int) -> list[dict[str, Any]]:
    """Rows of a set: both figures at temperature 1, and at the fitted one."""
    share = float(words.right.mean())
    details = {
        "words": len(words.right),
        "wrong": int((~words.right).sum()),
        "fitted_temperature": float(TEMPERATURES[fitted]),
        "own_temperature": fit_temperature(words),  # what the set itself would have given
        "cross_entropy_of_the_share_of_right_words": float(
            cross_entropies(np.full(len(words.right), share), words.right).mean()
        ),
    }
    rows = []
    for temperature in (AT_1, fitted):
        confidences = words.confidences[:, temperature]
        details["mean_confidence"] = float(confidences.mean())
        job = f"{name}, temperature {TEMPERATURES[temperature]:.2g}"
        rows += [
            pairs.row(
                f"{job}: cross-entropy",
                "nats a word",
                float(cross_entropies(confidences, words.right).mean()),
                **details,
            ),
            pairs.row(
                f"{job}: calibration error", "", calibration_error(confidences, words.right), **details
            ),
        ]
    return rows


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the demo's exported folder")
    parser.add_argument("--data", type=Path, help="the demo's corpus")
    return parser


def main() -> None:
    parser = command_line()
    options, ran = pairs.parse(parser)
    if not options.rehearse and not (options.model and options.data):
        parser.error("--model and --data are needed")
    pairs.prepare(options)
    with tempfile.TemporaryDirectory() as scratch:
        if options.rehearse:
            pairs.Worker("inference:save_model", Path(scratch), workload.settings("tiny")).close()
            recogniser = Recogniser.from_pretrained(scratch)
            dev = test = random_clips(recogniser, 6)
        else:
            recogniser = Recogniser.from_pretrained(options.model)
            dev, test = (corpus_clips(recogniser, options.data, split) for split in ("dev", "test"))
    on_dev = judge(recogniser, some_clips(dev))
    fitted = int(np.flatnonzero(fit_temperature(on_dev) == TEMPERATURES)[0])
    sets = {"dev, which it is fitted on": on_dev, "test": judge(recogniser, test)}
    for decibels in (20, 10):
        sets[f"test, noise at -{decibels} dB"] = judge(recogniser, with_noise(test, decibels))
    rows = [row for name, words in sets.items() for row in report(name, words, fitted)]
    pairs.write(options, ran, options.device, rows)


if __name__ == "__main__":
    main()

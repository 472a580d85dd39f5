"""Clips to batches, without a device: ours, and a torch DataLoader's of the same clips, in turns.

    python benchmarks/input_pipeline.py

Clips of TIMIT's lengths are written as 16-bit WAV: normal, 3.07 s in the mean with a standard deviation of
0.86 s, cut to 0.9 to 4 s as the recipe's training set. "Without cache" decodes every clip of an epoch anew
and makes its batches; "from the cache" opens the package's cache of decoded clips, as a second start does,
and makes them of it. "Least" padding is the lower bound over all plans of full batches with so many shapes.
Theirs: every clip decoded by soundfile, normalised and padded by transformers' feature extractor, in the
worker processes of a DataLoader, batches grouped by length as Trainer's `group_by_length` does.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pairs
from pairs import Worker
from workload import SAMPLE_RATE

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def write_clips(folder: Path, count: int) -> list[Path]:
    """Noise as 16-bit WAV files."""
    import soundfile

    random = np.random.default_rng(0)
    seconds = random.normal(3.07, 0.86, 4 * count)
    seconds = seconds[(seconds > 0.9) & (seconds < 4)][:count]
    paths = []
    for i, length in enumerate(seconds):
        paths.append(folder / f"{i:05d}.wav")
        noise = (1000 * random.standard_normal(int(length * SAMPLE_RATE))).astype(np.int16)
        soundfile.write(paths[-1], noise, SAMPLE_RATE, subtype="PCM_16")
    return paths


class FlaxInput:
    """The package's decoding, plan and iterator, as train.py strings them together."""

    def __init__(self, paths: list[Path], batch: int, buckets: int, threads: int):
        from flax_wavlm.data.corpora.utterance import Utterance
        from flax_wavlm.data.tokenizer import CTCTokenizer
        from flax_wavlm.models.config import WavLMConfig

        random = np.random.default_rng(1)
        texts = ["".join(random.choice(list(LETTERS), 38)) for _ in paths]
        self.speech = [Utterance(path.stem, path, text) for path, text in zip(paths, texts, strict=True)]
        self.tokenizer = CTCTokenizer.from_texts([LETTERS])
        self.frame_count = WavLMConfig().frame_count
        self.batch, self.buckets, self.threads = batch, buckets, threads
        self.cache = paths[0].parent / "cache"
        self._decode(cached=True)

    def _decode(self, cached: bool) -> list[Any]:
        from flax_wavlm.data.clips import usable_clips

        clips, skipped = usable_clips(
            self.speech,
            self.tokenizer,
            frame_count=self.frame_count,
            threads=self.threads,
            cache=self.cache if cached else None,
        )
        assert not skipped, skipped[0]
        return clips

    def _epoch(self, clips: list[Any]) -> None:
        from flax_wavlm.data.batches import Batches, train_iterator
        from flax_wavlm.data.buckets import choose_buckets

        self.lengths = lengths = np.array([len(clip.samples) for clip in clips])
        chosen = choose_buckets(
            lengths, self.buckets, batch_size=self.batch, min_batches=4, frame_count=self.frame_count
        )
        steps = -(-len(clips) // self.batch)
        batches = Batches(clips, self.batch, chosen, steps=steps, seed=0, do_normalize=True)
        for _ in train_iterator(batches, threads=self.threads):
            pass
        self.plan_padding = batches.plan(0).padding(lengths)

    def block(self, cached: bool) -> float:
        """Seconds for an epoch."""
        start = time.perf_counter()
        self._epoch(self._decode(cached))
        return time.perf_counter() - start

    def padding(self) -> float:
        return self.plan_padding

    def least(self, shapes: int) -> float:
        """Padding of the best plan of full batches with so many shapes, odd frame counts allowed."""
        from flax_wavlm.data.buckets import choose_buckets
        from flax_wavlm.data.plans import plan_epoch

        best = choose_buckets(self.lengths, shapes, batch_size=self.batch)
        return plan_epoch(self.lengths, self.batch, best, seed=0, epoch=0).padding(self.lengths)


class Files:
    """A torch dataset: the samples [N] of each file, decoded when asked for, or before."""

    def __init__(self, paths: list[Path], cached: bool):
        self.paths = paths
        self.decoded = [self._decode(path) for path in paths] if cached else None

    def _decode(self, path: Path) -> np.ndarray:
        import soundfile

        return soundfile.read(path, dtype="float32")[0]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.decoded[index] if self.decoded is not None else self._decode(self.paths[index])


class TorchInput:
    """A DataLoader whose batches are padded to their longest clip."""

    def __init__(self, paths: list[Path], batch: int, workers: int):
        import soundfile
        import torch
        import transformers
        from transformers.trainer_pt_utils import LengthGroupedSampler

        torch.set_num_threads(1)
        lengths = [soundfile.info(path).frames for path in paths]
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
        self.samples = sum(lengths)
        self.loaders = {
            cached: torch.utils.data.DataLoader(
                Files(paths, cached),
                batch,
                sampler=LengthGroupedSampler(batch, lengths=lengths),
                collate_fn=functools.partial(
                    extractor, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt"
                ),
                num_workers=workers,
                multiprocessing_context="fork",
            )
            for cached in (True, False)
        }

    def block(self, cached: bool) -> float:
        """Seconds for an epoch."""
        start, padded = time.perf_counter(), 0
        for batch in self.loaders[cached]:
            padded += batch["input_values"].numel()
        self.share = 1 - self.samples / padded
        return time.perf_counter() - start

    def padding(self) -> float:
        return self.share


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--clips", type=int, default=3978, help="TIMIT's training clips under 4 s")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--buckets", type=int, default=6, help="padded lengths")
    parser.add_argument("--blocks", type=int, default=3, help="pairs of them")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    if options.rehearse:
        options.clips, options.blocks = 128, 1
    options.device = "cpu"
    pairs.prepare(options)
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_clips(Path(scratch), options.clips)
        size = (options.batch, options.buckets, options.cores)
        with pairs.workers(
            ours=lambda: Worker("input_pipeline:FlaxInput", paths, *size),
            theirs=lambda: Worker("input_pipeline:TorchInput", paths, options.batch, options.cores),
        ) as (flax, torch):
            for cached, job in ((False, "without cache"), (True, "from the cache")):
                measured = pairs.alternate(
                    lambda cached=cached: flax("block", cached),
                    lambda cached=cached: torch("block", cached),
                    options.blocks,
                )
                rates = [options.clips / spread.median for spread in (measured.ours, measured.theirs)]
                lines.append(
                    pairs.row(
                        job,
                        "clips a second",
                        rates[0],
                        theirs=rates[1],
                        at_least=1000 if cached and not options.rehearse else None,
                        blocks=measured.blocks,
                        seconds_ratio=measured.ratio._asdict(),
                    )
                )
            lines.append(
                pairs.row(
                    f"padding, {options.buckets} shapes, batches of {options.batch}",
                    "of all samples",
                    flax("padding"),
                    theirs=torch("padding"),
                    at_most=None if options.rehearse else 0.05,
                )
            )
            for shapes in (options.buckets, 8, 10, 12):
                job = f"least padding of any plan, {shapes} shapes, batches of {options.batch}"
                lines.append(pairs.row(job, "of all samples", flax("least", shapes)))
    pairs.write(options, ran, "cpu", lines)


if __name__ == "__main__":
    main()

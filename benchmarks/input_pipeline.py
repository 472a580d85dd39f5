"""Clips a second that the input pipeline makes, with and without the cache, and the padding of its batches.

    python benchmarks/input_pipeline.py [--clips 1000] [--seconds 4] [--batch_size 32] [--threads 2]

Writes 16-bit WAV files of noise into a temporary folder. "decode": files to clips in memory, as without a
cache. "cache, first": the same into the cache. "cache, second": what every later start takes. "batches": an
epoch of batches through the prefetching iterator, from the cache. Prints one JSON object.

Padding is of lengths drawn from a normal distribution, mean 3.07 s and standard deviation 0.86 s, cut to
0.9-4.0 s for the training set of the TIMIT recipe and to 0.9-7.8 s for the whole corpus. "least" is the lower
bound over all plans of full batches with so many shapes; "plan" is an epoch's, whose shapes have an even
number of frames and hold four batches or more.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from flax_wavlm.audio import SAMPLE_RATE
from flax_wavlm.batches import Batches, choose_buckets, decode_clips, plan_epoch, train_iterator
from flax_wavlm.config import WavLMConfig
from flax_wavlm.corpora import Utterance
from flax_wavlm.text import CTCTokenizer

CONFIG = WavLMConfig(feat_extract_norm="layer", do_stable_layer_norm=True)


def speed(clips: int, seconds: float, batch_size: int, threads: int, repeats: int = 5) -> dict[str, Any]:
    """Clips a second: median, lowest and highest."""
    random = np.random.default_rng(0)
    tokenizer = CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz"])
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    with tempfile.TemporaryDirectory() as folder:
        utterances = []
        for i in range(clips):
            file = Path(folder) / f"{i}.wav"
            noise = random.integers(-9000, 9000, int(seconds * SAMPLE_RATE) - i % 100, dtype=np.int16)
            soundfile.write(file, noise, SAMPLE_RATE, subtype="PCM_16")
            utterances.append(Utterance(str(i), file, "she had your dark suit in greasy wash water all year"))

        def decode(cache: Path | None) -> list:
            return decode_clips(
                utterances, tokenizer, frame_count=CONFIG.frame_count, cache=cache, threads=threads
            )[0]

        for repeat in range(repeats):
            cache = Path(folder) / f"cache{repeat}"
            timed("decode", lambda: decode(None))
            timed("cache, first", lambda cache=cache: decode(cache))
            kept = timed("cache, second", lambda cache=cache: decode(cache))
            lengths = [len(clip.samples) for clip in kept]
            buckets = choose_buckets(lengths, 1, batch_size=batch_size, frame_count=CONFIG.frame_count)
            batches = Batches(kept, batch_size, buckets, steps=2**20, seed=0, do_normalize=True)
            iterator = train_iterator(batches, threads=threads)

            def epoch(iterator=iterator, steps=batches.steps_per_epoch) -> None:
                for _ in range(steps):
                    next(iterator)

            timed("batches, first epoch", epoch)
            timed("batches, later epochs", epoch)
    return {
        name: {
            key: round(clips / f(values))
            for key, f in (("median", np.median), ("lowest", max), ("highest", min))
        }
        for name, values in times.items()
    }


def padding(n: int, longest: float, batch_size: int) -> dict[str, Any]:
    """Share of padded samples, for some numbers of shapes."""
    seconds = np.random.default_rng(0).normal(3.07, 0.86, 4 * n)
    lengths = (seconds[(seconds > 0.9) & (seconds < longest)][:n] * SAMPLE_RATE).astype(np.int64)
    result = {}
    for shapes in (4, 6, 8, 10, 12):
        least = choose_buckets(lengths, shapes, batch_size=batch_size)
        used = choose_buckets(
            lengths, shapes, batch_size=batch_size, min_batches=4, frame_count=CONFIG.frame_count
        )
        plans = {"least": least, "plan": used}
        result[f"{shapes} shapes"] = {
            name: round(plan_epoch(lengths, batch_size, buckets, seed=0, epoch=0).padding(lengths), 4)
            for name, buckets in plans.items()
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(
        json.dumps(
            {
                "settings": {**vars(args), "cpus": os.cpu_count(), "load": os.getloadavg()[0]},
                "clips_per_second": speed(**vars(args)),
                "padding": {
                    "TIMIT, training clips under 4 s": padding(3978, 4.0, args.batch_size),
                    "TIMIT, all training clips": padding(4620, 7.8, args.batch_size),
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

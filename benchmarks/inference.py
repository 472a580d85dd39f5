"""Clips to text, ours and transformers' speech recognition pipeline in turns, both in batches.

    python benchmarks/inference.py --size base
    python benchmarks/inference.py --device cuda --size large --clips 512 --batch 32 --dtype bfloat16

Random weights, the head's scaled up so that they say something. In float32 the texts must be equal to what
the pipeline says of each clip alone; batched, it hears a base model's padding, so its batched texts are
counted only. With --one_by_one the pipeline is timed clip by clip too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import workload
from pairs import Worker

TARGETS = {("cpu", "base"): 0.5}


def save_model(folder: Path, chosen: dict[str, Any]) -> None:
    """Weights, tokenizer and preprocessor: a folder that both sides load."""
    import torch
    import transformers

    from flax_wavlm.data.preprocessor import Preprocessor
    from flax_wavlm.data.tokenizer import CTCTokenizer

    torch.manual_seed(0)
    tokenizer = CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'"])
    chosen = chosen | {"vocab_size": tokenizer.size, "pad_token_id": tokenizer.blank_id}
    model = transformers.WavLMForCTC(transformers.WavLMConfig(**chosen))
    with torch.no_grad():
        model.lm_head.weight.normal_()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    masked = chosen.get("feat_extract_norm") == "layer"
    Preprocessor(do_normalize=True, return_attention_mask=masked).save(folder)


def make_clips(count: int) -> list[np.ndarray]:
    """Stretches of a speech-like signal, 1 to 8 s, 3 s in the mean: TIMIT's lengths."""
    from flax_wavlm.porting.verify import speech_like

    random = np.random.default_rng(0)
    seconds = np.clip(random.lognormal(np.log(2.9), 0.3, count), 1, 8)
    signal = speech_like(9 + count / 100)
    return [signal[160 * i :][: int(length * workload.SAMPLE_RATE)] for i, length in enumerate(seconds)]


class FlaxRecogniser:
    """The package's own, as scripts/transcribe.py calls it."""

    def __init__(self, folder: Path, clips: list[np.ndarray], batch: int, dtype: str):
        from flax_wavlm.recognition.recogniser import Recogniser

        self.recogniser = Recogniser.from_pretrained(folder, dtype=dtype)
        self.clips, self.batch = clips, batch

    def texts(self) -> list[str]:
        return [t.text for t in self.recogniser.transcribe(self.clips, batch_size=self.batch)]

    def block(self) -> float:
        start = time.perf_counter()
        self.texts()
        return time.perf_counter() - start

    def device(self) -> str:
        import jax

        return jax.devices()[0].device_kind


class TorchPipeline:
    """transformers' pipeline as its documentation calls it."""

    def __init__(self, folder: Path, clips: list[np.ndarray], *, device: str, dtype: str, threads: int):
        import torch
        import transformers

        if device == "cpu":
            torch.set_num_threads(threads)
        self.pipeline = transformers.pipeline(
            "automatic-speech-recognition", model=str(folder), device=device, dtype=getattr(torch, dtype)
        )
        self.clips = clips

    def texts(self, batch: int) -> list[str]:
        return [result["text"] for result in self.pipeline(list(self.clips), batch_size=batch)]

    def block(self, batch: int) -> float:
        start = time.perf_counter()
        self.texts(batch)
        return time.perf_counter() - start


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--size", choices=tuple(workload.SIZES), default="base")
    parser.add_argument("--layers", type=int, default=0, help="in place of the size's own; 0: those")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--one_by_one", action="store_true", help="time the pipeline without batches too")
    parser.add_argument("--blocks", type=int, default=3, help="pairs of them")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    if options.rehearse:
        options.size, options.clips, options.batch, options.blocks = "tiny", 6, 2, 2
    pairs.prepare(options)

    chosen = workload.settings(options.size, layers=options.layers)
    clips = make_clips(options.clips)
    audio = sum(map(len, clips)) / workload.SAMPLE_RATE
    how = {"device": options.device, "dtype": options.dtype, "threads": options.cores}
    timed = [options.batch, 1] if options.one_by_one else [options.batch]
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Worker("inference:save_model", folder, chosen).close()
        with pairs.workers(
            ours=lambda: Worker("inference:FlaxRecogniser", folder, clips, options.batch, options.dtype),
            theirs=lambda: Worker("inference:TorchPipeline", folder, clips, **how),
        ) as (flax, torch):
            texts, alone, batched = flax("texts"), torch("texts", 1), torch("texts", options.batch)
            equal = sum(a == b for a, b in zip(texts, alone, strict=True))
            agree = sum(a == b for a, b in zip(batched, alone, strict=True))
            print(f"{equal} of {len(clips)} texts equal to the pipeline's for the clip alone")
            print(
                f"{agree} of the pipeline's own texts in batches of {options.batch}; e.g. {texts[0][:40]!r}"
            )
            if len(set(alone)) < len(alone) / 2:
                raise SystemExit(f"the texts say too little to compare: {alone}")
            if options.dtype == "float32" and equal < len(clips):
                raise SystemExit(f"the two sides do not compute the same: {texts} and {alone}")
            device = flax("device")
            for batch in timed:
                measured = pairs.alternate(
                    lambda: flax("block"), lambda batch=batch: torch("block", batch), options.blocks
                )
                layers = f", {options.layers} layers" if options.layers else ""
                whole = not (options.layers or options.rehearse) and batch > 1
                lines.append(
                    pairs.row(
                        f"{options.size}{layers}, {options.clips} clips, {options.dtype}, "
                        f"vs the pipeline, batches of {batch}",
                        "s for all",
                        measured.ours.median,
                        theirs=measured.theirs.median,
                        ratio=measured.ratio,
                        at_most=TARGETS.get((options.device, options.size)) if whole else None,
                        blocks=measured.blocks,
                        audio_seconds=audio,
                        real_time_factor=measured.ours.median / audio,
                        real_time_factor_theirs=measured.theirs.median / audio,
                        texts_equal=equal,
                        texts_of_pipeline_equal_in_batches=agree,
                    )
                )
    for line in lines:
        print(
            f"real-time factor {line['real_time_factor']:.4f}, theirs {line['real_time_factor_theirs']:.4f}"
        )
    pairs.write(options, ran, "cpu" if options.device == "cpu" else pairs.slug(device), lines)


if __name__ == "__main__":
    main()

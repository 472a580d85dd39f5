"""What a language model of the train text is worth, and what it costs to make one.

    python benchmarks/language_model.py

It runs `train_flax.py --config configs/demo.py` for 950 of its 1500 steps, to have a model that still makes
errors. Then train_lm.py makes a language model of train's text, tune_lm.py finds its weights on dev, and
evaluate.py reports test with it and by greedy decoding. No sentence of dev or test is in train. All their
words are: the grammar has 26, and a row with single words alone (order 1) says what knowing them is worth.

The costs are those of train_lm.py on ten million words drawn by Zipf's law, beside those of KenLM's lmplz
where that is installed: then the discounts of both must agree.

--scale 0.1 takes a tenth of clips, steps and words, which shows that everything works, and no more than that.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pairs

from flax_wavlm.data.corpora.load import load_corpus

ROOT = Path(__file__).parents[1]
SHARE_OF_GREEDY = 0.7  # target, on test
CLIPS = {"train": 6000, "dev": 100, "test": 100}
STEPS, WARMUP = 950, 100
ORDER, BEAM = 3, 100
WORDS, TYPES, SENTENCE = 10_000_000, 200_000, 20  # of the text by Zipf's law


class Cost(NamedTuple):
    """Of a program that has ended."""

    seconds: float
    peak: int  # bytes
    printed: str


def started(command: Sequence[str | Path]) -> Cost:
    """Runs a program to its end. The peak is right as long as no earlier one needed more."""
    began = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stdout}")
    return Cost(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, done.stdout)


def run(name: str, *arguments: str | Path) -> str:
    """What a command of `flax-wavlm` prints. It runs in this process, which has imported everything."""
    from flax_wavlm.cli import app

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = app.run(app.COMMANDS[name], list(map(str, arguments)))
    if status:
        raise RuntimeError(f"{name} {arguments} failed: {printed.getvalue()}")
    return printed.getvalue()


def train(folder: Path, scale: float) -> Path:
    """The early checkpoint's folder; its corpus is in folder/speech."""
    steps = max(20, round(STEPS * scale))
    clips = [
        f"--config.data.synthetic.{split}_clips={max(20, round(count * scale))}"
        for split, count in CLIPS.items()
    ]
    run(
        "train",
        f"--config={ROOT / 'configs' / 'demo.py'}",
        f"--workdir={folder / 'run'}",
        f"--config.data.path={folder / 'speech'}",
        f"--config.train.steps={steps}",
        f"--config.train.eval_every={steps}",
        "--config.train.aligner=false",
        f"--config.optim.warmup_steps={min(WARMUP, steps // 2)}",
        *clips,
    )
    return folder / "run" / "export"


def check_unseen(speech: Path) -> None:
    """The text that the language model is made of has no sentence of dev or test."""
    texts = {split: {clip.text for clip in load_corpus("synthetic", speech, split)[0]} for split in CLIPS}
    assert not texts["train"] & (texts["dev"] | texts["test"])


def error_rates(
    corpus: Sequence[str], splits: Sequence[str], decoding: Sequence[str] = ()
) -> dict[str, float]:
    """WER of each split."""

    def of_split(split: str) -> float:
        printed = run("evaluate", *corpus, f"--split={split}", *decoding)
        return float(re.findall(r"WER ([\d.]+)", printed)[-1])

    return {split: of_split(split) for split in splits}


def with_language_model(
    folder: Path, corpus: Sequence[str], splits: Sequence[str], order: int, beam: int
) -> dict[str, Any]:
    """The weights that dev chose, and WER of each split with them."""
    lm = folder / f"lm{order}.arpa"
    run("train-lm", *corpus, f"--order={order}", f"--output={lm}")
    search = [f"--lm={lm}", f"--beam={beam}"]
    weights = run("tune-lm", *corpus, *search).splitlines()[-1].split()
    chosen = dict(zip(("alpha", "beta"), map(float, weights[1::2]), strict=True))
    return {"order": order, **chosen, **error_rates(corpus, splits, [*search, *weights])}


def zipf_text(file: Path, words: int) -> None:
    """Words by Zipf's law with an exponent of 1.2, in sentences of 20."""
    rng = np.random.default_rng(0)
    with file.open("w") as text:
        for _ in range(0, words, SENTENCE * 1000):
            ids = np.minimum(rng.zipf(1.2, (1000, SENTENCE)), TYPES)
            text.writelines(" ".join(f"w{id}" for id in row) + "\n" for row in ids.tolist())


def discounts(printed: str) -> list[list[float]]:
    """The three of each order, from what train_lm.py or lmplz prints."""
    ours = re.findall(r"^\d-grams: [\d,]+, discounts (.*)$", printed, re.M)
    theirs = re.findall(r"^\d \S+ D1=(\S+) D2=(\S+) D3\+=(\S+)$", printed, re.M)
    return [list(map(float, line.split(", "))) for line in ours] or [
        list(map(float, line)) for line in theirs
    ]


def costs(folder: Path, words: int) -> list[dict[str, Any]]:
    """Seconds and memory of making a model of order 3 from made-up text."""
    text = folder / "zipf.txt"
    zipf_text(text, words)
    train_lm = [sys.executable, ROOT / "scripts" / "train_lm.py", "--text_rule=preset=written"]
    ours = started([*train_lm, f"--text={text}", f"--output={folder / 'zipf.arpa'}"])
    theirs = None
    if lmplz := shutil.which("lmplz"):
        theirs = started(
            [lmplz, "-o", str(ORDER), "--text", text, "--arpa", folder / "lmplz.arpa", "-S", "1G"]
        )
        np.testing.assert_allclose(discounts(ours.printed), discounts(theirs.printed), rtol=1e-3)
    job = f"train_lm.py, {words:,} words, order {ORDER}"
    return [
        pairs.row(
            job,
            "s",
            ours.seconds,
            theirs=None if theirs is None else theirs.seconds,
            ngrams=[int(count.replace(",", "")) for count in re.findall(r"-grams: ([\d,]+)", ours.printed)],
        ),
        pairs.row(f"{job}: peak memory", "GB", ours.peak / 1e9),
    ]


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of clips, steps and words; below 1: not kept"
    )
    parser.add_argument("--folder", type=Path, help="for the corpus and the run; default: temporary")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    scale = min(options.scale, 0.02) if options.rehearse else options.scale
    pairs.prepare(options)
    options.rehearse = scale < 1
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows += costs(folder, round(WORDS * scale))
        model = train(folder, scale)
        check_unseen(folder / "speech")
        corpus = ["--corpus=synthetic", f"--data={folder / 'speech'}", f"--model={model}"]
        # A rehearsal has no time for more than one of each.
        splits, orders = (("dev", "test"), (ORDER, 1)) if scale == 1 else (("test",), (ORDER,))
        greedy = error_rates(corpus, splits)
        print("greedy", greedy, flush=True)
        for order in orders:
            found = with_language_model(folder, corpus, splits, order, BEAM if scale == 1 else 10)
            print(found, flush=True)
            limit = SHARE_OF_GREEDY * greedy["test"] if order == ORDER and scale == 1 else None
            job = f"an early checkpoint's test, language model of order {order}; theirs: greedy"
            details = {"found": found, "greedy": greedy}
            rows.append(pairs.row(job, "WER", found["test"], theirs=greedy["test"], at_most=limit, **details))
    pairs.write(options, ran, options.device, rows)


if __name__ == "__main__":
    main()

"""The demo's model from scratch in other languages: German, and Mandarin, which has no blanks.

    python benchmarks/languages.py

For each language it runs `train_flax.py --config configs/demo.py`, which makes the corpus, chooses the best
checkpoint on dev, and evaluates the exported model on test once. Neither the sentences nor the voices of dev
and test are in train. Time counts from the command to its end. "Unseen words" are those of test that no
sentence of train has; their error rate is the share of them that are not recognised. A sentence without
blanks is one word, so in Mandarin all are unseen.

--scale 0.1 takes a tenth of the clips and steps, which shows that everything works, and no more than that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import pairs

from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.sentences import GRAMMARS
from flax_wavlm.training.report.metrics import read_metrics

ROOT = Path(__file__).parents[1]
MAX_CER = 0.1
MAX_SECONDS = 600


class Recipe(NamedTuple):
    """What differs from the demo's recipe."""

    name: str
    train_clips: int
    steps: int
    learning_rate: float = 2e-3
    buckets: int = 2
    speeds: str = ""  # of training clips, where they change


RECIPES = {
    "de": Recipe("German", 6000, 2500),
    "cmn": Recipe("Mandarin", 7000, 6800, learning_rate=3e-3, buckets=4, speeds="0.95,1,1.05"),
}
DEV_CLIPS, TEST_CLIPS = 100, 300


def settings(language: str, scale: float) -> dict[str, Any]:
    """The fields that the command line sets, by their dotted names."""
    recipe = RECIPES[language]

    def scaled(number: int) -> int:
        return max(20, round(number * scale))

    return {
        "data.synthetic.language": language,
        "data.synthetic.train_clips": scaled(recipe.train_clips),
        "data.synthetic.dev_clips": scaled(DEV_CLIPS),
        "data.synthetic.test_clips": scaled(TEST_CLIPS),
        "data.buckets": recipe.buckets,
        **({"data.augment.speeds": recipe.speeds} if recipe.speeds else {}),
        "text.preset": "auto",
        "train.aligner": False,
        "train.steps": scaled(recipe.steps),
        "train.eval_every": scaled(recipe.steps // 4),
        "train.log_every": scaled(200),
        "optim.learning_rate": recipe.learning_rate,
        "optim.warmup_steps": scaled(100),
    }


def train(language: str, folder: Path, scale: float) -> float:
    """Runs the command; its seconds. The run is in folder/run, the corpus in folder/speech."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "train_flax.py"),
        f"--config={ROOT / 'configs' / 'demo.py'}",
        f"--workdir={folder / 'run'}",
        f"--config.data.path={folder / 'speech'}",
        *(f"--config.{field}={value}" for field, value in settings(language, scale).items()),
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return time.perf_counter() - began


def words_of(texts: Iterable[str]) -> set[str]:
    """The words as references have them: in lower case, without the mark at the end of a sentence."""
    marks = "".join(grammar.end for grammar in GRAMMARS.values())
    return {word for text in texts for word in text.lower().rstrip(marks).split()}


def unseen_words(references: Sequence[str], hypotheses: Sequence[str], known: set[str]) -> dict[str, Any]:
    """How many words of the references are not known, their share, and how many of them are wrong."""
    aligned = jiwer.process_words(list(references), list(hypotheses))
    total = unseen = right = 0
    for words, chunks in zip(aligned.references, aligned.alignments, strict=True):
        total += len(words)
        unseen += sum(word not in known for word in words)
        for chunk in chunks:
            if chunk.type == "equal":
                right += sum(word not in known for word in words[chunk.ref_start_idx : chunk.ref_end_idx])
    return {
        "unseen_words": unseen,
        "unseen_share": unseen / total,
        "unseen_error_rate": (unseen - right) / unseen if unseen else None,
    }


def figures(language: str, folder: Path) -> dict[str, Any]:
    """What a finished run says of itself, and what its corpus has."""
    metrics = read_metrics(folder / "run" / "metrics.jsonl")
    test = next(row for row in metrics if row["split"] == "test")
    dev = next(row for row in metrics if row["split"] == "dev" and row["step"] == test["step"])
    losses = [row["loss"] for row in metrics if row["split"] == "train"]
    lines = (folder / "run" / "predictions" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    predictions = [json.loads(line) for line in lines]
    references = [line["reference"] for line in predictions]
    clips, _ = load_corpus("synthetic", folder / "speech", "train")
    known = words_of(clip.text for clip in clips)
    return {
        "cer": test["cer"],
        "wer": test["wer"],
        "test_clips": len(references),
        "chosen_on": "dev",
        "chosen_by": dev["best_by"],
        "chosen_step": dev["step"],
        "dev_cer": dev["cer"],
        "dev_wer": dev["wer"],
        "first_and_last_loss": [losses[0], losses[-1]],
        "train_word_types": len(known),
        "character_types": len(set().union(*references) - {" "}),
        **unseen_words(references, [line["hypothesis"] for line in predictions], known),
        "settings": {key: str(value) for key, value in settings(language, 1.0).items()},
    }


def report(name: str, found: dict[str, Any], seconds: float, *, full: bool) -> list[dict[str, Any]]:
    """The lines of the table: errors, and time."""
    limits = (MAX_CER, MAX_SECONDS) if full else (None, None)
    return [
        pairs.row(f"{name} from scratch, test", "CER", found["cer"], at_most=limits[0], **found),
        pairs.row(f"{name} from scratch, command to its end", "s", seconds, at_most=limits[1]),
    ]


def in_words(name: str, found: dict[str, Any], seconds: float) -> str:
    """The same for a person."""
    unseen = found["unseen_error_rate"]
    parts = [
        f"{name}: test CER {found['cer']:.4f}, WER {found['wer']:.4f}",
        f"{found['test_clips']} clips of unseen voices and sentences",
        f"{seconds:.0f} s from the command to its end",
        f"chosen on {found['chosen_on']} by {found['chosen_by']}: step {found['chosen_step']}, dev CER "
        f"{found['dev_cer']:.4f}, WER {found['dev_wer']:.4f}",
        f"train has {found['train_word_types']} words, test {found['character_types']} characters",
        f"{found['unseen_share']:.1%} of test's words are not in train"
        + ("" if unseen is None else f", and {unseen:.1%} of those are wrong"),
    ]
    return "; ".join(parts)


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of clips and steps; below 1: not kept")
    parser.add_argument("--languages", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--folder", type=Path, help="for corpora and runs; default: temporary")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    scale = min(options.scale, 0.1) if options.rehearse else options.scale
    pairs.prepare(options)
    options.rehearse = scale < 1
    rows, said = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for language in options.languages:
            folder = (options.folder or Path(temporary)) / language
            seconds = train(language, folder, scale)
            found = figures(language, folder)
            name = RECIPES[language].name
            rows += report(name, found, seconds, full=not options.rehearse)
            said.append(in_words(name, found, seconds))
            print(said[-1], flush=True)
    pairs.write(options, ran, options.device, rows)
    if kept := options.results or (None if options.rehearse else pairs.RESULTS):
        environment = pairs.environment()
        machine = "{cores} cores of {cpu}, load {load:.1f}, jax {jax}".format(**environment)
        file = kept / f"languages-{options.device}.txt"
        before = file.read_text().splitlines() if file.exists() else []
        mine = tuple(f"{RECIPES[language].name}:" for language in options.languages)
        others = [line for line in before if not line.startswith(mine)]
        file.write_text("\n".join([*others, *(f"{line}; {machine}" for line in said)]) + "\n")


if __name__ == "__main__":
    main()

"""Leaks planted in a corpus: each is in what a dry run writes, for dev and for test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.recognition.ctc_task import character_ctc
from flax_wavlm.training.config import DataSettings, LoopSettings
from flax_wavlm.training.dry_run import what_there_is
from flax_wavlm.training.speech import prepare_speech
from flax_wavlm.training.splits import load_splits
from flax_wavlm.training.start import StartingPoint

SECONDS = 2
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def leaks(folder: Path) -> list[str]:
    """Those of `dry_run.json`."""
    data = DataSettings(corpus="manifest", path=str(folder), buckets=1)
    splits = load_splits(data)
    texts = [utterance.text for utterances in splits.by_name().values() for utterance in utterances]
    tokenizer = CTCTokenizer.from_texts(texts)
    task = character_ctc(tokenizer, reduction="mean")
    origin = StartingPoint(
        None,
        WavLMConfig(**task.settings),
        True,
        task,
        tokenizer,
        Preprocessor(True, return_attention_mask=True),
    )
    loop = LoopSettings(batch_size=2, eval_batch_size=2, steps=1)
    found = what_there_is(prepare_speech(splits, origin, data, loop, cache=None, seed=0))
    return json.loads(json.dumps(found))["leaks"]


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of a clean corpus of four clips a split; no speaker, text or sound is there twice."""
    random = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "dev", "test"):
        rows[split] = []
        for number in range(4):
            name = f"{split}-{number}"
            soundfile.write(tmp_path / f"{name}.wav", random.uniform(-0.5, 0.5, SECONDS * 16_000), 16_000)
            text = f"{split} says {WORDS[number]}"
            rows[split].append({"audio_filepath": f"{name}.wav", "text": text, "speaker": name})
    return rows


def write(folder: Path, corpus: dict[str, list[dict[str, Any]]]) -> None:
    for split, rows in corpus.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def plant(kind: str, folder: Path, row: dict[str, Any], trained: dict[str, Any], split: str) -> None:
    """Puts something of a clip of train into a clip of another split."""
    if kind == "speaker":
        row["speaker"] = trained["speaker"]
    elif kind == "recording":  # two parts of one file
        trained |= {"offset": 0.0, "duration": SECONDS / 2}
        row |= {"audio_filepath": trained["audio_filepath"], "offset": SECONDS / 2, "duration": SECONDS / 2}
    elif kind == "text":
        row["text"] = f"{trained['text'].upper()}!"
    else:
        copied = soundfile.read(folder / trained["audio_filepath"], dtype="int16")[0]
        soundfile.write(folder / f"copy-{split}.wav", copied, 16_000)
        row["audio_filepath"] = f"copy-{split}.wav"


SAID = {
    "speaker": "1 speakers are also in train (train-",
    "recording": "1 recordings are also in train (",
    "text": "1 of its 4 clips have a text that is also in train: 'train says ",
    "audio": "1 clips have the same audio as a clip of train: copy-",
}


def test_a_clean_corpus_has_none(
    tmp_path: Path, corpus: dict[str, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, corpus)
    assert leaks(tmp_path) == []


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_each_is_found_alone(
    kind: str, split: str, tmp_path: Path, corpus: dict[str, list[dict[str, Any]]]
) -> None:
    plant(kind, tmp_path, corpus[split][2], corpus["train"][1], split)
    write(tmp_path, corpus)
    [leak] = leaks(tmp_path)
    assert leak.startswith(f"{split}: {SAID[kind]}")


def test_all_are_found_together(tmp_path: Path, corpus: dict[str, list[dict[str, Any]]]) -> None:
    for shift, split in enumerate(("dev", "test")):
        for number, kind in enumerate(SAID):
            plant(kind, tmp_path, corpus[split][number], corpus["train"][(number + shift) % 4], split)
    write(tmp_path, corpus)
    found = leaks(tmp_path)
    assert len(found) == 2 * len(SAID)
    for split in ("dev", "test"):
        for said in SAID.values():
            assert [leak for leak in found if leak.startswith(f"{split}: {said}")], (split, said, found)

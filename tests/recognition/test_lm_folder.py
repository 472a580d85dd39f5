"""The language model in a model's folder: pyctcdecode's layout, written, read, and damaged."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import refused

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.recognition.beam_search.folder import alphabet, folder_lm, write_lm
from flax_wavlm.recognition.beam_search.settings import BeamSettings

TOKENIZER = CTCTokenizer.from_texts(["abc"])
SETTINGS = BeamSettings(alpha=0.75, beta=-1.0, unknown_offset=-4.0, boundaries=False)
ARPA = "\\data\\\nngram 1=3\n"  # it is copied, not read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a language model, which came as a compressed file."""
    source = tmp_path / "words.arpa.gz"
    source.write_bytes(gzip.compress(ARPA.encode()))
    model = tmp_path / "model"
    model.mkdir()
    written = write_lm(model, source, ["b", "ab"], SETTINGS, TOKENIZER)
    assert written == model / "language_model" / "lm.arpa"
    return model


def test_layout_is_pyctcdecodes(folder: Path) -> None:
    """It wants these three files and no other, uncompressed, and these four attributes and no other."""
    place = folder / "language_model"
    assert sorted(file.name for file in place.iterdir()) == ["attrs.json", "lm.arpa", "unigrams.txt"]
    assert (place / "lm.arpa").read_text() == ARPA
    assert (place / "unigrams.txt").read_text() == "ab\nb\n"
    attributes = {"alpha": 0.75, "beta": -1.0, "unk_score_offset": -4.0, "score_boundary": False}
    assert json.loads((place / "attrs.json").read_text()) == attributes
    labels = ["a", "b", "c", " ", "\u2047", "", "<s>", "</s>"]
    assert json.loads((folder / "alphabet.json").read_text()) == {"labels": labels, "is_bpe": False}


def test_what_is_written_is_read(folder: Path) -> None:
    assert folder_lm(folder, TOKENIZER) == (folder / "language_model" / "lm.arpa", SETTINGS)
    other = folder / "language_model" / "lm.arpa"
    write_lm(folder, other, [], BeamSettings(), TOKENIZER)  # its own file, with other weights
    assert folder_lm(folder, TOKENIZER) == (other, BeamSettings())
    assert other.read_text() == ARPA


def test_a_new_language_model_takes_the_place_of_any_other(folder: Path) -> None:
    place = folder / "language_model"
    (place / "lm.arpa").rename(place / "5gram.arpa")
    (place / "5gram.bin").write_bytes(b"mmap lm http://kheafield.com/code")
    write_lm(folder, place / "5gram.arpa", ["c"], SETTINGS, TOKENIZER)
    assert sorted(file.name for file in place.iterdir()) == ["attrs.json", "lm.arpa", "unigrams.txt"]


def test_no_language_model(tmp_path: Path) -> None:
    assert folder_lm(tmp_path, TOKENIZER) is None
    (tmp_path / "alphabet.json").write_text("{}")  # of a decoder without one
    (tmp_path / "language_model").mkdir()
    assert folder_lm(tmp_path, TOKENIZER) is None


def test_language_models_that_cannot_be_used(folder: Path) -> None:
    place = folder / "language_model"
    (place / "other.arpa.gz").touch()
    with refused("holds 2 ARPA files, lm.arpa, other.arpa.gz", expected="one"):
        folder_lm(folder, TOKENIZER)
    (place / "lm.arpa").unlink()
    (place / "other.arpa.gz").rename(place / "lm.binary")
    with refused("lm.binary, KenLM's binary format", expected="ARPA", do=r"put the ARPA .*decoding\.lm=none"):
        folder_lm(folder, TOKENIZER)
    (place / "lm.binary").unlink()  # as of a hub's repository, of which binary files are not downloaded
    with refused("holds no ARPA file"):
        folder_lm(folder, TOKENIZER)


@pytest.mark.parametrize(
    ("attributes", "parts"),
    [
        ("{", {"problem": "not JSON"}),
        ("[]", {"problem": "holds a list"}),
        ('{"alpha": "0.5"}', {"field": "alpha", "found": "0.5", "expected": "a number"}),
        ('{"alpha": -1}', {"field": "alpha", "found": -1.0, "expected": "0 or more"}),
        ('{"beta": NaN}', {"field": "beta", "found": math.nan, "expected": "a number"}),
        ('{"score_boundary": 1}', {"field": "score_boundary", "found": 1, "expected": "true or false"}),
    ],
)
def test_damaged_attributes(folder: Path, attributes: str, parts: dict[str, Any]) -> None:
    (folder / "language_model" / "attrs.json").write_text(attributes)
    with refused(where="attrs.json", **parts):
        folder_lm(folder, TOKENIZER)


def with_labels(folder: Path, labels: object) -> Path:
    (folder / "alphabet.json").write_text(json.dumps({"labels": labels, "is_bpe": False}))
    return folder


def test_an_alphabet_of_another_vocabulary_is_named(folder: Path) -> None:
    labels = alphabet(TOKENIZER)
    for same in (labels, [label.upper() for label in labels], labels[:-2], [*labels, "<extra>"]):
        assert folder_lm(with_labels(folder, same), TOKENIZER) is not None
    with refused("2 of 8 labels are not the tokenizer's: 0: 'b' in place of 'a', 1: 'a' in place of 'b'"):
        folder_lm(with_labels(folder, ["b", "a", *labels[2:]]), TOKENIZER)
    with refused("1 of 9 labels are not the tokenizer's: 8: 'd' in place of None"):
        folder_lm(with_labels(folder, [*labels, "d"]), TOKENIZER)
    with refused(where="alphabet.json", field="labels", expected="a list of labels"):
        folder_lm(with_labels(folder, "abc"), TOKENIZER)

"""Which decoder a model gets, by what the user asks and what its folder has; and files of hot words."""

import ast
import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import refused

import flax_wavlm
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.recognition.beam_search.choice import Asked, choose_decoder, read_hotwords
from flax_wavlm.recognition.beam_search.decoder import BeamDecoder
from flax_wavlm.recognition.beam_search.folder import write_lm
from flax_wavlm.recognition.beam_search.settings import BeamSettings

TOKENIZER = CTCTokenizer.from_texts(["abc d"])
ARPA = r"""
\data\
ngram 1=5

\1-grams:
-99	<s>
-1	</s>
-4	<unk>
-0.5	ab
-0.5	c

\end\
"""


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    file = tmp_path / "words.arpa"
    file.write_text(ARPA)
    return file


@pytest.fixture
def folder(tmp_path: Path, arpa: Path) -> Path:
    """A model's folder with a language model of its own."""
    model = tmp_path / "model"
    model.mkdir()
    write_lm(model, arpa, ["ab", "c"], BeamSettings(alpha=0.25, beta=3.0, unknown_offset=-2.0), TOKENIZER)
    return model


def chosen(folder: Path, **asked: Any) -> BeamDecoder:
    found = choose_decoder(Asked(**asked), folder, TOKENIZER, temperature=1.5)
    assert isinstance(found, BeamDecoder)
    assert found.temperature == 1.5
    return found


def test_greedy_is_what_nobody_changes(tmp_path: Path, folder: Path) -> None:
    assert choose_decoder(Asked(), tmp_path, TOKENIZER) is None
    assert choose_decoder(Asked(lm="none"), folder, TOKENIZER) is None


def test_a_folders_own_language_model_is_used_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flax_wavlm"):
        found = chosen(folder)
    assert found.settings == BeamSettings(alpha=0.25, beta=3.0, unknown_offset=-2.0)
    assert "lm.arpa: the model's own language model is used; without it: decoding.lm=none" in caplog.text
    assert found.describe() == "beam 100, lm.arpa, alpha 0.25, beta 3"
    asked = chosen(folder, beam=7, alpha=0.0)
    assert asked.settings == dataclasses.replace(found.settings, beam=7, alpha=0.0)


def test_another_language_model_has_the_default_weights(folder: Path, arpa: Path) -> None:
    assert chosen(folder, lm=arpa).settings == BeamSettings()
    assert chosen(folder, lm=arpa, beta=-2.0).describe() == "beam 100, words.arpa, alpha 0.5, beta -2"


def test_beam_or_hot_words_without_a_language_model(tmp_path: Path, folder: Path) -> None:
    for found in (chosen(tmp_path, hotwords=["dad"]), chosen(folder, lm="none", beam=100)):
        assert found.describe() == "beam 100, no language model"
    with refused("cannot spell 'xyz'"):
        chosen(tmp_path, hotwords=["xyz"])


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ({"beam": 0}, {"field": "decoding.beam", "found": 0, "expected": "1 to"}),
        ({"beam": 10**9}, {"field": "decoding.beam", "expected": "1 to"}),
        ({"beam": 2.5}, {"field": "decoding.beam", "found": 2.5, "expected": "1 to"}),
        ({"hotwords": "Taipei"}, {"field": "decoding.hotwords", "expected": "a list of words"}),
        ({"alpha": math.nan}, {"field": "decoding.alpha", "expected": "a number"}),
        ({"alpha": -0.5}, {"field": "decoding.alpha", "found": -0.5, "expected": "0 or more"}),
        ({"beta": math.inf}, {"field": "decoding.beta", "found": math.inf, "expected": "a number"}),
        ({"lm": ""}, {"field": "decoding.lm", "expected": "an ARPA file, or none"}),
        ({"lm": "none", "alpha": 1.0}, {"field": "decoding.alpha", "expected": "no language model"}),
        ({"beta": 1.0}, {"field": "decoding.beta", "expected": "no language model", "do": r"decoding\.lm"}),
        ({"lm": "missing.arpa"}, {"where": "missing.arpa"}),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, asked: dict[str, Any], parts: dict[str, Any]) -> None:
    with refused(**parts):
        choose_decoder(Asked(**asked), tmp_path, TOKENIZER)


def test_hot_words(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffTaipei\r\n\r\n  New \t York\nTaipei\n".encode())
    assert read_hotwords(file) == ["Taipei", "New York"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", {"problem": "has no hot words"}),
        (b" \n\n", {"problem": "has no hot words"}),
        (b"one\ntw\xff\n", {"problem": "byte 0xff is not UTF-8", "where": "words.txt:2"}),
        (b"one\ntw\x00o\n", {"problem": "characters that nobody says", "where": "words.txt:2"}),
        (b"a" * (2**20 + 1), {"problem": "1.0 MiB of hot words", "expected": "at most 1"}),
    ],
)
def test_bad_files_of_hot_words(tmp_path: Path, content: bytes, parts: dict[str, str]) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    with refused(**parts):
        read_hotwords(file)
    with refused(where="no-words.txt"):
        read_hotwords(tmp_path / "no-words.txt")


def test_greedy_decoding_loads_no_numba() -> None:
    """Whatever a recogniser imports at once, and what that imports, is without it."""
    package = Path(flax_wavlm.__file__).parent
    seen, waiting = set(), ["flax_wavlm.recognition.recogniser", "flax_wavlm.cli.transcribe"]
    while waiting:
        module = waiting.pop()
        file = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if module in seen or not file.exists():
            continue
        seen.add(module)
        waiting += [name for name in imported_at_once(file) if name.startswith("flax_wavlm.")]
        assert not {name for name in imported_at_once(file) if name.split(".")[0] in ("numba", "llvmlite")}
    assert len(seen) > 50
    assert "flax_wavlm.recognition.beam_search.choice" in seen
    assert "flax_wavlm.recognition.beam_search.decoder" not in seen


def imported_at_once(file: Path) -> Iterator[str]:
    """The modules that a file imports where it is imported itself."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)

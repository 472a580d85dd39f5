"""A known text as labels, and as words with times again."""

from pathlib import Path

import numpy as np
import pytest

from flax_wavlm.data.text import TextRule
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.recognition import known_text as known_text_module
from flax_wavlm.recognition.align import align_text
from flax_wavlm.recognition.emissions import Emissions
from flax_wavlm.recognition.known_text import KnownText, known_text, read_text

TOKENIZER = CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'"])
CHINESE = CTCTokenizer.from_texts(["你好世界"])
PHONES = CTCTokenizer.from_texts(["sh iy hh"], TextRule(preset="tokens"))


def spelt(known: KnownText) -> list[str]:
    return [known.text[word.begin : word.end] for word in known.words]


def test_words_are_the_texts_own_and_labels_the_vocabularys() -> None:
    known = known_text(TOKENIZER, "  Don't — stop,\n\tplease!  ")
    assert known.text == "Don't — stop, please!"
    assert spelt(known) == ["Don't", "stop,", "please!"]
    assert "".join(known.symbols) == "don't stop please"
    assert known.ids.tolist() == TOKENIZER.encode(TOKENIZER.normalise("Don't — stop, please!"))
    assert np.flatnonzero(known.stars).tolist() == [0, 6, 11, 17]
    assert np.flatnonzero(known.delimiters).tolist() == [5, 10]
    assert known.written(0, 2) == "Don't — stop,"


def test_a_word_of_two_keeps_both_in_one() -> None:
    known = known_text(TOKENIZER, "a twenty-one b")
    assert spelt(known) == ["a", "twenty-one", "b"]
    assert "".join(known.symbols) == "a twenty one b"


def test_any_sound_stands_for_characters_that_the_vocabulary_lacks() -> None:
    known = known_text(TOKENIZER, "room 5б it is", "a.txt")
    assert known.lacking == ("5", "б")
    assert known.ids[5:7].tolist() == [known.wild, known.wild] == [TOKENIZER.size] * 2
    path = [*TOKENIZER.encode("room "), *TOKENIZER.encode("xyz"), *TOKENIZER.encode(" it is")]
    path = [label for label in path for _ in (0, 1)]
    path.insert(4, TOKENIZER.blank_id)  # between the two letters o
    posterior = np.full((len(path), TOKENIZER.size), 1e-3)
    posterior[np.arange(len(path)), path] = 0.9
    aligned = align_text(Emissions(np.log(posterior), None, 1.0, len(path)), known, "a.wav")
    assert aligned.doubts() == ["characters that the vocabulary lacks, and any sound may be: '5', 'б'"]
    found = aligned.transcript
    assert [(word.word, word.start, word.end) for word in found.words[:3]] == [
        ("room", 0, 9),
        ("5б", 11, 17),
        ("it", 19, 23),
    ]
    assert "".join(character.character for character in found.characters) == "room5бitis"


def test_a_character_is_a_word_in_scripts_without_blanks() -> None:
    known = known_text(CHINESE, "「你好，世」界 x界")
    assert spelt(known) == ["「", "你", "好，", "世」", "界", "x", "界"][1:]
    assert "".join(known.symbols) == "你好世界 x界"
    assert known.written(1, 3) == "好，世」"
    assert np.flatnonzero(known.stars).tolist() == [0, 1, 2, 3, 5, 6, 7]
    thai = CTCTokenizer.from_texts(["ที่นี่"])
    assert spelt(known_text(thai, "ที่นี่")) == ["ที่", "นี่"]


def test_symbols_are_words() -> None:
    known = known_text(PHONES, "sh iy sh")
    assert spelt(known) == ["sh", "iy", "sh"] == list(known.symbols)
    assert known.written(0, 2) == "sh iy"


@pytest.mark.parametrize("text", ["", " \n", "— … !", "Привет, мир", "12 34", "你好"])
def test_a_text_of_which_nothing_can_be_said(text: str) -> None:
    with pytest.raises(UserError, match=r"^t\.txt: .*nothing that the model can say") as raised:
        known_text(TOKENIZER, text, "t.txt")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_files_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, content: bytes = b"") -> str:
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as raised:
            read_text(tmp_path / name)
        assert str(raised.value).startswith(str(tmp_path / name))
        return str(raised.value)

    assert "is empty" in refused("blank.txt", b" \n ")
    assert "No such file" in refused("missing.txt")
    assert "irectory" in refused(".")
    assert "not UTF-8" in refused("latin.txt", "naïve".encode("latin-1"))
    assert "UTF-16" in refused("wide.txt", "a text".encode("utf-16"))
    monkeypatch.setattr(known_text_module, "MOST_BYTES", 4)
    assert "expected at most" in refused("long.txt", b"12345")
    (tmp_path / "good.txt").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "good.txt") == "a"

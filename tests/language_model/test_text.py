"""Words of sentences, which are a transcript's words; and lines of files that may hold anything."""

import gzip
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.errors import Parts, refused

from flax_wavlm.data.text import TextRule
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.language_model.tables import UNKNOWN
from flax_wavlm.language_model.text import (
    LONGEST_LINE,
    WordsByRule,
    WordsOfModel,
    check_files,
    lines_of_files,
)
from flax_wavlm.recognition.transcript import words_of_labels


@pytest.mark.parametrize(
    ("rule", "sentence", "words"),
    [
        ({}, "Don’t  stop, NOW!", "don't stop now"),
        ({}, "你好 abc世界。ok", "你 好 abc 世 界 ok"),
        ({}, "สวัสดี", "ส ว ั ส ด ี"),
        ({"preset": "written"}, "Stop, NOW!", "Stop, NOW!"),
        ({"preset": "tokens"}, "n i3 你好", "n i3 你好"),
        ({}, "?!", ""),
    ],
)
def test_words_by_rule(rule: dict[str, str], sentence: str, words: str) -> None:
    assert WordsByRule(TextRule().changed(rule))(sentence) == words.split()


@pytest.mark.parametrize(
    ("rule", "alphabet", "sentence"),
    [
        ({}, "abcs' 你好", "A cab’s Bab, 你好ab好  aa"),
        ({}, "你好吗", "你好 吗"),  # no blank: no delimiter
        ({"preset": "tokens"}, "b aa ts", "ts aa  b"),
        ({"case": "upper"}, "ABS b", "ab Aß b"),
    ],
)
def test_words_of_a_model_are_those_of_its_transcripts(
    rule: dict[str, str], alphabet: str, sentence: str
) -> None:
    tokenizer = CTCTokenizer.from_texts([alphabet], TextRule().changed(rule))
    labels = np.array(tokenizer.encode(tokenizer.normalise(sentence)))
    written = [word for word, _ in words_of_labels(tokenizer, labels)]
    assert len(written) > 2
    words = WordsOfModel(tokenizer)
    assert words(sentence) == written
    assert not words.unspelled


def test_words_that_a_model_cannot_spell() -> None:
    words = WordsOfModel(CTCTokenizer.from_texts(["abc 你"]))
    assert words("Cab, dab a你好 dab [PAD]") == ["cab", UNKNOWN, "a", "你", UNKNOWN, UNKNOWN, UNKNOWN]
    assert words.unspelled == {"dab": 2, "好": 1, "pad": 1}


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "b"
    plain.write_bytes(b"\xef\xbb\xbfone two\r\n\n  \nthr\xc3\xa9e")
    packed.write_bytes(gzip.compress(b"four\n"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"five\nsix")))
    files = [str(plain), str(packed), "-"]
    check_files(files)
    assert list(lines_of_files(files)) == ["one two", "thrée", "four", "five", "six"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"one\ntw\xff", Parts("byte 0xff is not UTF-8", where="text:2$", expected="UTF-8")),
        (b"one\n\ntwo\0", Parts("a byte 0", where="text:3$")),
        ("one\ntwo three".encode("utf-16"), Parts("is UTF-16", where="text$")),
        (b"one\ntwo </s>\n", Parts("'</s>' is among the words", where="text:2$", expected="which the lang")),
        (b"<s> one", Parts("'<s>' is among", where="text:1$")),
        (b"one <unk>", Parts("'<unk>' is among", where="text:1$", do="remove it")),
        (b"one <UNK>", Parts("'<UNK>' is among", where="text:1$")),  # an ARPA file's other spelling
        (b"\n\\data\\\nngram 1=3\n", Parts("is an ARPA file", where="text$", expected="a sentence a line")),
        (b"a " * LONGEST_LINE, Parts("more than 1,048,576 bytes", where="text:1$", expected="one a line")),
        (gzip.compress(b"a\0b" * 9999, mtime=0)[:40], Parts("is damaged or cut off", where="text$")),
        (gzip.compress(bytes(2**22), mtime=0), Parts("more than 1,048,576 bytes", where="text:1$")),
    ],
)
def test_files_that_are_no_text(content: bytes, parts: Parts, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(content)
    with refused(**vars(parts)):
        list(lines_of_files([str(file)]))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in (tmp_path / "none", tmp_path):
        with refused("no such file", where=str(name)):
            check_files(["-", str(name)])
    with refused("cannot be read", where=str(tmp_path), expected="a text file"):
        list(lines_of_files([str(tmp_path)]))

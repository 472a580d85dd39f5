"""Sentences for a language model: lines of text files, cut into words as a transcript's words are.

A word stands between blanks. In a script that is written without them, each character is a word. Where there
is a model, its tokenizer decides, so that the words are those of `recognition.transcript.words_of_labels`.
"""

from __future__ import annotations

import gzip
import itertools
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from flax_wavlm.data.corpora.folders import wide_encoding
from flax_wavlm.data.text import TextRule, is_without_blanks
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError, cannot_read, shown
from flax_wavlm.files import is_file
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN

STDIN = "-"
LONGEST_LINE = 2**20  # bytes: far more than a sentence has
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_ARPA = b"\\data\\"  # the first line of an ARPA file
_MARKS = (BEGIN, END, UNKNOWN)


class WordsByRule:
    """The words of a sentence, by a text rule alone."""

    def __init__(self, rule: TextRule):
        self._rule = rule

    def __call__(self, sentence: str) -> list[str]:
        words = self._rule(sentence).split()
        if self._rule.by_token or sentence.isascii():
            return words
        return [part for word in words for part in _cut(word)]


class WordsOfModel:
    """The words of a sentence, by a model's tokenizer. Those that it cannot spell are `UNKNOWN`.

    Attributes:
        unspelled: words that it cannot spell, and how often each was met.
    """

    def __init__(self, tokenizer: CTCTokenizer):
        self.unspelled: Counter[str] = Counter()
        self._tokenizer = tokenizer
        self._known: dict[str, list[tuple[str, bool]]] = {}  # of what stands between blanks, see `_parts`

    def __call__(self, sentence: str) -> list[str]:
        words: list[str] = []
        for between in self._tokenizer.normalise(sentence).split():
            if between not in self._known:
                self._known[between] = self._parts(between)
            for word, spelled in self._known[between]:
                words.append(word if spelled else UNKNOWN)
                if not spelled:
                    self.unspelled[word] += 1
        return words

    def _parts(self, between: str) -> list[tuple[str, bool]]:
        """Its words, and whether the tokenizer can spell each."""
        symbols = self._tokenizer.symbols(between)
        parts = symbols if self._tokenizer.delimiter is None else _cut(symbols)
        return [(part, self._spells(part)) for part in parts]

    def _spells(self, word: str) -> bool:
        if self._tokenizer.unknown_characters(word):
            return False
        try:
            return not self._tokenizer.special_ids.intersection(self._tokenizer.encode(word))
        except UserError:  # it needs a label that the head does not have
            return False


def _cut(symbols: Iterable[str]) -> list[str]:
    """The words of what stands between blanks: a symbol of a script without blanks is one alone."""
    words: list[str] = []
    joined = False
    for symbol in symbols:
        alone = is_without_blanks(symbol)
        if joined and not alone:
            words[-1] += symbol
        else:
            words.append(symbol)
        joined = not alone
    return words


def lines_of_files(files: Iterable[str]) -> Iterator[str]:
    """The lines of UTF-8 text files, plain or packed by gzip, one after the other; `STDIN`: standard input.

    Lines without text are left out.

    Raises:
        UserError: with the file, and the line: it cannot be read, is not UTF-8, holds a byte 0 or a line
            longer than `LONGEST_LINE`, has `<s>`, `</s>` or `<unk>` for a word, or is an ARPA file.
    """
    for name in files:
        called = "standard input" if name == STDIN else name
        try:
            with _opened(name) as file:
                yield from _lines(called, file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"is damaged or cut off: gzip cannot unpack it ({error})",
                where=called,
                expected="a whole file",
                do="make or fetch the file again",
            ) from None
        except OSError as error:
            raise cannot_read(called, error, expected="a text file") from None


def check_files(files: Iterable[str]) -> None:
    """UserError where one is not there, before the others are read."""
    for name in files:
        if name != STDIN and not is_file(Path(name)):
            raise UserError("no such file", where=name, expected="a text file", do="check the path")


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    if name == STDIN:
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if packed else nullcontext(file) as unpacked:
            yield unpacked


def _lines(called: str, file: IO[bytes] | gzip.GzipFile) -> Iterator[str]:
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        where = f"{called}:{number}"
        if number == 1:
            line = line.removeprefix(_BOM)
            if (encoding := wide_encoding(line)) is not None:
                raise UserError(f"is {encoding.upper()}", where=called, expected="UTF-8 text")
        if line.strip() == _ARPA:
            raise UserError(
                "is an ARPA file, a language model already", where=called, expected="text, a sentence a line"
            )
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"has more than {LONGEST_LINE:,} bytes", where=where, expected="a sentence, one a line"
            )
        if text := _decoded(line, where).strip():
            yield text


def _decoded(line: bytes, where: str) -> str:
    expected, do = "UTF-8 text", "convert the file, for example with `iconv -f latin1 -t utf-8`"
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        problem = f"byte 0x{line[error.start]:02x} is not UTF-8"
        raise UserError(problem, where=where, expected=expected, do=do) from None
    if "\0" in text:
        raise UserError("there is a byte 0", where=where, expected=expected, do="check the path")
    if "<" in text and (marks := [word for word in text.split() if word.lower() in _MARKS]):
        raise UserError(
            f"{shown(marks[0])} is among the words",
            where=where,
            expected=f"sentences without {BEGIN}, {END} and {UNKNOWN}, which the language model adds itself",
            do="remove it",
        )
    return text

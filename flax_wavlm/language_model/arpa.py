r"""ARPA files: n-gram models as text, as SRILM, KenLM and others write them.

    \data\
    ngram 1=4
    ngram 2=1

    \1-grams:
    -99     <s>     -0.5        log10 of the probability, the words, log10 of the back-off weight
    -1.2    </s>
    ...

Format: https://www.speech.sri.com/projects/srilm/manpages/ngram-format.5.html
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from flax_wavlm.errors import UserError, cannot_write
from flax_wavlm.files import flush_to_disk, replaced
from flax_wavlm.language_model.arpa_lines import Lines, open_lines
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables, Table

log = logging.getLogger(__name__)

HIGHEST_ORDER = 20
UNKNOWN_LOG10 = -100.0  # of `UNKNOWN` where a file has none, as KenLM reads it
SMALLEST_LOG10 = -10_000.0  # so that sums stay finite in float32
_AT_ONCE = 50_000  # n-grams

_COUNT = re.compile(rb"ngram\s+(\d{1,9})\s*=\s*(\d{1,18})")
_SECTION = re.compile(rb"\\(\d{1,9})-grams:")
_UPPER_UNKNOWN = b"<UNK>"
_REPAIR = "make or fetch the file again"


def read_arpa(path: str | Path) -> NGramTables:
    r"""The tables of an ARPA file, plain or packed by gzip, whatever its name.

    `<UNK>` is read as `<unk>`. Where the file has neither, `<unk>` is entered with `UNKNOWN_LOG10`, and that
    is logged. What stands before `\data\` and after `\end\` is not read. Words are UTF-8 without ASCII white
    space.

    Raises UserError with the line of what is wrong.
    """
    with open_lines(Path(path)) as lines:
        counts = _read_counts(lines)
        places: dict[bytes, int] = {}  # of each word
        tables = [_read_section(lines, 1, counts, places)]
        words = [word.decode() for word in places]
        if UNKNOWN in words:
            places[_UPPER_UNKNOWN] = places[UNKNOWN.encode()]
        tables += [_read_section(lines, n, counts, places) for n in range(2, len(counts) + 1)]
        if (line := lines.filled()) != b"\\end\\":
            raise _wrong_line(lines, line, "\\end\\", counts, len(counts))
        lines.rest()
    if UNKNOWN not in words:
        log.warning("%s has no %s: it is entered with log10 probability %g", path, UNKNOWN, UNKNOWN_LOG10)
        words.append(UNKNOWN)
        ids, probs, backoffs = tables[0]
        ids = np.append(ids, np.array([[len(ids)]], np.int32), axis=0)
        tables[0] = Table(ids, np.append(probs, UNKNOWN_LOG10), np.append(backoffs, 0.0))
    return NGramTables(tuple(words), tuple(tables))


def _read_counts(lines: Lines) -> list[int]:
    """How many n-grams of each length the header promises. The first section is what comes next."""
    first = line = lines.filled()
    while line != b"\\data\\":
        if line is None:
            raise UserError(
                "is no ARPA file, it has no line \\data\\",
                where=lines.path,
                found=_text(first or b""),
                expected="\\data\\ before the counts",
                do="give a language model in the ARPA format",
            )
        line = lines.filled()
    header = lines.number
    counts: list[int] = []
    while (line := lines.filled()) is not None and not line.startswith(b"\\"):
        match = _COUNT.fullmatch(line)
        if match is None or int(match[1]) != len(counts) + 1 or len(counts) == HIGHEST_ORDER:
            expected = f"ngram {len(counts) + 1}=COUNT"
            if len(counts) == HIGHEST_ORDER:
                expected = f"at most {HIGHEST_ORDER} words an n-gram"
            elif counts:
                expected += " or \\1-grams:"
            raise UserError(
                "a wrong line in the header",
                where=lines.where,
                found=_text(line),
                expected=expected,
                do=_REPAIR,
            )
        counts.append(int(match[2]))
    if line is not None:
        lines.take_back(1)
    if not counts:
        raise UserError(
            "no counts after \\data\\", where=lines.at(header), expected="lines ngram N=COUNT", do=_REPAIR
        )
    lines.promise(counts, header)
    return counts


def _read_section(lines: Lines, n: int, counts: Sequence[int], places: dict[bytes, int]) -> Table:
    r"""The n-grams of length n, from the line `\n-grams:` on. Those of length 1 fill `places`."""
    line = lines.filled()
    match = _SECTION.fullmatch(line or b"")
    if match is None or int(match[1]) != n:
        raise _wrong_line(lines, line, rf"\{n}-grams:", counts, n - 1)
    header, missing = lines.number, counts[n - 1]
    parts = [Table(np.zeros((0, n), np.int32), np.zeros(0), np.zeros(0))]
    numbers = [np.zeros(0, int)]  # of their lines
    while missing:
        first = lines.number + 1
        rows = [line.split() for line in lines.take(min(missing, _AT_ONCE))]
        if not rows:
            raise _wrong_line(lines, None, f"{missing:,} more {n}-grams", counts, n)
        numbers.append(first + np.flatnonzero(np.fromiter(map(bool, rows), bool, len(rows))))
        rows = [row for row in rows if row]
        parse = _parse_words if n == 1 else _parse_ngrams
        try:
            parts.append(parse(rows, n, places))
        except (ValueError, KeyError):
            raise _wrong_ngram(lines, np.concatenate(numbers), rows, n, counts, places) from None
        missing -= len(rows)
    table = Table(*map(np.concatenate, zip(*parts, strict=True)))
    if n > 1:
        _check_repeated(lines, np.concatenate(numbers), table.ids, list(places))
    for word in (BEGIN, END):
        if word.encode() not in places:
            raise UserError(
                f"no {word} among the 1-grams",
                where=lines.at(header),
                expected=f"a model of sentences, with {BEGIN} and {END}",
                do="train it with the boundaries of sentences",
            )
    return table


def _parse_words(rows: Sequence[Sequence[bytes]], n: int, places: dict[bytes, int]) -> Table:
    """1-grams, whose words are entered in `places`; ValueError where one is wrong."""
    probs, backoffs = _numbers(rows, n)
    first = len(places)
    new = {_known_as(row[1]): place for place, row in enumerate(rows, start=first)}
    b"\n".join(new).decode()
    if len(new) < len(rows) or not places.keys().isdisjoint(new):
        raise ValueError
    places |= new
    return Table(np.arange(first, len(places), dtype=np.int32)[:, None], probs, backoffs)


def _parse_ngrams(rows: Sequence[Sequence[bytes]], n: int, places: dict[bytes, int]) -> Table:
    """N-grams; ValueError or KeyError where one is wrong."""
    probs, backoffs = _numbers(rows, n)
    words = itertools.chain.from_iterable(row[1 : n + 1] for row in rows)
    ids = np.fromiter(map(places.__getitem__, words), np.int32, n * len(rows))
    return Table(ids.reshape(-1, n), probs, backoffs)


def _numbers(rows: Sequence[Sequence[bytes]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities and the back-off weights, as logarithms; ValueError where one is wrong."""
    if not set(map(len, rows)) <= {n + 1, n + 2}:
        raise ValueError
    probs = np.array([float(row[0]) for row in rows])
    backoffs = np.array([float(row[-1]) if len(row) == n + 2 else 0.0 for row in rows])
    if not (_is_prob(probs) & _is_backoff(backoffs)).all():
        raise ValueError
    return probs, backoffs


def _is_prob(value: np.ndarray) -> np.ndarray:
    return (value <= 0) & (value >= SMALLEST_LOG10)


def _is_backoff(value: np.ndarray) -> np.ndarray:
    return np.abs(value) <= -SMALLEST_LOG10


def _known_as(word: bytes) -> bytes:
    return UNKNOWN.encode() if word == _UPPER_UNKNOWN else word


def _check_repeated(lines: Lines, numbers: np.ndarray, ids: np.ndarray, words: Sequence[bytes]) -> None:
    """UserError where two rows of `ids` [N, n] are equal."""
    mixed = np.zeros(len(ids), np.uint64)
    for column in ids.T:
        mixed = (mixed + column.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    in_order = np.sort(mixed)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(twice):
        return
    lines_of: dict[tuple[int, ...], int] = {}
    for row in np.flatnonzero(np.isin(mixed, twice)):
        ngram, number = tuple(ids[row].tolist()), int(numbers[row])
        if ngram in lines_of:
            raise _repeated(lines.at(number), _text(b" ".join(words[i] for i in ngram)), lines_of[ngram])
        lines_of[ngram] = number


# --- What is wrong ------------------------------------------------------------------------------------------


def _text(line: bytes) -> str:
    """What a message shows of a line."""
    return line.decode("utf-8", "backslashreplace")


def _repeated(where: str, ngram: str, line: int) -> UserError:
    problem = f"the n-gram is also on line {line}"
    return UserError(problem, where=where, found=ngram, expected="each n-gram once", do=_REPAIR)


def _wrong_line(
    lines: Lines, line: bytes | None, expected: str, counts: Sequence[int], done: int
) -> UserError:
    """Another line than the one that must follow `done` sections."""
    if line is None:
        problem = "the file ends too early"
        return UserError(problem, where=lines.where, expected=expected, do=_REPAIR)
    if done and not line.startswith(b"\\"):
        promised = f"{counts[done - 1]:,} {done}-grams as in the header, then {expected}"
        return _wrong_count(lines.where, line, promised)
    return UserError("a wrong line", where=lines.where, found=_text(line), expected=expected, do=_REPAIR)


def _wrong_count(where: str, line: bytes, expected: str) -> UserError:
    problem = "the section has another length than its count"
    return UserError(problem, where=where, found=_text(line), expected=expected, do=_REPAIR)


def _wrong_ngram(
    lines: Lines,
    numbers: np.ndarray,
    rows: Sequence[Sequence[bytes]],
    n: int,
    counts: Sequence[int],
    places: dict[bytes, int],
) -> UserError:
    """The first of these n-grams that is wrong. `numbers` are the lines of the section so far."""
    seen: dict[bytes, int] = {}
    for place, row in enumerate(rows, start=len(numbers) - len(rows)):
        number = int(numbers[place])
        where = lines.at(number)
        if row[0].startswith(b"\\"):
            return _wrong_count(where, b" ".join(row), f"{counts[n - 1]:,} {n}-grams as in the header")
        if not n + 1 <= len(row) <= n + 2:
            expected = f"a log10 probability, {n} word{'s' if n > 1 else ''}, and perhaps a back-off weight"
            found = _text(b" ".join(row))
            return UserError(
                f"a line of {len(row)} fields", where=where, found=found, expected=expected, do=_REPAIR
            )
        if (error := _wrong_number(where, row, n)) is not None:
            return error
        if n == 1:
            word = _known_as(row[1])
            try:
                word.decode()
            except UnicodeDecodeError:
                return UserError(
                    "a word is not UTF-8", where=where, found=row[1], expected="UTF-8", do="convert the file"
                )
            if word in places or word in seen:
                first = seen[word] if word in seen else places[word]
                return _repeated(where, _text(row[1]), int(numbers[first]))
            seen[word] = place
        for word in row[1 : n + 1] if n > 1 else ():
            if word not in places:
                problem = "a word that is not among the 1-grams"
                return UserError(
                    problem, where=where, found=_text(word), expected="words of the 1-grams", do=_REPAIR
                )
    raise AssertionError("these lines are right")


def _wrong_number(where: str, row: Sequence[bytes], n: int) -> UserError | None:
    smallest, largest = f"a number from {SMALLEST_LOG10:,g} to ", f"{-SMALLEST_LOG10:,g}"
    numbers = [(row[0], "the log10 probability", _is_prob, f"{smallest}0")]
    if len(row) == n + 2:
        numbers.append((row[-1], "the back-off weight", _is_backoff, f"{smallest}{largest}"))
    for text, field, is_right, expected in numbers:
        try:
            right = bool(is_right(np.array(float(text))))
        except ValueError:
            right = False
        if not right:
            return UserError(where=where, field=field, found=_text(text), expected=expected, do=_REPAIR)
    return None


# --- Writing ------------------------------------------------------------------------------------------------


def write_arpa(path: str | Path, model: NGramTables) -> None:
    """Writes tables as an ARPA file in one step, packed by gzip where the name ends in `.gz`.

    Numbers are such that reading them gives the same float32 values. UserError where it cannot be written.
    """
    path = Path(path)
    try:
        with replaced(path) as scratch, scratch.open("wb") as file:
            # Without a name and a time, so that the same model gives the same bytes.
            packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.name.lower().endswith(".gz") else None
            with packed or contextlib.nullcontext(file) as written:
                for text in _texts(model):
                    written.write(text.encode())
            flush_to_disk(file)
    except OSError as error:
        raise cannot_write(path, error) from None


def _texts(model: NGramTables) -> Iterator[str]:
    """The file's text, in parts."""
    counts = (f"ngram {n}={len(table.ids)}\n" for n, table in enumerate(model.tables, start=1))
    yield "\\data\\\n" + "".join(counts)
    for n, table in enumerate(model.tables, start=1):
        yield f"\n\\{n}-grams:\n"
        line = "%.9g\t" + " ".join(["%s"] * n) + ("\t%.9g\n" if n < model.order else "\n")
        for first in range(0, len(table.ids), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            words = [[model.words[i] for i in column] for column in table.ids[part].T.tolist()]
            # An estimate's rounding may leave it above 0.
            columns = [_as_read(np.minimum(table.log10_probs[part], 0.0)), *words]
            if n < model.order:
                columns.append(_as_read(table.log10_backoffs[part]))
            yield "".join([line % row for row in zip(*columns, strict=True)])
    yield "\n\\end\\\n"


def _as_read(values: np.ndarray) -> list[float]:
    """The float32 values, which nine digits tell apart."""
    return values.astype(np.float32).tolist()

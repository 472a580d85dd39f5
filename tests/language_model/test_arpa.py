"""ARPA files: what other tools write is read, what we write is read back, and what is wrong is named."""

import gzip
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused
from helpers.ngrams import entries, random_model

from flax_wavlm.language_model import arpa_lines
from flax_wavlm.language_model.arpa import UNKNOWN_LOG10, read_arpa, write_arpa
from flax_wavlm.language_model.tables import NGramTables, Table

GOOD = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-2	<unk>
-99	<s>	-0.5
-1.25	</s>
-0.3	é	-0.125

\\2-grams:
-0.1	<s> é
-1e-1	é </s>

\\end\\
"""
VALUES = {
    ("<unk>",): (-2.0, 0.0),
    ("<s>",): (-99.0, -0.5),
    ("</s>",): (-1.25, 0.0),
    ("é",): (-0.3, -0.125),
    ("<s>", "é"): (-0.1, 0.0),
    ("é", "</s>"): (-0.1, 0.0),
}


def read(folder: Path, content: str | bytes) -> NGramTables:
    (folder / "lm.arpa").write_bytes(content.encode() if isinstance(content, str) else content)
    return read_arpa(folder / "lm.arpa")


FORMS: dict[str, Callable[[str], str | bytes]] = {
    "as it is": lambda text: text,
    "blanks for tabs": lambda text: text.replace("\t", " "),
    "tabs for blanks in n-grams": lambda text: text.replace("> ", ">\t").replace("é ", "é\t"),
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "a BOM": lambda text: "\ufeff" + text,
    "lines before": lambda text: "# made by hand\n\niARPA \\data\\ follows\n" + text,
    "lines after": lambda text: text + "\nthanks to all\n",
    "no newline at the end": lambda text: text.rstrip(),
    "blank lines": lambda text: text.replace("\n", "\n\n \t\n"),
    "no blank lines": lambda text: text.replace("\n\n", "\n"),
    "blanks around": lambda text: re.sub("^|$", "  ", text, flags=re.MULTILINE),
    "blanks in the header": lambda text: re.sub(r"ngram (\d)=(\d)", r"ngram   \1 =    \2", text),
    "back-off weights in the highest order": lambda text: text.replace(
        "-1e-1	é </s>", "-1e-1	é </s>	0"
    ),
    "<UNK>": lambda text: text.replace("<unk>", "<UNK>"),
    "gzip": lambda text: gzip.compress(text.encode()),
    "gzip in two members": lambda text: gzip.compress(text[:50].encode()) + gzip.compress(text[50:].encode()),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_other_tools_are_read(form: str, tmp_path: Path) -> None:
    found = read(tmp_path, FORMS[form](GOOD))
    assert entries(found) == VALUES
    assert found.words == ("<unk>", "<s>", "</s>", "é")
    assert [table.ids.dtype for table in found.tables] == [np.int32, np.int32]


def test_an_ngram_may_have_upper_case_unknown(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD.replace("<unk>", "<UNK>").replace("é </s>", "<UNK> </s>"))
    assert ("<unk>", "</s>") in entries(found)


def test_a_missing_unknown_word_is_entered_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read(tmp_path, GOOD.replace("-2	<unk>\n", "").replace("1=4", "1=3"))
    assert entries(found) == VALUES | {("<unk>",): (UNKNOWN_LOG10, 0.0)}
    assert "no <unk>" in caplog.text


def test_blocks_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (3, 4, 7, 50):
        monkeypatch.setattr(arpa_lines, "BLOCK", size)
        assert entries(read(tmp_path, "\ufeff" + GOOD.replace("\n", "\r\n"))) == VALUES


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new, 1)


# Content, what the message's place ends in, the problem, and what was found.
BAD: dict[str, tuple[str | bytes, str, str, str]] = {
    "too few 1-grams": (changed("1=4", "1=5"), "line 11", "another length", "\\2-grams:"),
    "too many 1-grams": (changed("1=4", "1=3"), "line 9", "another length", "-0.3	é	-0.125"),
    "too many 2-grams": (changed("2=2", "2=1"), "line 13", "another length", "-1e-1	é </s>"),
    "too few 2-grams": (changed("2=2", "2=3"), "line 15", "another length", "\\end\\"),
    "absurd counts": (changed("2=2", "2=999999999999"), "line 1", "cannot hold", ""),
    "an order missing": (changed("ngram 2", "ngram 3"), "line 3", "header", "ngram 3=2"),
    "orders out of order": (
        changed("ngram 1=4\nngram 2=2", "ngram 2=2\nngram 1=4"),
        "line 2",
        "header",
        "ngram 2=2",
    ),
    "no counts": (changed("ngram 1=4\nngram 2=2", ""), "line 1", "no counts", ""),
    "a negative count": (changed("1=4", "1=-4"), "line 2", "header", "ngram 1=-4"),
    "sections out of order": (changed("\\1-g", "\\2-g"), "line 5", "wrong line", "\\2-grams:"),
    "a section missing": (changed("\\2-grams:\n", ""), "line 11", "another length", "-0.1	<s> é"),
    "NaN": (changed("-0.3", "nan"), "line 9", "probability", "nan"),
    "infinity": (changed("-0.3", "-inf"), "line 9", "probability", "-inf"),
    "a positive probability": (changed("-0.3", "0.3"), "line 9", "probability", "0.3"),
    "too small a probability": (changed("-0.3", "-1e30"), "line 9", "probability", "-1e30"),
    "no number": (changed("-0.3", "a"), "line 9", "probability", "a"),
    "a weight of NaN": (changed("-0.125", "NaN"), "line 9", "back-off", "NaN"),
    "an infinite weight": (changed("-0.125", "1e999"), "line 9", "back-off", "1e999"),
    "no <s>": (changed("-99	<s>", "-99	b"), "line 5", "no <s>", ""),
    "no </s>": (changed("-1.25	</s>", "-1.25	b"), "line 5", "no </s>", ""),
    "an unknown word": (changed("<s> é", "<s> ö"), "line 12", "not among", "ö"),
    "a word twice": (changed("</s>", "é"), "line 9", "also on line 8", "é"),
    "<unk> and <UNK>": (changed("é", "<UNK>"), "line 9", "also on line 6", "<UNK>"),
    "an n-gram twice": (changed("é </s>", "<s> é"), "line 13", "also on line 12", "<s> é"),
    "too many fields": (changed("<s> é", "<s> é é -0.1"), "line 12", "5 fields", "-0.1 <s> é é -0.1"),
    "too few fields": (changed("<s> é", "é"), "line 12", "2 fields", "-0.1 é"),
    "no \\end\\": (changed("\\end\\", ""), "line 15", "ends too early", ""),
    "cut off in a section": (
        GOOD.partition("-1e-1")[0].replace("2=2", "2=3"),
        "line 12",
        "ends too early",
        "",
    ),
    "not UTF-8": (GOOD.encode().replace("é".encode(), b"\xe9", 1), "line 9", "UTF-8", "b'\\xe9'"),
    "a byte 0": (GOOD.replace("é", "\0"), "line 9", "byte 0", ""),
    "UTF-16": (GOOD.encode("utf-16"), "lm.arpa", "UTF-16", ""),
    "an empty file": (b"", "lm.arpa", "empty", ""),
    "an empty gzip": (gzip.compress(b""), "lm.arpa", "empty", ""),
    "a text": ("She had your dark suit.\n" * 1000, "lm.arpa", "no ARPA file", "She had your dark suit."),
    "KenLM's binary": (
        b"mmap lm http://kheafield.com/code format version 5\n\0",
        "lm.arpa",
        "binary file of KenLM",
        "",
    ),
    "gzip cut off": (gzip.compress(GOOD.encode())[:-30], "lm.arpa", "damaged or cut off", ""),
    "gzip without its end": (gzip.compress(GOOD.encode())[:-4], "lm.arpa", "damaged or cut off", ""),
    "gzip with a wrong check sum": (
        gzip.compress(GOOD.encode())[:-8] + bytes(8),
        "lm.arpa",
        "damaged or cut off",
        "",
    ),
    "gzip twice": (gzip.compress(gzip.compress(GOOD.encode())), "lm.arpa", "twice", ""),
    "a long line": (changed("é", "é" * 2**20), "line 9", "more than 1,048,576 bytes", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    content, place, problem, found = BAD[name]
    with pytest.raises(Exception) as raised:  # noqa: PT011 - its type is looked at below
        read(tmp_path, content)
    with refused(where=f"lm.arpa.*{place}$" if place != "lm.arpa" else r"lm\.arpa$"):
        raise raised.value
    assert re.search(re.escape(problem), str(raised.value)), raised.value
    assert str(found) in (str(raised.value.found), ""), raised.value  # type: ignore[attr-defined]


def test_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as file:
        file.writestr("lm.arpa", GOOD)
    with refused("is a zip file", do="unpack"):
        read(tmp_path, stream.getvalue())


def test_no_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.arpa", tmp_path):
        with refused("no such file", where=re.escape(str(path))):
            read_arpa(path)


NOTHING = {
    "lines": (b" " * 1023 + b"\n") * 1024,
    "one line": b" " * (1 << 20),
    "blank lines": b"\n" * (1 << 18),
}


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("begin", ["", GOOD.partition("-99")[0], GOOD], ids=["first", "within", "last"])
def test_no_more_is_unpacked_than_the_counts_promise(nothing: str, begin: str, tmp_path: Path) -> None:
    """A hundred megabytes of white space in a hundred kilobytes."""
    bomb = gzip.compress(begin.encode()) + gzip.compress(NOTHING[nothing]) * 100
    with refused("far more than the counts|very much before its header|line of more than"):
        read(tmp_path, bomb)


def test_counts_that_the_file_cannot_hold_take_no_memory(tmp_path: Path) -> None:
    with refused("cannot hold"):
        read(tmp_path, gzip.compress(GOOD.replace("2=2", "2=99999999").encode()))


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    tables = random_model(3, 3, contexts=0.5, ends=0.5)
    random = np.random.default_rng(0)
    exact = [
        Table(ids, -random.exponential(1, len(ids)), backoffs + random.normal(0, 1e-3, len(ids)) * (n < 2))
        for n, (ids, _, backoffs) in enumerate(tables.tables)
    ]
    model = NGramTables(("<unk>", "<s>", "</s>", *"東京\u3000ñ☃🦊'"[: len(tables.words) - 3]), tuple(exact))
    write_arpa(tmp_path / name, model)
    found = read_arpa(tmp_path / name)
    assert found.words == model.words
    for ours, theirs in zip(found.tables, model.tables, strict=True):
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.array_equal(ours.log10_probs.astype(np.float32), theirs.log10_probs.astype(np.float32))
        assert np.array_equal(
            ours.log10_backoffs.astype(np.float32), theirs.log10_backoffs.astype(np.float32)
        )
    assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    first = (tmp_path / name).read_bytes()
    write_arpa(tmp_path / name, model)
    assert (tmp_path / name).read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_probability_that_rounding_made_more_than_1_is_written_as_1(tmp_path: Path) -> None:
    tables = random_model(0, 1)
    tables.tables[0].log10_probs[0] = 1e-16
    write_arpa(tmp_path / "lm.arpa", tables)
    assert read_arpa(tmp_path / "lm.arpa").tables[0].log10_probs[0] == 0


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with refused("cannot be written", where="lm.arpa"):
        write_arpa(tmp_path / "missing" / "lm.arpa", random_model(0, 2))

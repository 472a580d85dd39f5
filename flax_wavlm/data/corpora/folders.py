"""Folders and text files of a corpus; what cannot be read is a UserError that names it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from flax_wavlm.errors import UserError, cannot_read, shown, some
from flax_wavlm.files import folder_entries, is_folder


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name."""
    return [entry for entry in folder_entries(folder) if is_folder(entry)]


def listing(folder: Path) -> str:
    """The names in a folder as a message shows them."""
    return some([one_line(entry.name) for entry in folder_entries(folder)]) or "nothing"


def one_line(text: str) -> str:
    """The text with its control characters escaped: a name of a file may hold line ends."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def read_utf8(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. UserError with the line that is not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise cannot_read(file, error, expected="a text file") from error
    if (encoding := wide_encoding(data)) is not None:
        raise UserError(
            f"is {encoding.upper()}",
            where=file,
            expected="UTF-8 text",
            do=f"convert the file, for example with `iconv -f {encoding} -t utf-8`",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A byte order mark is not part of the offset.
        start = error.start + 3 * data.startswith(b"\xef\xbb\xbf")
        line = data.count(b"\n", 0, start) + 1
        raise UserError(
            f"byte 0x{data[start]:02x} is not UTF-8",
            where=f"{file}:{line}",
            expected="UTF-8 text",
            do="convert the file, for example with `iconv -f latin1 -t utf-8`",
        ) from error


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, as Windows programs write it: by its byte order mark, or by zeros beside ASCII."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = data[:400]
    for zeros, letters, encoding in (
        (head[1::2], head[::2], "utf-16le"),
        (head[::2], head[1::2], "utf-16be"),
    ):
        if len(head) >= 8 and zeros.count(0) > 0.8 * len(zeros) and 0 not in letters:
            return encoding
    return None


def text_lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """Lines of a key and a value: "file:line", the key, and the rest without white space at its ends.

    The key ends at a blank or a tab. The value may be empty. Blank lines are passed over.
    """
    for number, line in enumerate(read_utf8(file).split("\n"), start=1):
        key, *rest = re.split(r"[ \t]+", line.strip(" \t\r"), maxsplit=1)
        if key:
            yield f"{file}:{number}", key, rest[0] if rest else ""


def keyed_lines(file: Path) -> dict[str, tuple[str, str]]:
    """`text_lines` by their keys, to "file:line" and value. UserError where a key is there twice."""
    found: dict[str, tuple[str, str]] = {}
    for where, key, value in text_lines(file):
        if key in found:
            raise UserError(
                f"{shown(key)} is also at {found[key][0]}",
                where=where,
                expected="one line for each",
                do="remove one",
            )
        found[key] = (where, value)
    return found

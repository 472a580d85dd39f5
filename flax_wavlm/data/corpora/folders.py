"""Folders and text files of a corpus; what cannot be read is a UserError that names it."""

from __future__ import annotations

from pathlib import Path

from flax_wavlm.errors import UserError, cannot_read, some
from flax_wavlm.files import folder_entries, is_folder


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name."""
    return [entry for entry in folder_entries(folder) if is_folder(entry)]


def listing(folder: Path) -> str:
    """The names in a folder as a message shows them."""
    return some([entry.name for entry in folder_entries(folder)]) or "nothing"


def read_utf8(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. UserError with the line that is not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise cannot_read(file, error, expected="a text file") from error
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

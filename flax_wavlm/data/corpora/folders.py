"""TODO."""

from __future__ import annotations

from pathlib import Path

from flax_wavlm.errors import UserError
from flax_wavlm.files import is_folder


def entries(folder: Path) -> list[Path]:
    # Not Path.glob: it passes over a folder that it may not read, and the clips would be missing in silence.
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot list it ({error.strerror}). Expected a folder of the corpus: check the path "
            "and its permissions."
        ) from error


def folders(folder: Path) -> list[Path]:
    return [entry for entry in entries(folder) if is_folder(entry)]


def listing(folder: Path) -> str:
    names = [entry.name for entry in entries(folder)]
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "nothing"


def read_utf8(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot read it ({error.strerror}). Expected a text file: check its permissions."
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A byte order mark is not part of the offset.
        start = error.start + 3 * data.startswith(b"\xef\xbb\xbf")
        line = data.count(b"\n", 0, start) + 1
        raise UserError(
            f"{file}:{line}: byte 0x{data[start]:02x} is not UTF-8. Expected UTF-8 text: convert the file, "
            "for example with `iconv -f latin1 -t utf-8`."
        ) from error

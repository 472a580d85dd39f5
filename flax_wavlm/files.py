"""Reading what a user names: a JSON file, a folder on the disk, a repository of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax_wavlm.errors import UserError, reason

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def is_file(path: Path) -> bool:
    """Whether there is such a file; UserError where that cannot be told (no permission, too long a name)."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; UserError as `is_file` raises it."""
    return stat.S_ISDIR(_mode(path))


def exists(path: Path) -> bool:
    """Whether there is anything of that name; UserError as `is_file` raises it."""
    return _mode(path) != 0


def _mode(path: Path) -> int:
    # Not Path.is_file and its kind: they raise for some errors and say "no" for others.
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:  # ValueError: a null character, half a surrogate pair
        raise UserError(
            f"{str(path)[:300]!r}: cannot look at it ({reason(error)}); check the path and its permissions"
        ) from error


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError where it is no JSON, and for what Python's parser would let pass: a name that an object
    has twice, half a surrogate pair (which no UTF-8 file can hold), nesting too deep to read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{name[:80]!r} is there twice in one object")
            found[name] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, such as \\ud800, stands alone") from None
    return value


def read_json_object(file: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; `what` tells the user what it should be. UserError where it is not that."""
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{file}: cannot read it ({error.strerror}). Expected {what}: give a folder that has it."
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}). Expected {what}: restore the file.") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{file}: holds a {type(value).__name__}, expected an object, {what}. Restore the file."
        )
    return value


def local_copy(source: str | Path, patterns: list[str]) -> Path:
    """The file or folder itself, or the hub's repository of that id, with its files of these patterns.

    huggingface_hub downloads it, or finds it in its cache, and honours HF_HUB_OFFLINE. UserError where
    there is neither.
    """
    name = str(source)
    if not name:
        raise UserError("the name of a checkpoint is empty, expected a folder, a file or a hub id")
    path = Path(os.path.expanduser(name))
    if exists(path):
        return path
    if not _HUB_ID.fullmatch(name):
        raise UserError(
            f"{name}: no such file or folder, and not a hub id such as microsoft/wavlm-large; check the path"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # HTTP, cache, validation and offline errors share no base class
        raise UserError(
            f"{name}: no such file or folder here, and not to be had from the Hugging Face hub: "
            f"{reason(error)} "
            "Check the name, the network and HF_HUB_OFFLINE, or download it and give its folder"
        ) from error


def local_folder(folder_or_hub_id: str | Path, files: list[str]) -> Path:
    folder = local_copy(folder_or_hub_id, files)
    if not is_folder(folder):
        raise UserError(f"{folder}: is not a folder; expected the folder of a checkpoint, or a hub id")
    return folder


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that it is never seen half-written."""
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes a failure to write there a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}. See to the disk's space and permissions; "
            "the same command then resumes"
        ) from None

"""Files and folders that the user names: looking, JSON, copies of the hub's repositories, whole writes.

A file that cannot be used is a UserError that names it. `write_atomically` and its kin write beside the
place and rename, so that no other process, and no later run, ever sees half a file or half a folder.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from flax_wavlm.errors import UserError, cannot_read, cannot_write, reason, shown

# Seconds after its last write until a half-written file or folder counts as a dead process's.
ABANDONED = 24 * 3600

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
    # Path.is_file and its kind raise for some errors and say "no" for others.
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:  # ValueError: a null character, half a surrogate pair
        raise cannot_read(shown(str(path)), error) from error


def folder_entries(folder: Path) -> list[Path]:
    """The files and folders in a folder, sorted by name; UserError where it cannot be listed."""
    # Path.glob would pass over a folder that it may not read, and its files would be missing in silence.
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise cannot_read(folder, error, expected="a folder") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError where the text is not JSON, and for three things that Python's parser accepts: an object
    that has one name twice, half a surrogate pair (which no UTF-8 file can hold), nesting too deep to read.
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
    """The object in a JSON file. `what` tells the user what the file should hold.

    Raises UserError where the file cannot be read, is not JSON, or holds another kind of value.
    """
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise cannot_read(file, error, expected=what, do="give a folder that has it") from error
    except ValueError as error:
        raise UserError(f"not JSON ({error})", where=file, expected=what, do="restore the file") from error
    if not isinstance(value, dict):
        raise UserError(
            f"holds a {type(value).__name__}",
            where=file,
            expected=f"an object, {what}",
            do="restore the file",
        )
    return value


def local_copy(source: str | Path, patterns: Sequence[str]) -> Path:
    """The file or folder itself, or the hub's repository of that id, with its files of these patterns.

    huggingface_hub downloads it, or finds it in its cache, and honours HF_HUB_OFFLINE. UserError where
    there is neither.
    """
    name = str(source)
    if not name:
        raise UserError("the name of a checkpoint is empty", expected="a folder, a file or a hub id")
    path = Path(os.path.expanduser(name))
    if exists(path):
        return path
    if not _HUB_ID.fullmatch(name):
        raise UserError(
            "no such file or folder",
            where=name,
            expected="a path, or a hub id such as microsoft/wavlm-large",
            do="check the path",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # HTTP, cache, validation and offline errors share no base class
        raise UserError(
            f"no such file or folder here, and the Hugging Face hub does not give it ({reason(error)})",
            where=name,
            do="check the name, the network and HF_HUB_OFFLINE, or download it and give its folder",
        ) from error


def local_folder(folder_or_hub_id: str | Path, patterns: Sequence[str]) -> Path:
    """`local_copy` of a checkpoint that must be a folder; UserError where it is a file."""
    folder = local_copy(folder_or_hub_id, patterns)
    if not is_folder(folder):
        raise UserError("is not a folder", where=folder, expected="the folder of a checkpoint, or a hub id")
    return folder


def write_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 text file so that it is never seen half-written.

    Half of a surrogate pair, as Python has for a name's undecodable bytes, is escaped as in JSON.
    """
    with replaced(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write a file to, which then takes the place of `path`.

    `path` is either what it was or the whole new file. Where the block raises, nothing is left behind.
    """
    scratch = _beside(path)
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill, for `move_folder`; removed at the end if it is still there."""
    scratch = _beside(path)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A new name beside `path`, so that several processes can make `path` at once.

    Beside it and not in /tmp, because a rename is atomic only within one file system. What killed processes
    left there is removed when its last write is `ABANDONED` seconds ago.
    """
    prefix = f".{path.name[:48]}.writing-"  # with a long name it would be too long itself
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):  # another process may be removing it too
            parts = (left, *left.iterdir()) if left.is_dir() else (left,)
            if time.time() - max(part.stat().st_mtime for part in parts) > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f"{prefix}{uuid.uuid4().hex}")


def move_folder(scratch: Path, path: Path) -> bool:
    """Renames a folder in one step; False where `path` is there already, from another process, say.

    Raises OSError where it cannot be renamed for any other reason.
    """
    try:
        scratch.rename(path)
    except OSError:
        if not path.exists():
            raise
        return False
    return True


def flush_to_disk(file: IO[Any]) -> None:
    """Writes an open file to the disk itself, as after a power cut a rename may be there and the data not."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes a failure to write there, inside a run that can be resumed, a UserError."""
    try:
        yield
    except OSError as error:
        do = "see to the disk's space and permissions; the same command then resumes"
        raise cannot_write(path, error, do=do) from None

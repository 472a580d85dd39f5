"""Arrays of unequal lengths kept on the disk between runs: decoded clips, and features of clips.

A cache is a folder with two files, `arrays` and `index.json`. It is written under another name, flushed to
the disk and renamed. So it is there whole or not at all, whatever is killed and however many processes make
it at once: the first to be ready wins, and the others use what it made. Its name ends in a hash of everything
that its contents depend on, and nothing in it is ever changed. It may be removed at any time.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flax_wavlm.errors import reason
from flax_wavlm.files import flush_to_disk, folder_beside, move_folder

log = logging.getLogger(__name__)

FORMAT = 1
ALIGNMENT = 64  # bytes
MOST_OF_A_NAME = 64  # characters of it in a folder's name


def file_identity(file: Path) -> list[Any]:
    """Values that differ after a file was changed: its path, size in bytes and time of change in ns."""
    try:
        stat = file.stat()
    except OSError:
        return [str(file.absolute())]
    return [str(file.absolute()), stat.st_size, stat.st_mtime_ns]


def cached(
    folder: Path, name: str, depends_on: Any, make: Callable[[], Iterable[np.ndarray | None]]
) -> list[np.ndarray | None]:
    """The arrays of `make`, memory-mapped and read-only, from `folder/<name>-<hash>`; made if not there.

    What cannot stand in a file's name is replaced in `name`.

    Where the folder cannot be written (read-only, full), a warning says so and the arrays are in memory.

    Args:
        folder: where caches lie; made if need be.
        name: what messages call the arrays.
        depends_on: everything that the arrays depend on, as JSON can hold it.
        make: gives the arrays in order; None stands for one that does not exist. Called only where needed.
    """
    key = hashlib.sha256(json.dumps([FORMAT, depends_on]).encode()).hexdigest()
    place = folder / f"{_as_file_name(name)}-{key[:16]}"
    arrays = _read(place, key)
    if arrays is not None:
        log.info("%s: read from the cache, %s", name, place)
        return arrays
    log.info("%s: not yet in the cache, so made once for %s", name, place)
    try:
        _write(place, key, make)
    except OSError as error:
        log.warning(
            "%s: the cache %s cannot be written (%s), so this run keeps all in memory and the next makes it "
            'again; make room, or set data.cache to another folder ("none": no cache)',
            name,
            place,
            reason(error),
        )
        return list(make())
    arrays = _read(place, key)
    return list(make()) if arrays is None else arrays  # None: somebody has removed it just now


def _as_file_name(name: str) -> str:
    """The name, of letters, digits and `_.-` alone, and not too long; with a hash where it had others.

    A split may be called `train[:95%]`, `a/b` or `../x`.
    """
    safe = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).lstrip(".")[:MOST_OF_A_NAME]
    if safe == name:
        return name
    return f"{safe}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _read(place: Path, key: str) -> list[np.ndarray | None] | None:
    """The arrays of a whole cache; None where there is none. A damaged one is removed, with a warning."""
    if not place.exists():
        return None
    try:
        index = json.loads((place / "index.json").read_bytes())
        entries, checksum = index["entries"], index["checksum"]
        if checksum != _checksum(key, entries, index["bytes"]):
            raise ValueError("index.json does not have its own checksum")
        if (size := (place / "arrays").stat().st_size) != index["bytes"]:
            raise ValueError(f"arrays has {size} bytes, expected {index['bytes']}")
        data = np.memmap(place / "arrays", np.uint8, mode="r") if size else np.empty(0, np.uint8)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: the cache is damaged (%s), so it is made again", place, error)
        shutil.rmtree(place, ignore_errors=True)
        return None
    return [None if entry is None else _view(data, *entry) for entry in entries]


def _view(data: np.ndarray, offset: int, dtype: str, shape: Sequence[int]) -> np.ndarray:
    # Not a slice of np.memmap, which is slow to make.
    count = int(np.prod(shape))
    return np.frombuffer(data, np.dtype(dtype), count, offset).reshape(shape)


def _write(place: Path, key: str, make: Callable[[], Iterable[np.ndarray | None]]) -> None:
    with folder_beside(place) as scratch:
        entries: list[tuple[int, str, tuple[int, ...]] | None] = []
        with (scratch / "arrays").open("wb") as file:
            for array in make():
                if array is None:
                    entries.append(None)
                    continue
                file.write(bytes(-file.tell() % ALIGNMENT))
                entries.append((file.tell(), array.dtype.name, array.shape))
                file.write(array.tobytes())
            size = file.tell()
            flush_to_disk(file)
        with (scratch / "index.json").open("w") as file:
            json.dump({"entries": entries, "bytes": size, "checksum": _checksum(key, entries, size)}, file)
            flush_to_disk(file)
        move_folder(scratch, place)  # else another process was faster, and its arrays are the same


def _checksum(key: str, entries: Sequence[Any], size: int) -> str:
    return hashlib.sha256(json.dumps([key, entries, size]).encode()).hexdigest()

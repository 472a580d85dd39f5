"""Folders of audio files with a metadata file: what `datasets` calls an audiofolder.

`datasets` reads them only where torchcodec is installed, so this is a reader of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from flax_wavlm.data.corpora.audio_files import AudioFiles
from flax_wavlm.data.corpora.folders import folders
from flax_wavlm.data.corpora.hub_columns import TEXT_COLUMNS
from flax_wavlm.data.corpora.parts import alias, names_of_times
from flax_wavlm.data.corpora.splits import no_such_split
from flax_wavlm.data.corpora.tables import table_rows
from flax_wavlm.data.corpora.utterance import Skipped, Utterance, by_id, empty_split, is_usual_split
from flax_wavlm.errors import UserError, shown, some
from flax_wavlm.files import is_file, is_folder

log = logging.getLogger(__name__)

_METADATA = ("metadata.csv", "metadata.jsonl")
_SPEAKER = ("speaker_id", "client_id", "speaker")


def is_audiofolder(folder: Path) -> bool:
    """Whether there is a metadata file: in the folder, or in that of a split, which may lie in `data`."""
    return bool(_tables(folder))


def read_audiofolder(folder: Path, split: str, text_column: str) -> tuple[list[Utterance], list[Skipped]]:
    """A split: the rows of its folder's metadata file, or those of the common one whose files lie there.

    A row has `file_name`, relative to the metadata file, and a text: `text_column`, or a usual name. An id is
    the file's path in the folder. Rows without text are skipped. A row whose file lies in no split's
    folder is of "train".

    Raises NoSplit, and UserError for a row without the columns, and with the files that are missing.
    """
    files = AudioFiles("file_name", "a path relative to the metadata file")
    names = (text_column,) if text_column else TEXT_COLUMNS
    utterances, skipped, rows = [], [], dict[str, str]()
    times: set[str] = set()
    there = splits_of_audiofolder(folder)
    if split not in there:
        raise no_such_split(folder, split, there)
    for table in _tables(folder):
        for where, row in table_rows(table, (("file_name",),), names):
            path = _relative(where, row, table, folder)
            if _split_of(path) != split:
                continue
            id, column = path.as_posix(), alias(where, row, names)
            if id in rows:
                raise UserError(
                    f"{shown(id)} is also at {rows[id]}",
                    where=where,
                    field="file_name",
                    do="remove one of the rows",
                )
            rows[id] = where
            times.update(names_of_times(row))
            text = row.get(column)
            if isinstance(text, str) and text.strip():
                speaker = row.get(alias(where, row, _SPEAKER), "")
                audio = files.find(where, str(row["file_name"]), folder / path)
                utterances.append(Utterance(id, audio, text, str(speaker)))
            elif not column and not any(name in row for name in names):
                raise UserError(
                    f"no column of text; there are {some(row)}",
                    where=where,
                    field="data.text_column",
                    do="set data.text_column to the one that is meant",
                )
            else:
                skipped.append(Skipped(id, f"no text ({where})"))
    files.check()
    if times:
        log.warning(
            "%s: %s: not used, as a row of metadata is a whole file; for parts of files write a manifest",
            folder,
            some(sorted(times)),
        )
    if not utterances:
        raise empty_split(str(folder), f"rows of split {split!r} with file_name and text", skipped)
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def splits_of_audiofolder(folder: Path) -> list[str]:
    """The splits that there are: folders with a split's name, or "train" alone."""
    found = {
        _split_of(_relative(where, row, table, folder))
        for table in _tables(folder)
        for where, row in table_rows(table, (("file_name",),))
    }
    return sorted(found)


def _tables(folder: Path) -> list[Path]:
    if not is_folder(folder):
        return []
    roots = [folder, *(below for below in folders(folder) if below.name == "data")]
    places = roots + [
        below
        for root in roots
        for below in folders(root)
        if is_usual_split(below.name) and below not in roots
    ]
    return [file for place in places for name in _METADATA if is_file(file := place / name)]


def _relative(where: str, row: dict[str, Any], table: Path, folder: Path) -> Path:
    """The audio file's path in the folder; UserError where it leads out of it."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(
            where=where,
            field="file_name",
            found=name,
            expected="a path in the metadata file's folder",
            do="correct the line",
        )
    return table.parent.relative_to(folder) / name


def _split_of(path: Path) -> str:
    return next((part for part in path.parts[:-1] if is_usual_split(part)), "train")

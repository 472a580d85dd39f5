"""Manifests: a file a split, a line a clip, in JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flax_wavlm.data.corpora.folders import listing, read_utf8
from flax_wavlm.data.corpora.utterance import Skipped, Utterance, by_id, empty_split
from flax_wavlm.errors import UserError, some
from flax_wavlm.files import exists, is_file, parse_json

_COLUMNS_SHOWN = 300  # characters

Row = tuple[str, dict[str, Any]]  # "file:line", and the line's fields


def read_manifest(folder: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """`<split>.jsonl` or `<split>.csv` in a folder, one clip a line, UTF-8.

    Fields: `audio_filepath` (absolute, or relative to the manifest), `text`, and optionally `duration` in
    seconds, `speaker` and `id` (by default audio_filepath as written). Other fields are ignored, except a
    non-zero `offset`: clips cut out of longer files are not supported. A clip whose text is empty is skipped.

    Raises UserError with file and line for anything else that is wrong: not UTF-8, not JSON, a missing or
    malformed field, a repeated id, no such audio file.
    """
    manifest = _find(Path(folder), split)
    text = read_utf8(manifest)
    rows = _jsonl_rows(manifest, text) if manifest.suffix == ".jsonl" else _csv_rows(manifest, text)

    utterances, skipped, lines = [], [], dict[str, str]()
    for where, row in rows:
        utterance = _utterance(where, row, manifest.parent)
        if utterance.id in lines:
            raise UserError(
                f"id {utterance.id!r} is also at {lines[utterance.id]}",
                where=where,
                field="id",
                expected="one line a clip",
                do="remove one, or give each clip its own id",
            )
        lines[utterance.id] = where
        if utterance.text.strip():
            utterances.append(utterance)
        else:
            skipped.append(Skipped(utterance.id, f"no text ({where})"))
    if not utterances:
        raise empty_split(str(manifest), "one clip a line with audio_filepath and text", skipped)
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def _find(folder: Path, split: str) -> Path:
    manifests = [file for suffix in ("jsonl", "csv") if exists(file := folder / f"{split}.{suffix}")]
    if not manifests:
        raise UserError(
            f"neither {split}.jsonl nor {split}.csv is there; it holds {listing(folder)}",
            where=folder,
            expected="one of them",
        )
    if len(manifests) > 1:
        raise UserError(
            f"both {split}.jsonl and {split}.csv are there",
            where=folder,
            expected="one of them",
            do="remove the one that is out of date",
        )
    return manifests[0]


def _jsonl_rows(manifest: Path, text: str) -> Iterator[Row]:
    """Each line that is not blank."""
    # Not splitlines: U+2028 and its kind may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{manifest}:{number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"not JSON ({error})", where=where, expected="one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(
                "not an object",
                where=where,
                found=line.strip()[:60],
                expected="a JSON object with audio_filepath and text",
            )
        yield where, row


def _csv_rows(manifest: Path, text: str) -> Iterator[Row]:
    """Each row, without its empty fields; only an empty text is kept."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        _check_header(header, f"{manifest}:1")
        for row in reader:
            where = f"{manifest}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(
                    "the row has not the header's number of fields",
                    where=where,
                    expected=f"{len(header)} fields",
                    do='put a text that holds commas in double quotes ("...")',
                )
            yield where, {field: value for field, value in row.items() if value or field == "text"}
    except csv.Error as error:  # line_num is still that of the row before
        raise UserError(
            f"not CSV ({error})",
            where=f"{manifest}:{reader.line_num + 1}",
            expected='comma-separated fields, quoted with double quotes ("...")',
        ) from error


def _check_header(header: Sequence[str], where: str) -> None:
    for field in ("audio_filepath", "text"):
        if field not in header:
            columns = " ".join(some(header).split())[:_COLUMNS_SHOWN]  # a quoted name may hold line ends
            raise UserError(
                f"no column {field!r}; the header is {columns or 'empty'}",
                where=where,
                field=field,
                expected="a header line with audio_filepath and text, separated by commas",
            )
    if repeated := sorted({field for field in header if header.count(field) > 1}):
        raise UserError(
            f"the column {repeated[0]!r} is there twice",
            where=where,
            field=repeated[0],
            expected="each once",
            do="remove one",
        )


def _utterance(where: str, row: dict[str, Any], folder: Path) -> Utterance:
    """The clip of one line; an absolute path in it replaces the folder."""
    path = _string(where, row, "audio_filepath")
    if not path:
        raise _wrong(where, "audio_filepath", path, "a path")
    text = _string(where, row, "text")
    names = {field: row.get(field, default) for field, default in (("id", path), ("speaker", ""))}
    for field, value in names.items():
        if type(value) not in (str, int):
            raise _wrong(where, field, value, "a string")
    duration, offset = _seconds(where, row, "duration"), _seconds(where, row, "offset")
    if offset:
        raise UserError(
            where=where,
            field="offset",
            found=row["offset"],
            expected="none, as clips inside longer files are not supported",
            do="cut the file up into one file a clip",
        )
    audio = folder / path
    _check_audio(where, path, audio)
    return Utterance(str(names["id"]), audio, text, str(names["speaker"]), duration)


def _string(where: str, row: dict[str, Any], field: str) -> str:
    if field not in row:
        raise UserError(
            f"{field} is missing", where=where, field=field, expected="a string", do="correct the line"
        )
    if not isinstance(row[field], str):
        raise _wrong(where, field, row[field], "a string")
    return row[field]


def _seconds(where: str, row: dict[str, Any], field: str) -> float | None:
    """A number of seconds from 0, or None where the line has none."""
    value = row.get(field)
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise _wrong(where, field, value, "seconds from 0")
    return seconds


def _check_audio(where: str, path: str, audio: Path) -> None:
    try:
        there = is_file(audio)
    except UserError as error:
        raise UserError(
            f"audio_filepath cannot be used: {error}", where=where, field="audio_filepath"
        ) from error
    if not there:
        raise UserError(
            where=where,
            field="audio_filepath",
            found=path,
            expected=f"an absolute path, or one relative to the manifest, and there is no file {audio}",
            do="correct the line",
        )


def _wrong(where: str, field: str, found: Any, expected: str) -> UserError:
    return UserError(where=where, field=field, found=found, expected=expected, do="correct the line")

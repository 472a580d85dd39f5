"""TODO."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax_wavlm.data.corpora.folders import listing, read_utf8
from flax_wavlm.data.corpora.utterance import Skipped, Utterance, by_id, empty_split
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, is_file, parse_json


def read_manifest(folder: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """`<split>.jsonl` or `<split>.csv` in a folder, one clip a line, UTF-8.

    Fields: `audio_filepath` (absolute, or relative to the manifest), `text`, and optionally `duration` in
    seconds, `speaker` and `id` (by default audio_filepath as written). Other fields are ignored, except a
    non-zero `offset`: clips cut out of longer files are not supported. A clip whose text is empty is skipped.

    Raises UserError with file and line for anything else that is wrong: not UTF-8, not JSON, a missing or
    malformed field, a repeated id, no such audio file.
    """
    manifests = [file for suffix in ("jsonl", "csv") if exists(file := Path(folder) / f"{split}.{suffix}")]
    if len(manifests) != 1:
        raise UserError(
            f"{folder}: found {len(manifests)} of {split}.jsonl and {split}.csv, expected one. "
            + ("Remove the one that is out of date." if manifests else f"Found {listing(Path(folder))}.")
        )
    manifest = manifests[0]
    text = read_utf8(manifest)
    rows = _jsonl_rows(manifest, text) if manifest.suffix == ".jsonl" else _csv_rows(manifest, text)

    utterances, skipped, lines = [], [], dict[str, str]()
    for where, row in rows:
        utterance = _manifest_utterance(where, row, manifest.parent)
        if utterance.id in lines:
            raise UserError(
                f"{where}: id {utterance.id!r} is also at {lines[utterance.id]}. Expected one line a clip: "
                "remove one, or give each clip its own id."
            )
        lines[utterance.id] = where
        if utterance.text.strip():
            utterances.append(utterance)
        else:
            skipped.append(Skipped(utterance.id, f"no text ({where})"))
    if not utterances:
        raise empty_split(str(manifest), "one clip a line with audio_filepath and text", skipped)
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def _jsonl_rows(manifest: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, fields) of each line that is not blank."""
    # Not splitlines: U+2028 and its kind may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{manifest}:{number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}). Expected one JSON object a line.") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{where}: holds {line.strip()[:60]!r}, expected a JSON object with audio_filepath and text."
            )
        yield where, row


def _csv_rows(manifest: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, fields that are not empty) of each row; text may be empty."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        columns = " ".join(", ".join(header).split())[:300]  # a quoted name may hold line ends
        for field in ("audio_filepath", "text"):
            if field not in header:
                raise UserError(
                    f"{manifest}:1: no column {field!r}, found {columns or 'nothing'}. "
                    "Expected a header line with audio_filepath and text, separated by commas."
                )
        if repeated := sorted({field for field in header if header.count(field) > 1}):
            raise UserError(
                f"{manifest}:1: the column {repeated[0]!r} is there twice. Expected each once: remove one."
            )
        for row in reader:
            where = f"{manifest}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(
                    f"{where}: not {len(header)} fields as in the header. Expected as many: put a text that "
                    'holds commas in double quotes ("...").'
                )
            yield where, {field: value for field, value in row.items() if value or field == "text"}
    except csv.Error as error:  # line_num is still that of the row before
        raise UserError(
            f"{manifest}:{reader.line_num + 1}: not CSV ({error}). Expected comma-separated fields, quoted "
            'with double quotes ("...").'
        ) from error


def _manifest_utterance(where: str, row: dict[str, Any], folder: Path) -> Utterance:
    for field in ("audio_filepath", "text"):
        if not isinstance(row.get(field), str) or (field == "audio_filepath" and not row[field]):
            found = f"{row[field]!r}" if field in row else "missing"
            raise UserError(f"{where}: {field} is {found}, expected a string. Correct the line.")
    names = {}
    for field, default in (("id", row["audio_filepath"]), ("speaker", "")):
        value = row.get(field, default)
        if type(value) not in (str, int):
            raise UserError(f"{where}: {field} is {value!r}, expected a string. Correct the line.")
        names[field] = str(value)
    seconds: dict[str, float | None] = {}
    for field in ("duration", "offset"):
        value = row.get(field)
        try:
            seconds[field] = number = None if value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(value, bool):
            number = math.nan
        if number is not None and not 0 <= number < math.inf:
            raise UserError(
                f"{where}: {field} is {repr(value)[:80]}, expected seconds from 0. Correct the line."
            )
    if seconds["offset"]:
        raise UserError(
            f"{where}: offset is {row['offset']!r}, expected none: clips inside longer files are not "
            "supported. Cut the file up into one file a clip."
        )
    audio = folder / row["audio_filepath"]  # an absolute path replaces the folder
    try:
        there = is_file(audio)
    except UserError as error:
        raise UserError(f"{where}: audio_filepath cannot be used: {error}") from error
    if not there:
        raise UserError(
            f"{where}: audio_filepath is {row['audio_filepath']!r}, but there is no file {audio}. Expected "
            "an absolute path, or one relative to the manifest: correct the line."
        )
    return Utterance(names["id"], audio, row["text"], names["speaker"], seconds["duration"])

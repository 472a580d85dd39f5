"""Manifests: a file a split, a line a clip or a part of a file, as JSON lines, JSON, CSV or TSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax_wavlm.data.corpora.audio_files import AudioFiles
from flax_wavlm.data.corpora.folders import listing
from flax_wavlm.data.corpora.parts import alias, part_of, segments_of
from flax_wavlm.data.corpora.tables import TABLE_SUFFIXES, table_rows
from flax_wavlm.data.corpora.utterance import (
    NoSplit,
    Skipped,
    Utterance,
    by_id,
    empty_split,
    in_usual_order,
)
from flax_wavlm.errors import UserError, some
from flax_wavlm.files import exists, folder_entries

# Names under which other tools write a field.
_AUDIO = (
    *("audio_filepath", "audio", "audio_path", "audio_file", "audio_filename", "path", "file", "file_name"),
    *("filename", "filepath", "file_path", "wav", "wav_path", "wav_file", "wav_filename"),
)
_TEXT = (
    *("text", "sentence", "transcript", "transcription", "normalized_text", "normalised_text", "ref"),
    *("reference", "txt", "wrd"),
)
_SPEAKER = ("speaker", "speaker_id", "client_id", "spk", "spk_id", "spkr")
_ID = ("id", "ID", "utt_id", "utterance_id", "utt")


def read_manifest(folder: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """`<split>.jsonl`, `.json`, `.csv` or `.tsv` in a folder, one clip a line, UTF-8.

    Fields: `audio_filepath` (absolute, or relative to the manifest), `text`, and optionally `speaker`, `id`
    (by default audio_filepath as written), and times in seconds, see `parts.part_of`: `duration` of the file,
    or the part of it that the text belongs to, which is `@start-end` in the default id. A list `segments` of
    objects with `start`, `end` and `text` makes an utterance of each, `<id>#0001` and so on. The usual other
    names of these fields are known. Other fields are ignored. A clip whose text is empty is skipped.

    Raises NoSplit, and UserError with file and line for anything else that is wrong: not UTF-8, not JSON, a
    missing or malformed field, two fields that mean the same and differ, times that contradict each other, a
    repeated id; and with the audio files that are missing.
    """
    manifest = _find(Path(folder), split)
    files = AudioFiles("audio_filepath", "an absolute path, or one relative to the manifest")
    utterances, skipped, lines = [], [], dict[str, str]()
    for where, row in table_rows(manifest, (_AUDIO, _TEXT), _TEXT):
        for clip in _clips(where, row, manifest.parent, files):
            if clip.id in lines:
                raise UserError(
                    f"id {clip.id!r} is also at {lines[clip.id]}",
                    where=where,
                    field="id",
                    expected="one line a clip",
                    do="remove one, or give each clip its own id",
                )
            lines[clip.id] = where
            if isinstance(clip, Utterance):
                utterances.append(clip)
            else:
                skipped.append(clip)
    files.check()
    if not utterances:
        raise empty_split(str(manifest), "one clip a line with audio_filepath and text", skipped)
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def splits_of_manifest(folder: str | Path) -> list[str]:
    """The splits that are there: the names of the files that may be manifests."""
    return in_usual_order(
        file.stem
        for file in folder_entries(Path(folder))
        if file.suffix in TABLE_SUFFIXES and not file.name.startswith(".")
    )


def _find(folder: Path, split: str) -> Path:
    manifests = [file for suffix in TABLE_SUFFIXES if exists(file := folder / f"{split}{suffix}")]
    if not manifests:
        names = [f"{split}{suffix}" for suffix in TABLE_SUFFIXES]
        raise NoSplit(
            f"none of {some(names)} is there; it holds {listing(folder)}",
            where=folder,
            expected="one of them",
        )
    if len(manifests) > 1:
        raise UserError(
            f"both {manifests[0].name} and {manifests[1].name} are there",
            where=folder,
            expected="one of them",
            do="remove the one that is out of date",
        )
    return manifests[0]


def _clips(where: str, row: dict[str, Any], folder: Path, files: AudioFiles) -> Iterator[Utterance | Skipped]:
    """The clip of a line, or one for each of its segments."""
    audio_field = alias(where, row, _AUDIO) or "audio_filepath"
    path = _string(where, row, audio_field)
    if not path:
        raise _wrong(where, audio_field, path, "a path")
    id, speaker = _name(where, row, _ID), _name(where, row, _SPEAKER)
    segments = segments_of(where, row)
    if not segments:
        part = part_of(where, row)
        yield _clip(where, row, files, folder, path, id or f"{path}{part.name}", speaker)
    for number, segment in enumerate(segments, start=1):
        within = f"{where}, segment {number}"
        own = _name(within, segment, _SPEAKER) or speaker
        if part_of(within, segment).end is None:
            raise UserError(
                "the segment has no end",
                where=within,
                field="segments",
                expected="start, end and text",
                do="correct the line",
            )
        yield _clip(within, segment, files, folder, path, f"{id or path}#{number:04d}", own)


def _clip(
    where: str, row: dict[str, Any], files: AudioFiles, folder: Path, path: str, id: str, speaker: str
) -> Utterance | Skipped:
    """The clip, where `row` has its text and times; an absolute path replaces the folder."""
    text = _string(where, row, alias(where, row, _TEXT) or "text")
    part = part_of(where, row)
    if not text.strip():
        return Skipped(id, f"no text ({where})")
    if part.is_empty:
        return Skipped(id, f"the part has no length ({where})")
    audio = files.find(where, path, folder / path)
    return Utterance(id, audio, text, speaker, part.duration, part.start, part.end)


def _string(where: str, row: dict[str, Any], field: str) -> str:
    if field not in row:
        raise UserError(
            f"{field} is missing", where=where, field=field, expected="a string", do="correct the line"
        )
    if not isinstance(row[field], str):
        raise _wrong(where, field, row[field], "a string")
    return row[field]


def _name(where: str, row: dict[str, Any], names: tuple[str, ...]) -> str:
    field = alias(where, row, names)
    value = row[field] if field else ""
    if type(value) not in (str, int):
        raise _wrong(where, field, value, "a string")
    return str(value)


def _wrong(where: str, field: str, found: Any, expected: str) -> UserError:
    return UserError(where=where, field=field, found=found, expected=expected, do="correct the line")

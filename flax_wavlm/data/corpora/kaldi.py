"""Kaldi's data folders: `wav.scp`, `text`, and optionally `segments`, `utt2spk` and `utt2dur`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path

from flax_wavlm.data.corpora.audio_files import AudioFiles
from flax_wavlm.data.corpora.folders import folders, keyed_lines
from flax_wavlm.data.corpora.parts import Part, part_of
from flax_wavlm.data.corpora.utterance import (
    Skipped,
    Utterance,
    empty_split,
    in_usual_order,
    no_split,
    own_split,
)
from flax_wavlm.errors import UserError, some
from flax_wavlm.files import is_file

log = logging.getLogger(__name__)

_EXPECTED = "a folder with wav.scp and text, or one with such folders in it"
_ARCHIVE = re.compile(r"\.ark\b.*$|:\d+$|\]$", re.IGNORECASE)  # foo.ark:123, foo.ark:123[0:9]
_DO = "write the audio to a file, and name the file"


def read_kaldi(path: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """A data folder of Kaldi's: `<path>/<split>/`, or `path` itself where it holds wav.scp.

    `wav.scp` names the recordings, `text` the texts, `segments` the parts of recordings that they belong to
    (without it, each recording is an utterance), `utt2spk` the speakers, and `utt2dur` lengths. A path in
    wav.scp is absolute, or relative to its folder or one of the two above it, whichever has the first
    recording. An id that one file has and another lacks is skipped, as is an empty text or segment.

    Raises NoSplit, and UserError with file and line for a command (a pipe: it is never run), a place in an
    archive, a line that is not whole, times that cannot be, and an id that is there twice; and with the
    recordings that are missing.
    """
    root = Path(path)
    there = _data_folders(root)
    if split not in there:
        raise no_split(root, split, in_usual_order(there), _EXPECTED)
    folder = there[split]
    recordings = _recordings(folder / "wav.scp")
    texts = keyed_lines(folder / "text")
    speakers = keyed_lines(folder / "utt2spk") if is_file(folder / "utt2spk") else {}
    if is_file(folder / "segments"):
        parts, source = _segments(folder / "segments"), "segments"
    else:
        parts, source = {id: (id, Part()) for id in recordings}, "wav.scp"
    lengths = keyed_lines(folder / "utt2dur") if is_file(folder / "utt2dur") else {}
    if speakers and (without := sorted(parts.keys() & texts.keys() - speakers.keys())):
        log.warning("%s: %d utterances are not in utt2spk: %s", folder, len(without), some(without))

    utterances, skipped = [], []
    for id in sorted(parts.keys() | texts.keys()):
        recording, part = parts.get(id, ("", Part()))
        if id not in parts:
            skipped.append(Skipped(id, f"in text, and not in {source}"))
        elif not (id in texts and texts[id][1]):
            skipped.append(Skipped(id, "no text"))
        elif recording not in recordings:
            skipped.append(Skipped(id, f"its recording is not in wav.scp: {recording!r}"))
        elif part.is_empty:
            skipped.append(Skipped(id, "the part has no length"))
        else:
            speaker = speakers[id][1] if id in speakers else ""
            audio = recordings[recording]
            duration = part.duration
            if id in lengths:
                duration = part_of(lengths[id][0], {"duration": lengths[id][1]}).duration
            utterances.append(Utterance(id, audio, texts[id][1], speaker, duration, part.start, part.end))
    if not utterances:
        raise empty_split(str(folder), "ids that wav.scp and text share", skipped)
    return utterances, skipped


def splits_of_kaldi(path: str | Path) -> list[str]:
    """The sub-folders that hold a wav.scp; for a data folder itself, its own split's name."""
    return in_usual_order(_data_folders(Path(path)))


def _data_folders(path: Path) -> dict[str, Path]:
    if is_file(path / "wav.scp"):
        return {own_split(path): path}
    return {folder.name: folder for folder in folders(path) if is_file(folder / "wav.scp")}


def _recordings(table: Path) -> dict[str, Path]:
    """The audio file of each recording in wav.scp."""
    lines = keyed_lines(table)
    for where, name in lines.values():
        _check_recording(where, name)
    base = _base(table.parent, [name for _, name in lines.values()])
    files = AudioFiles("wav.scp", "an absolute path, or one relative to wav.scp's folder or the two above it")
    found = {id: files.find(where, name, base / name) for id, (where, name) in lines.items()}
    files.check()
    return found


def _check_recording(where: str, name: str) -> None:
    """UserError where an entry of wav.scp is anything but a file's name."""
    if not name or name == "-":
        raise UserError(where=where, field="wav.scp", found=name, expected="an audio file", do=_DO)
    if "|" in (name[0], name[-1]):
        raise UserError(
            "a command, which is never run",
            where=where,
            field="wav.scp",
            found=name,
            expected="an audio file",
            do=_DO,
        )
    if _ARCHIVE.search(name):
        raise UserError(
            "a place in an archive",
            where=where,
            field="wav.scp",
            found=name,
            expected="an audio file",
            do=_DO,
        )


def _base(folder: Path, names: list[str]) -> Path:
    """The folder that paths in wav.scp are relative to: recipes start Kaldi from above the data folders."""
    relative = next((name for name in names if not os.path.isabs(name)), None)
    if relative is None:
        return folder
    for base in (folder, folder.absolute().parent, folder.absolute().parent.parent):
        with contextlib.suppress(UserError):  # a name that cannot be looked up is named when it is its turn
            if is_file(base / relative):
                return base
    return folder


def _segments(table: Path) -> dict[str, tuple[str, Part]]:
    """The recording of each utterance, and its part."""
    found = {}
    for id, (where, line) in keyed_lines(table).items():
        fields = line.split()
        if len(fields) != 3:
            raise UserError(
                f"{len(fields) + 1} fields",
                where=where,
                field="segments",
                expected="4: utterance, recording, start and end"
                + (" (a channel is not supported)" if len(fields) == 4 else ""),
                do="correct the line",
            )
        recording, start, end = fields
        times = {"start": start} if end == "-1" else {"start": start, "end": end}  # -1: to the end
        found[id] = (recording, part_of(where, times))
    return found

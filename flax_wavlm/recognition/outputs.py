"""Where transcripts go: a file for each input, or one stream for all.

An input's file is named by the input alone, so that a second start finds it, whatever else is given:

into a folder    a/x.wav -> FOLDER/a/x.srt     the path below the working folder; of what lies elsewhere, the
                                               whole path, so /data/x.wav -> FOLDER/data/x.srt
beside inputs    a/x.wav -> a/x.srt

Where another recording beside it has the same stem (x.flac), the suffix stays: x.wav.srt, x.flac.srt.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from flax_wavlm.data.corpora.audio_files import is_audio
from flax_wavlm.errors import UserError, cannot_write, did_you_mean, shown, some
from flax_wavlm.files import exists, is_file, is_folder, write_atomically
from flax_wavlm.recognition.formats import FORMATS, OF_SEVERAL, content, header
from flax_wavlm.recognition.transcript import Transcript

log = logging.getLogger(__name__)

STDIN = "-"  # stands for standard input among inputs
_STDIN_STEM = "stdin"
_LONGEST_NAME = 255  # bytes, on the file systems of today


@dataclass
class Outputs:
    """The places of the transcripts of a run; `plan_outputs` makes it.

    Attributes:
        format: one of `formats.FORMATS`.
        files: each input's file; None: all go to `stream`.
        finished: inputs whose file was there before, and is not to be written again.
        stream: what is written to without files.
    """

    format: str
    files: Mapping[str, Path] | None
    finished: Collection[str] = ()
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    _begun: bool = False  # whether the stream has its header

    def done(self, recording: str | Path) -> bool:
        """Whether an earlier run has written this input's file, and this one is to skip it."""
        return _key(recording) in self.finished

    def write(self, transcript: Transcript) -> None:
        """Writes a transcript, one without an error: its file is whole or absent.

        Raises UserError where it cannot be written.
        """
        text = content(transcript, self.format)
        if self.files is None:
            self._write_to_stream(text)
            return
        file = self.files[_key(transcript.file)]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, header(self.format) + text)
        except (OSError, ValueError) as error:
            raise cannot_write(file, error) from error

    def _write_to_stream(self, text: str) -> None:
        if self.format.startswith("json") and not (self.stream.encoding or "").lower().startswith("utf"):
            text = re.sub(r"[^\x00-\x7f]", lambda character: json.dumps(character[0])[1:-1], text)
        start = "" if self._begun else header(self.format)
        self._begun = True
        try:
            self.stream.write(start + text)
            self.stream.flush()
        except OSError as error:
            raise cannot_write("standard output", error, do="see to what reads it") from error


def plan_outputs(
    inputs: Sequence[str | Path],
    format: str,
    *,
    folder: str | Path = "",
    beside: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Outputs:
    """Decides where the transcript of each input goes, before any work.

    Args:
        inputs: audio files, and "-" for standard input; folders are to be listed before.
        format: one of `formats.FORMATS`.
        folder: to write a file for each input into; made if need be.
        beside: write a file beside each input.
        resume: skip inputs whose file is there.
        overwrite: replace files that are there.
    Raises:
        UserError: the settings contradict each other, or do not suit the inputs; files are there, and
            neither `resume` nor `overwrite` says what becomes of them; a name cannot be; two inputs have the
            same file; a file would lie outside of the folder.
    """
    _check(inputs, format, folder=folder, beside=beside, resume=resume, overwrite=overwrite)
    if not folder and not beside:
        return Outputs(format, None)
    stems = _Stems()
    files = {name: _place(name, stems, folder, FORMATS[format]) for name in map(_key, inputs)}
    _check_names(files)
    if folder:
        make_folder(Path(folder))
        _check_within(Path(folder), files)
    there = {name: file for name, file in files.items() if exists(file)}
    if folders := [str(file) for file in there.values() if not is_file(file)]:
        raise UserError("is no file", where=folders[0], expected="a place for a file", do="move it away")
    if there and not (resume or overwrite):
        raise UserError(
            f"{len(there):,} of {len(files):,} files to write are there already: "
            f"{some([shown(str(file)) for file in there.values()])}",
            do="give output.resume to skip their recordings, or output.overwrite to replace them",
        )
    if there and resume:
        log.info(
            "%d of %d recordings have their file already, and are skipped: %s",
            len(there),
            len(files),
            some([shown(name) for name in there]),
        )
    return Outputs(format, files, frozenset(there) if resume else frozenset())


def _check(
    inputs: Sequence[str | Path],
    format: str,
    *,
    folder: str | Path,
    beside: bool,
    resume: bool,
    overwrite: bool,
) -> None:
    """Raises UserError for settings that contradict each other, or do not suit the inputs."""
    if format not in FORMATS:
        raise UserError(
            field="output.format",
            found=format,
            expected=f"one of {', '.join(FORMATS)}",
            do=did_you_mean(format, FORMATS),
        )
    if folder and beside:
        raise UserError("output.folder and output.beside are both given", expected="one of them")
    if resume and overwrite:
        raise UserError("output.resume and output.overwrite are both given", expected="one of them")
    if beside and STDIN in map(str, inputs):
        raise UserError(
            field="output.beside",
            found=True,
            expected="no standard input, which lies in no folder",
            do="give output.folder",
        )
    if folder or beside:
        return
    if resume or overwrite:
        raise UserError(
            f"{'output.resume' if resume else 'output.overwrite'} is about files, and everything goes to "
            "standard output",
            do="give output.folder or output.beside",
        )
    if len(inputs) > 1 and format not in OF_SEVERAL:
        raise UserError(
            f"{len(inputs):,} recordings cannot be one {format} file on standard output",
            do="give output.folder for a file of each, or output.format=jsonl",
        )


def _key(recording: str | Path) -> str:
    """One name for "./x.wav" and "x.wav"."""
    return str(Path(recording))


class _Stems:
    """Which stems several recordings of a folder have. Each folder is listed once."""

    def __init__(self) -> None:
        self._seen: dict[Path, dict[str, int]] = {}

    def shared(self, file: Path) -> bool:
        """Whether another recording beside this one has its stem. Letter case does not tell them apart."""
        if file.parent not in self._seen:
            counts: dict[str, int] = {}
            try:
                names = os.listdir(file.parent)
            except (OSError, ValueError):  # the recording's reader will say what is wrong
                names = []
            for name in filter(is_audio, names):
                stem = _stem(name).casefold()
                counts[stem] = counts.get(stem, 0) + 1
            self._seen[file.parent] = counts
        return self._seen[file.parent].get(_stem(file.name).casefold(), 0) > 1


def _stem(name: str) -> str:
    """The name without an audio file's suffix. "No. 5" has none."""
    return name.rpartition(".")[0] if is_audio(name) else name


def _place(name: str, stems: _Stems, folder: str | Path, suffix: str) -> Path:
    """The file of an input."""
    if name == STDIN:
        return Path(folder) / f"{_STDIN_STEM}{suffix}"
    path = Path(os.path.abspath(name))  # without "..", and without following links
    if not path.name:
        raise UserError("is no file", where=name, expected="a recording")
    file = path.with_name((path.name if stems.shared(path) else _stem(path.name)) + suffix)
    if not folder:
        return file
    here = Path.cwd()
    return Path(folder) / (file.relative_to(here) if file.is_relative_to(here) else Path(*file.parts[1:]))


def _check_names(files: Mapping[str, Path]) -> None:
    """Raises UserError where two inputs have the same file, a file is an input, or a name is too long."""
    paths = {name: STDIN if name == STDIN else os.path.abspath(name) for name in files}
    recordings = set(paths.values())
    of: dict[Path, str] = {}
    for name, file in files.items():
        other = of.setdefault(file, name)
        if paths[name] != paths[other]:
            raise UserError(
                f"would be the file of {shown(other)} and of {shown(name)}",
                where=file,
                expected="a file for each",
                do="give one of them alone, with another output.folder",
            )
        if os.path.abspath(file) in recordings:
            raise UserError("would take the place of a recording", where=file, do="give output.folder")
        if len(file.name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
            raise UserError("the name is too long", where=file, do="rename the recording")


def make_folder(folder: Path) -> None:
    """Makes a folder to write to, before long work for it. UserError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise cannot_write(shown(str(folder)), error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cannot_write(folder, PermissionError("Permission denied"))


def _check_within(folder: Path, files: Mapping[str, Path]) -> None:
    """Raises UserError where a link leads out of the folder, or a file stands in a folder's place."""
    whole = folder.resolve()
    for parent in {file.parent for file in files.values()}:
        try:
            leads_to = parent.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a null character
            raise cannot_write(shown(str(parent)), error) from error
        if not leads_to.is_relative_to(whole):
            raise UserError(
                f"leads to {leads_to}, outside of {folder}",
                where=parent,
                do="remove the link, or give another output.folder",
            )
        nearest = next(above for above in (parent, *parent.parents) if exists(above))
        if not is_folder(nearest):
            raise UserError("is no folder", where=nearest, do="move it away, or give another output.folder")

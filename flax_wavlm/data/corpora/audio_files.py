"""Audio files that a corpus names: found whatever their Unicode form, and listed together where missing."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flax_wavlm.data.corpora.folders import one_line
from flax_wavlm.errors import UserError, shown, some
from flax_wavlm.files import exists, is_file

log = logging.getLogger(__name__)

# What libsndfile reads, and with the extra `av` the containers of phones and browsers.
_SUFFIXES = frozenset(
    (
        *(
            "wav",
            "wave",
            "flac",
            "ogg",
            "oga",
            "opus",
            "mp3",
            "aif",
            "aiff",
            "aifc",
            "au",
            "snd",
            "caf",
            "w64",
        ),
        *(
            "rf64",
            "sph",
            "nist",
            "m4a",
            "m4b",
            "mp4",
            "mov",
            "aac",
            "webm",
            "mka",
            "mkv",
            "wma",
            "amr",
            "3gp",
        ),
    )
)


def is_audio(name: str) -> bool:
    """Whether a file of this name is an audio file by its suffix. Hidden files (macOS's ._a.wav) are none."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in _SUFFIXES and "." in name


class _Missing(NamedTuple):
    where: str  # "file:line"
    name: str  # as the corpus writes it
    path: Path


class AudioFiles:
    """Looks for each audio file once, and remembers those that are not there.

    A name on the disk may be in another Unicode form than in the corpus: macOS decomposes accents. Such a
    file is found. A name that differs in letter case is not: the error says so.
    """

    def __init__(self, field: str, expected: str) -> None:
        self._field, self._expected = field, expected  # of errors
        self._found: dict[str, Path | None] = {}
        self._missing: list[_Missing] = []
        self._names: dict[Path, dict[str, list[str]]] = {}  # folder -> NFC form of a name -> names in it
        self._folders: dict[Path, Path | None] = {}
        self._other_forms = 0

    def find(self, where: str, name: str, path: Path) -> Path:
        """The file; `path` itself where there is none, which `check` reports.

        Raises UserError for a path that the system cannot look up (a null character, no permission).
        """
        key = str(path)
        if key not in self._found:
            self._found[key] = self._look(where, path)
            if self._found[key] is None:
                self._missing.append(_Missing(where, name, path))
        return self._found[key] or path

    def check(self) -> None:
        """Raises UserError with the files that were not there; says what was found in another form."""
        if self._other_forms:
            log.info(
                "%d audio files were found under another Unicode form of their names (accents composed or "
                "decomposed)",
                self._other_forms,
            )
        if not self._missing:
            return
        first = self._missing[0]
        do = self._differs_in_case(first.path) or "correct the line"
        expected = f"{self._expected}, and there is no file {one_line(str(first.path))}"
        if len(self._missing) == 1:
            raise UserError(where=first.where, field=self._field, found=first.name, expected=expected, do=do)
        raise UserError(
            f"{len(self._missing):,} of {len(self._found):,} audio files are not there: "
            f"{some([shown(missing.name) for missing in self._missing])}",
            where=first.where,
            field=self._field,
            expected=expected,
            do=do.replace("correct the line", "check where the audio is, and the names"),
        )

    def _look(self, where: str, path: Path) -> Path | None:
        try:
            if is_file(path):
                return path
            other = self._in_another_form(path)
            if other is None or not is_file(other):
                return None
        except UserError as error:
            raise UserError(
                f"{self._field} cannot be used: {error}", where=where, field=self._field
            ) from error
        self._other_forms += 1
        return other

    def _in_another_form(self, path: Path) -> Path | None:
        """The one entry of the folder whose name has the same NFC form; None where none has, or several."""
        if path.name in ("", "..") or (folder := self._folder(path.parent)) is None:
            return None
        names = self._by(_composed, folder).get(_composed(path.name), [])
        return folder / names[0] if len(names) == 1 else None

    def _folder(self, path: Path) -> Path | None:
        if path not in self._folders:
            self._folders[path] = path if exists(path) else self._in_another_form(path)
        return self._folders[path]

    def _by(self, form: Callable[[str], str], folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                for name in os.listdir(folder):
                    names.setdefault(form(name), []).append(name)
            except OSError:  # no folder, or not to be listed: then nothing is found in it
                pass
            self._names[folder] = names
        return self._names[folder]

    def _differs_in_case(self, path: Path) -> str:
        """What to do where the folder has this name in other letters' case."""
        folder = self._folder(path.parent)
        listed = self._by(_composed, folder) if folder else {}
        near = [
            name for names in listed.values() for name in names if name.casefold() == path.name.casefold()
        ]
        return (
            f"the folder has {shown(near[0])}: letters must be the same in upper and lower case"
            if near
            else ""
        )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)

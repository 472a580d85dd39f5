"""The recordings that somebody names on a command line: files, folders of them, and standard input."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from flax_wavlm.data.corpora.audio_files import is_audio
from flax_wavlm.data.corpora.folders import listing
from flax_wavlm.errors import UserError, cannot_read
from flax_wavlm.files import is_folder

STDIN = "-"  # stands for standard input


def named_recordings(names: Iterable[str]) -> list[str]:
    """The names, with the audio files below a folder in its place, sorted. Each recording is there once.

    Audio files are known by their suffix in a folder alone; what is named itself is taken as it is. Links to
    folders are not followed, as they may lead back.

    Raises UserError where a folder cannot be read, or holds no audio file.
    """
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys(_below(name) if name != STDIN and is_folder(Path(name)) else [name]))
    return list(found)


def _below(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise cannot_read(error.filename, error, expected="a folder of recordings")

    files = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.join(place, name) for name in sorted(names) if is_audio(name)]
    if not files:
        raise UserError(
            "holds no audio file",
            where=folder,
            found=listing(Path(folder)),
            expected="recordings, known by their suffix (.wav, .flac, .mp3 and so on)",
            do="name the files themselves",
        )
    return files

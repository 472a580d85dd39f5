"""LibriSpeech (OpenSLR 12), and its kin: LibriTTS (OpenSLR 60) and Multilingual LibriSpeech (OpenSLR 94)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flax_wavlm.data.corpora.audio_files import is_audio
from flax_wavlm.data.corpora.folders import folders, keyed_lines, one_line, read_utf8
from flax_wavlm.data.corpora.utterance import (
    Skipped,
    Utterance,
    by_id,
    empty_split,
    in_usual_order,
    is_usual_split,
    no_split,
)
from flax_wavlm.errors import UserError
from flax_wavlm.files import folder_entries, is_file, is_folder
from flax_wavlm.progress import tracked

_EXPECTED = "a folder such as train-clean-100, with SPEAKER/CHAPTER/*.trans.txt in it"


def read_librispeech(path: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """A split of LibriSpeech: `<split>/SPEAKER/CHAPTER/`, which holds audio files and `*.trans.txt`.

    Each line of a `.trans.txt` is "ID TEXT". LibriTTS has `ID.normalized.txt` beside each audio file instead,
    and Multilingual LibriSpeech `<split>/transcripts.txt` ("ID<TAB>TEXT") and `<split>/audio/SPEAKER/BOOK/`.
    `path` holds the splits, or one folder with them. An id is the corpus's own, "103-1240-0000"; the speaker
    is the folder's name. An audio file without text, and a text without audio file, is skipped.

    Raises NoSplit, and UserError for a line without text, or an id that is there twice.
    """
    root = _root(Path(path))
    if split not in _splits(root):
        raise no_split(root, split, in_usual_order(_splits(root)), _EXPECTED)
    folder = root / split
    audio, texts = _audio_and_texts(folder)
    utterances, skipped = [], []
    for id, (file, speaker) in audio.items():
        text = texts.pop(id, "")
        if text:
            utterances.append(Utterance(id, file, text, speaker))
        else:
            skipped.append(Skipped(id, f"no text for {one_line(str(file))}"))
    skipped += [Skipped(id, "no audio file of that name") for id in texts]
    if not utterances:
        raise empty_split(str(folder), "SPEAKER/CHAPTER/ID.flac and *.trans.txt", skipped)
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def splits_of_librispeech(path: str | Path) -> list[str]:
    """The splits that are there: train-clean-100, dev-clean, test-other, ..."""
    return in_usual_order(_splits(_root(Path(path))))


def _root(path: Path) -> Path:
    """The folder that holds the splits: `path`, or the one folder in it that does."""
    if _splits(path):
        return path
    below = [folder for folder in folders(path) if _splits(folder)]
    return below[0] if len(below) == 1 else path


def _splits(root: Path) -> list[str]:
    return [folder.name for folder in folders(root) if is_usual_split(folder.name)]


def _audio_and_texts(folder: Path) -> tuple[dict[str, tuple[Path, str]], dict[str, str]]:
    """Audio file and speaker by id, and text by id."""
    audio: dict[str, tuple[Path, str]] = {}
    texts: dict[str, str] = {}
    if is_file(table := folder / "transcripts.txt"):
        texts |= {id: text for id, (_, text) in keyed_lines(table).items()}
    root = folder / "audio" if is_folder(folder / "audio") else folder
    for speaker, file in _files(root):
        name = file.name
        if name.endswith(".trans.txt"):
            for id, (where, text) in keyed_lines(file).items():
                if id in texts:
                    raise UserError(f"{id!r} has a second text", where=where, expected="one", do="remove one")
                texts[id] = text
        elif name.endswith(".normalized.txt"):
            texts[name.removesuffix(".normalized.txt")] = " ".join(read_utf8(file).split())
        elif is_audio(name):
            if file.stem in audio:
                raise UserError(
                    f"a second audio file of one id, {audio[file.stem][0]}",
                    where=file,
                    expected="one",
                    do="remove one",
                )
            audio[file.stem] = (file, speaker)
    return audio, texts


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Each file two folders down, with the name of the upper one, the speaker."""
    speakers = folders(root)
    for speaker in tracked(speakers, "reading speakers", len(speakers)):
        for chapter in folders(speaker):
            for file in folder_entries(chapter):
                yield speaker.name, file

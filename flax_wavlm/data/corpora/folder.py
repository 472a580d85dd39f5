"""A folder of audio files with their texts beside them, `a.wav` and `a.txt` or `a.lab`."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from flax_wavlm.data.corpora.audio_files import is_audio
from flax_wavlm.data.corpora.folders import folders, one_line, read_utf8
from flax_wavlm.data.corpora.utterance import (
    Skipped,
    Utterance,
    by_id,
    empty_split,
    in_usual_order,
    is_usual_split,
    no_split,
    own_split,
)
from flax_wavlm.errors import UserError, cannot_read, some
from flax_wavlm.files import folder_entries
from flax_wavlm.progress import tracked

log = logging.getLogger(__name__)

_EXPECTED = "a folder of audio files with a .txt or .lab file beside each"
_TEXT_SUFFIXES = (".txt", ".lab")
_TIMES = re.compile(r"\s*(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s+\S.*")  # a line of labels: begin, end, label
_DECIMALS = re.compile(r"\s*\d+\.\d+\s+\d+\.\d+\s|\s*[\d.]+\t[\d.]+\t")  # as in Audacity's
_OTHER_FORMATS = (  # what people keep beside audio under the names of texts
    (re.compile(r"WEBVTT\b|.*\d\d:\d\d[.,]\d{3}\s*-->", re.DOTALL), "subtitles"),
    (re.compile(r"File type\s*=\s*\"ooTextFile", re.IGNORECASE), "a TextGrid"),
    (re.compile(r"<(?:\?xml|!doctype|html|trans)\b", re.IGNORECASE), "XML or HTML"),
    (re.compile(r"\{\\rtf"), "RTF"),
    (re.compile(r"[\[{]\s*[\"\[{]"), "JSON"),
)


def read_folder(path: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """Audio files in a folder and the folders in it, each with a text file of its name beside it.

    Folders in `path` that are named after splits (train, dev, test-clean, ...) are its splits. Without any,
    all of `path` is one split, "train" (or of `path`'s own name, where that is a split's). An id is the path
    from `path` on, without suffix. The speaker is the first folder below the split, where there are several
    and every clip lies in one of them. Links are followed.

    Skipped are an audio file without text, with two text files, or beside another of its name; a text without
    audio; and a text file that holds times (labels of HTK, Audacity or TIMIT), subtitles, a TextGrid, JSON,
    XML or RTF. Hidden files are passed over. Audio beside the folders of splits is named in the log.

    Raises NoSplit, and UserError where a folder cannot be listed or no clip is left.
    """
    root = Path(path)
    there = _split_folders(root)
    if split not in there:
        raise no_split(root, split, in_usual_order(there), _EXPECTED)
    if root not in there.values() and (outside := [f.name for f in folder_entries(root) if _is_audio(f)]):
        log.warning("%s: %d audio files lie in no split's folder: %s", root, len(outside), some(outside))
    utterances, skipped = [], []
    names = _files_by_stem(there[split])
    speakers = _speakers(there[split], [stem for stem, files in names.items() if any(map(_is_audio, files))])
    for stem, files in tracked(names.items(), "reading texts", len(names)):
        id = stem.relative_to(root).as_posix()
        audio = [file for file in files if _is_audio(file)]
        texts = [file for file in files if not _is_audio(file)]
        try:
            text = _text(audio, texts)
        except UserError as error:
            skipped.append(Skipped(id, str(error)))
            continue
        utterances.append(Utterance(id, audio[0], text, speakers.get(stem, "")))
    if not utterances:
        raise empty_split(str(there[split]), _EXPECTED, skipped)
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def splits_of_folder(path: str | Path) -> list[str]:
    """The splits that are there: the folders named after splits, or else one."""
    return in_usual_order(_split_folders(Path(path)))


def _split_folders(root: Path) -> dict[str, Path]:
    there = {folder.name: folder for folder in folders(root) if is_usual_split(folder.name)}
    return there or {own_split(root): root}


def _is_audio(file: Path) -> bool:
    return is_audio(file.name)


def _files_by_stem(folder: Path) -> dict[Path, list[Path]]:
    """Audio and text files by their path without suffix."""
    names: dict[Path, list[Path]] = defaultdict(list)
    for file in _walk(folder):
        if is_audio(file.name) or file.suffix.lower() in _TEXT_SUFFIXES:
            names[file.with_suffix("")].append(file)
    return names


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, sorted, without hidden ones. Links are followed, each folder once."""

    def refuse(error: OSError) -> None:
        raise cannot_read(error.filename or folder, error, expected="a folder") from error

    seen: set[str] = set()
    for place, below, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _speakers(folder: Path, stems: list[Path]) -> dict[Path, str]:
    """The first folder below the split of each clip; nothing where that tells no speakers apart."""
    first = {stem: stem.relative_to(folder).parts[:-1] for stem in stems}
    if not all(first.values()) or len({parts[0] for parts in first.values()}) < 2:
        return {}
    return {stem: parts[0] for stem, parts in first.items()}


def _text(audio: list[Path], texts: list[Path]) -> str:
    """The text of a clip. UserError where it is not clear: the kind of reason, a colon, and the file."""
    names = [one_line(file.name) for file in (*audio, *texts)]
    if not audio:
        raise UserError(f"no audio file beside the text: {names[0]}")
    if len(audio) > 1:
        raise UserError(f"several audio files of one name: {some(names[: len(audio)])}")
    if not texts:
        raise UserError(f"no .txt or .lab file beside the audio: {names[0]}")
    if len(texts) > 1:
        raise UserError(f"several text files of one name: {some(names[1:])}")
    text = read_utf8(texts[0])
    if _holds_times(text):
        raise UserError(f"the text file holds times, not a text alone: {names[1]}, {text.strip()[:40]!r}")
    for pattern, what in _OTHER_FORMATS:
        if pattern.match(text.lstrip()):
            raise UserError(
                f"the text file holds {what}, not a text alone: {names[1]}, {text.strip()[:40]!r}"
            )
    if not text.strip():
        raise UserError(f"the text file is empty: {names[1]}")
    return " ".join(text.split())


def _holds_times(text: str) -> bool:
    """Whether every line is "begin end label", below a header that ends with "#" where there is one.

    A single line must begin at 0, or be as Audacity writes it, as a text may hold numbers.
    """
    written = [line for line in text.splitlines() if line.strip()]
    if "#" in (stripped := [line.strip() for line in written]):
        written = written[stripped.index("#") + 1 :]
    lines = [_TIMES.fullmatch(line) for line in written]
    times = [(float(line[1]), float(line[2])) for line in lines if line]
    if not times or len(times) < len(lines) or any(begin > end for begin, end in times):
        return False
    return len(times) > 1 or (times[0][0] == 0 and times[0][1] > 0) or bool(_DECIMALS.match(written[0]))

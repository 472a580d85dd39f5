"""The language model in a model's folder, in the layout of pyctcdecode and transformers:

    alphabet.json                  {"labels": ["a", ..., " ", ""], "is_bpe": false}
    language_model/lm.arpa         or lm.arpa.gz, by any name
    language_model/attrs.json      {"alpha": 0.5, "beta": 1.5,
                                    "unk_score_offset": -10.0, "score_boundary": true}
    language_model/unigrams.txt    its words, a line each; not read here, as the ARPA file has them

In an alphabet, "" is the CTC blank, " " the delimiter of words, and U+2047 the unknown token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError, cannot_write, shown, some
from flax_wavlm.files import exists, folder_entries, is_folder, read_json_object, replaced, write_atomically
from flax_wavlm.recognition.beam_search.settings import BeamSettings

ALPHABET_FILE, LM_FOLDER = "alphabet.json", "language_model"
LM_FILE, ATTRIBUTES_FILE, WORDS_FILE = "lm.arpa", "attrs.json", "unigrams.txt"
ARPA = (".arpa", ".arpa.gz")
BINARY = (".bin", ".binary")  # KenLM's own format

# pyctcdecode's name of a setting, and ours.
ATTRIBUTES = {
    "alpha": "alpha",
    "beta": "beta",
    "unk_score_offset": "unknown_offset",
    "score_boundary": "boundaries",
}
DEFAULTS = BeamSettings()

_GZIP = b"\x1f\x8b"
_BLANK, _DELIMITER, _UNKNOWN = "", " ", "\u2047"
_SPECIAL = re.compile(r"[<\[].+[>\]]")
_UNKNOWN_TOKEN = re.compile(r"[<\[]unk[>\]]", re.IGNORECASE)


class FolderLM(NamedTuple):
    """A language model in a folder."""

    file: Path  # ARPA
    settings: BeamSettings  # with the values that attrs.json has


def folder_lm(folder: Path, tokenizer: CTCTokenizer) -> FolderLM | None:
    """The language model of a model's folder; None where it has none.

    Raises:
        UserError: there are several, or one in KenLM's binary format alone; attrs.json is damaged;
            alphabet.json is of another vocabulary than the tokenizer's.
    """
    place = folder / LM_FOLDER
    if not exists(place) or not is_folder(place):
        return None
    file = _arpa_in(place)
    if file is None:
        return None
    check_alphabet(folder, tokenizer)
    return FolderLM(file, _settings(place / ATTRIBUTES_FILE))


def _arpa_in(place: Path) -> Path | None:
    entries = [entry for entry in folder_entries(place) if not entry.name.startswith(".")]
    files = [entry for entry in entries if entry.name.lower().endswith(ARPA)]
    if len(files) > 1:
        raise UserError(
            f"holds {len(files)} ARPA files, {some([file.name for file in files])}",
            where=place,
            expected="one",
            do="move the others away",
        )
    if files:
        return files[0]
    # Of a repository of the hub, a binary file is not even downloaded, but the others are.
    named = [entry for entry in entries if entry.name.lower().endswith(BINARY)]
    if named or any(entry.name == ATTRIBUTES_FILE for entry in entries):
        found = f"{named[0].name}, KenLM's binary format, which cannot be read" if named else "no ARPA file"
        raise UserError(
            f"holds {found}",
            where=place,
            expected="a language model in ARPA form",
            do="put the ARPA file there that it was made from, or decode without it (decoding.lm=none)",
        )
    return None


def _settings(file: Path) -> BeamSettings:
    """What attrs.json says, where there is one."""
    if not exists(file):
        return DEFAULTS
    found = read_json_object(file, "a language model's weights")
    changes: dict[str, Any] = {}
    for name, ours in ATTRIBUTES.items():
        value = found.get(name, getattr(DEFAULTS, ours))
        if ours == "boundaries":
            wrong, expected = type(value) is not bool, "true or false"
        elif ours == "alpha" and _is_number(value):
            wrong, expected = value < 0, "0 or more"
        else:
            wrong, expected = not _is_number(value), "a number"
        if wrong:
            raise UserError(where=file, field=name, found=value, expected=expected, do="restore the file")
        changes[ours] = value if ours == "boundaries" else float(value)
    return dataclasses.replace(DEFAULTS, **changes)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


# --- The alphabet -------------------------------------------------------------------------------------------


def alphabet(tokenizer: CTCTokenizer) -> list[str]:
    """The labels of a tokenizer as pyctcdecode writes them, by their ids."""
    labels = [tokenizer.token(id) for id in range(tokenizer.size)]
    labels = [_UNKNOWN if _UNKNOWN_TOKEN.fullmatch(label) else label for label in labels]
    labels[tokenizer.blank_id] = _BLANK
    if tokenizer.delimiter_id is not None:
        labels[tokenizer.delimiter_id] = _DELIMITER
    return labels


def check_alphabet(folder: Path, tokenizer: CTCTokenizer) -> None:
    """UserError where the folder has an alphabet.json, and it is not the tokenizer's vocabulary.

    The case of letters may be another one, as people make alphabets in lower case. Special tokens do not
    count.
    """
    file = folder / ALPHABET_FILE
    if not exists(file):
        return
    labels = read_json_object(file, "a decoder's alphabet").get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(
            where=file, field="labels", found=labels, expected="a list of labels", do="restore the file"
        )
    own = alphabet(tokenizer)
    length = max(len(own), len(labels))
    pairs = zip(_padded(own, length), _padded(labels, length), strict=True)
    if differ := [
        f"{id}: {shown(found)} in place of {shown(label)}"
        for id, (label, found) in enumerate(pairs)
        if _plain(label) != _plain(found)
    ]:
        raise UserError(
            f"{len(differ)} of {length} labels are not the tokenizer's: {some(differ)}",
            where=file,
            expected="the vocabulary of vocab.json, by its ids",
            do=f"remove the file where {LM_FOLDER} is this model's, or both where it is another's",
        )


def _padded(labels: list[str], length: int) -> list[str | None]:
    return [*labels, *[None] * (length - len(labels))]


def _plain(label: str | None) -> str | None:
    """A label for a comparison; None for a special token, and where there is no label."""
    if label is None or label == _UNKNOWN or (len(label) > 1 and _SPECIAL.fullmatch(label)):
        return None
    return {"|": _DELIMITER}.get(label, label.casefold())


# --- Writing ------------------------------------------------------------------------------------------------


def check_writable(folder: Path) -> None:
    """UserError where it is no folder, or nothing can be written there: before an hour's work, say."""
    if not is_folder(folder):
        raise UserError(
            field="model",
            found=str(folder),
            expected="the folder of a fine-tuned model: the language model is written into it",
            do="a model of the hub is downloaded first, with `convert.py HUB_ID FOLDER`",
        )
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise cannot_write(folder, error) from None


def write_lm(
    folder: Path, arpa: Path, words: Iterable[str], settings: BeamSettings, tokenizer: CTCTokenizer
) -> Path:
    """Writes a language model into a model's folder, in place of the one there; returns the ARPA file.

    Args:
        arpa: the file, which was read before. Where it is compressed, it is unpacked: pyctcdecode reads no
            other form.
        words: its vocabulary, without `<s>`, `</s>` and `<unk>`.
        settings: with its weights.
    Raises:
        UserError: it cannot be written.
    """
    place = folder / LM_FOLDER
    attributes = {name: getattr(settings, ours) for name, ours in ATTRIBUTES.items()}
    labels = {"labels": alphabet(tokenizer), "is_bpe": False}
    try:
        place.mkdir(exist_ok=True)
        with replaced(place / LM_FILE) as scratch, _unpacked(arpa) as source, scratch.open("wb") as target:
            shutil.copyfileobj(source, target)
        write_atomically(place / WORDS_FILE, "".join(f"{word}\n" for word in sorted(words)))
        write_atomically(place / ATTRIBUTES_FILE, json.dumps(attributes))
        write_atomically(folder / ALPHABET_FILE, json.dumps(labels, ensure_ascii=False))
        for entry in folder_entries(place):
            if entry.name != LM_FILE and entry.name.lower().endswith((*ARPA, *BINARY)):
                entry.unlink()
    except (OSError, EOFError) as error:
        raise cannot_write(place, error) from None
    return place / LM_FILE


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """The content of a file, or of what gzip has packed in it."""
    with file.open("rb") as source:
        packed = source.read(len(_GZIP)) == _GZIP
        source.seek(0)
        if not packed:
            yield source
            return
        with gzip.open(source) as unpacked:
            yield unpacked

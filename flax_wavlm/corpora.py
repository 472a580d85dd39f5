"""Corpora to utterances: TIMIT, its NLTK sample, manifests, Hugging Face datasets.

A reader finds clips and their text and decodes no audio. It returns `(utterances, skipped)`, both sorted by
id: what can be used, and what cannot with the reason. It raises UserError where a split is missing or empty.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, is_file, is_folder, one_line, parse_json

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Utterance:
    """One clip: where its audio is, and its text as the corpus writes it.

    `audio` is a file, or a function that gives a file's bytes. `duration` is in seconds, None where the
    corpus does not state it.
    """

    id: str
    audio: Path | Callable[[], bytes]
    text: str
    speaker: str = ""
    duration: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A clip that the corpus holds and training cannot use."""

    id: str
    reason: str


# Each corpus, and what its reader expects in data.path.
_EXPECTED_PATH = {
    "timit": (
        "Expected the TIMIT corpus, LDC93S1 (https://catalog.ldc.upenn.edu/LDC93S1): point to the folder "
        "that holds TRAIN and TEST with --config.data.path=/path/to/TIMIT or the environment variable "
        "TIMIT_DIR. Without TIMIT, run configs/demo.py (synthetic speech) or configs/timit_sample.py (NLTK's "
        "free sample of 160 clips: `python -m nltk.downloader timit`)."
    ),
    "timit_sample": (
        "Expected NLTK's TIMIT sample: get it with `python -m nltk.downloader timit`, unzip it, and point to "
        "it with --config.data.path=/path/to/nltk_data/corpora/timit or the environment variable "
        "TIMIT_SAMPLE_DIR. Without it, run configs/demo.py (synthetic speech)."
    ),
    "manifest": (
        "Expected a folder with train.jsonl and test.jsonl (or .csv): set it with --config.data.path=FOLDER."
    ),
    "hub": ("Expected a Hugging Face dataset's hub id or folder: set it with --config.data.path=OWNER/NAME."),
    "synthetic": "Expected the synthetic corpus: run configs/demo.py, which makes it.",
}
CORPORA = tuple(_EXPECTED_PATH)
_PATH_VARIABLE = {"timit": "TIMIT_DIR", "timit_sample": "TIMIT_SAMPLE_DIR"}

_SPLITS = ("train", "test")
# Of two copies of one clip the first is read: the LDC's own SPHERE file before a RIFF copy made from it.
_AUDIO_SUFFIXES = ("wav", "wav.wav")
_SAMPLE_SPEAKER = re.compile(r"(dr[1-8])-([fm][a-z]{3}\d)", re.IGNORECASE)


def load_corpus(
    corpus: str,
    path: str | Path,
    split: str,
    *,
    held_out_speakers: Sequence[str] = (),
    audio_column: str = "audio",
    text_column: str = "text",
    hub_config: str | None = None,
) -> tuple[list[Utterance], list[Skipped]]:
    """Reads one split, "train" or "test", of one of CORPORA.

    `path` is a folder, or for "hub" a dataset's hub id or folder. Where it is empty, "timit" and
    "timit_sample" look up the environment variables TIMIT_DIR and TIMIT_SAMPLE_DIR. `held_out_speakers` is
    for "timit_sample", which has no split of its own; the columns and `hub_config` are for "hub".

    Raises UserError for an unknown corpus, for a path that is no folder, and as the corpus's reader does.
    """
    if corpus not in CORPORA:
        near = difflib.get_close_matches(corpus, CORPORA, n=1)
        raise UserError(
            f"data.corpus is {corpus!r}, expected one of {', '.join(CORPORA)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    path = str(path)
    if not path and corpus in _PATH_VARIABLE:
        path = os.environ.get(_PATH_VARIABLE[corpus], "")
    if not path:
        raise UserError(f"data.path is empty. {_EXPECTED_PATH[corpus]}")
    if corpus == "hub":
        return read_hub(path, split, audio_column=audio_column, text_column=text_column, config=hub_config)
    if not is_folder(Path(path)):
        raise UserError(f"data.path is {path!r}, which is not a folder here. {_EXPECTED_PATH[corpus]}")
    if corpus == "manifest":
        return read_manifest(path, split)
    if corpus == "timit_sample":
        return read_timit_sample(path, split, held_out_speakers)
    return read_timit(path, split)  # the synthetic corpus is written in TIMIT's layout


def read_timit(root: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """TIMIT (LDC93S1) as the LDC ships it and as it is commonly copied.

    Names in upper or lower case; clips as NIST SPHERE (.WAV), RIFF copies (.WAV.wav) or both, of which the
    SPHERE file is read; `root` holding TRAIN and TEST, or up to three folders above them that are named after
    TIMIT, LDC93S1 or `data`. An id is the clip's path in lower case from the split on, "train/dr1/fcjf0/sa1",
    whatever the layout. The text is the .TXT line without its begin and end samples. SA1 and SA2 are kept.

    Raises UserError where the split is missing or empty, or where two copies of one file differ only in case.
    """
    root = Path(root)
    _check_split(split)
    split_folders = _find_split(root, split)
    if not split_folders:
        if any(_SAMPLE_SPEAKER.fullmatch(entry.name) for entry in _entries(root)):
            raise UserError(
                f"{root} holds speakers named drN-<speaker>: it looks like NLTK's TIMIT sample, expected the "
                "whole corpus. Use --config.data.corpus=timit_sample (configs/timit_sample.py), or point to "
                "TIMIT."
            )
        raise UserError(
            f"{root}: no {split.upper()} folder in it, nor under a TIMIT or data folder in it. Found "
            f"{_listing(root)}. Expected TIMIT's layout, {split.upper()}/DR1/FCJF0/SA1.WAV: point to the "
            "folder that holds TRAIN and TEST."
        )
    files = (
        (f"{split}/{region.name}/{speaker.name}".lower(), speaker.name.lower(), file)
        for folder in split_folders
        for region in _folders(folder)
        for speaker in _folders(region)
        for file in _entries(speaker)
    )
    utterances, skipped = _pair_timit_files(files)
    if not utterances:
        raise _empty_split(", ".join(map(str, split_folders)), f"{split.upper()}/DR1/FCJF0/SA1.WAV", skipped)
    return utterances, skipped


def read_timit_sample(
    root: str | Path, split: str, held_out_speakers: Sequence[str]
) -> tuple[list[Utterance], list[Skipped]]:
    """NLTK's sample of TIMIT: `drN-<speaker>/<sentence>.{wav,txt}`, 16 speakers with 10 clips each.

    The sample has no split: test is every clip of the held-out speakers ("dr1-mcpm0" or "mcpm0"), train every
    other clip. An id is "dr1-mcpm0/sa1". Raises UserError for an unknown speaker or an empty split.
    """
    root = Path(root)
    _check_split(split)
    folders = [folder for folder in _folders(root) if _SAMPLE_SPEAKER.fullmatch(folder.name)]
    if not folders:
        hint = (
            "It looks like the whole TIMIT: use --config.data.corpus=timit (configs/timit.py)."
            if _find_split(root, split)
            else "Point to the sample's own folder, nltk_data/corpora/timit."
        )
        raise UserError(
            f"{root}: no speaker folder such as dr1-mcpm0, expected NLTK's TIMIT sample. Found "
            f"{_listing(root)}. {hint}"
        )
    names = {_sample_speaker(folder.name): folder.name.lower() for folder in folders}
    held_out = {_sample_speaker(name) for name in held_out_speakers}
    if unknown := sorted(held_out - names.keys()):
        raise UserError(
            f"Held-out speakers that {root} does not have: {', '.join(unknown)}. Expected some of "
            f"{', '.join(sorted(names.values()))}: correct data.held_out_speakers."
        )
    wanted = held_out if split == "test" else names.keys() - held_out
    if not wanted:
        raise UserError(
            f"data.held_out_speakers leaves no speaker for {split!r}: it names {len(held_out)} of "
            f"{len(names)}. Expected some but not all of {', '.join(sorted(names.values()))}."
        )
    files = (
        (folder.name.lower(), _sample_speaker(folder.name), file)
        for folder in folders
        if _sample_speaker(folder.name) in wanted
        for file in _entries(folder)
    )
    utterances, skipped = _pair_timit_files(files)
    if not utterances:
        raise _empty_split(str(root), "dr1-mcpm0/sa1.wav", skipped)
    return utterances, skipped


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
            + ("Remove the one that is out of date." if manifests else f"Found {_listing(Path(folder))}.")
        )
    manifest = manifests[0]
    text = _read_utf8(manifest)
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
        raise _empty_split(str(manifest), "one clip a line with audio_filepath and text", skipped)
    return sorted(utterances, key=_by_id), sorted(skipped, key=_by_id)


def read_hub(
    name: str,
    split: str,
    *,
    audio_column: str = "audio",
    text_column: str = "text",
    config: str | None = None,
) -> tuple[list[Utterance], list[Skipped]]:
    """A Hugging Face dataset: hub id, folder of parquet files, or a DatasetDict saved to disk.

    Audio stays undecoded: each utterance's `audio` gives the bytes of its file when called. An id is the
    split and the row, "train/000017". Rows without text are skipped. (Datasets that are plain audio files,
    "audiofolder", load only where torchcodec is installed: datasets 5 asks for it even to note a path.)

    Raises UserError where `datasets` cannot load it, or a column is missing or of another kind.
    """
    import datasets

    try:
        if (Path(name) / "dataset_dict.json").exists():
            dataset = datasets.load_from_disk(name)[split]
        else:
            dataset = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub, the network, the cache and each format have their own exceptions
        cause: BaseException = error
        while cause.__cause__:  # "An error occurred while generating the dataset" says nothing
            cause = cause.__cause__
        raise UserError(
            f"Hugging Face dataset {name!r}, config {config!r}, split {split!r}: datasets cannot load it "
            f"({type(cause).__name__}: {one_line(cause)}). Check data.path, the split's name and the "
            "network. Folders of audio files need torchcodec here: write a manifest, and set "
            "--config.data.corpus=manifest."
        ) from error
    for column in (audio_column, text_column):
        if column not in dataset.column_names:
            raise UserError(
                f"Hugging Face dataset {name!r}: no column {column!r}, found "
                f"{', '.join(dataset.column_names)}. Name it with data.audio_column or data.text_column."
            )
    kind = dataset.features[text_column]
    if kind not in (datasets.Value("string"), datasets.Value("large_string")):
        raise UserError(
            f"Hugging Face dataset {name!r}: column {text_column!r} is {kind}, expected text. Name the right "
            "one with data.text_column."
        )
    try:
        # decode=False: decoding in datasets 4 and later needs torchcodec and ffmpeg.
        audio = dataset.select_columns([audio_column]).cast_column(audio_column, datasets.Audio(decode=False))
    except Exception as error:  # pyarrow's and datasets' own
        raise UserError(
            f"Hugging Face dataset {name!r}: column {audio_column!r} is {dataset.features[audio_column]}, "
            "expected audio files. Name the right one with data.audio_column."
        ) from error

    utterances, skipped = [], []
    for row, text in enumerate(dataset[text_column][:]):
        id = f"{split}/{row:06d}"
        if text and text.strip():
            utterances.append(Utterance(id, partial(_hub_audio, audio, row, audio_column, id), text))
        else:
            skipped.append(Skipped(id, "no text"))
    if not utterances:
        raise _empty_split(f"Hugging Face dataset {name!r}", f"rows in split {split!r}", skipped)
    return utterances, skipped


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise UserError(f"Split {split!r} is not one that TIMIT has. Expected 'train' or 'test'.")


def _by_id(clip: Utterance | Skipped) -> str:
    return clip.id


def _entries(folder: Path) -> list[Path]:
    # Not Path.glob: it passes over a folder that it may not read, and the clips would be missing in silence.
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot list it ({error.strerror}). Expected a folder of the corpus: check the path "
            "and its permissions."
        ) from error


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if is_folder(entry)]


def _listing(folder: Path) -> str:
    names = [entry.name for entry in _entries(folder)]
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "nothing"


def _empty_split(where: str, expected: str, skipped: list[Skipped]) -> UserError:
    found = f"{len(skipped)} unusable ({skipped[0].id}: {skipped[0].reason})" if skipped else "none"
    return UserError(f"{where}: no usable clip, {found}. Expected {expected}: check the path and its files.")


def _find_split(root: Path, split: str) -> list[Path]:
    """The folders named `split` nearest to the root; more than one where upper and lower case coexist."""
    level = [root]
    for _ in range(4):
        below = [folder for parent in level for folder in _folders(parent)]
        if found := [folder for folder in below if folder.name.lower() == split]:
            return found
        level = [folder for folder in below if re.search(r"timit|ldc93s1|^data$", folder.name.lower())]
    return []


def _sample_speaker(name: str) -> str:
    """ "dr1-mcpm0" and "MCPM0" to "mcpm0"."""
    return name.lower().rpartition("-")[2]


def _pair_timit_files(files: Iterable[tuple[str, str, Path]]) -> tuple[list[Utterance], list[Skipped]]:
    """Puts audio and .TXT together from (id of the folder, speaker, file); other files are passed over."""
    clips: dict[tuple[str, str], dict[str, Path]] = {}  # (id, speaker) -> suffix -> file
    for folder_id, speaker, file in files:
        stem, _, suffix = file.name.lower().partition(".")
        if suffix not in (*_AUDIO_SUFFIXES, "txt"):  # also macOS's ._SA1.WAV, whose suffix is _sa1.wav
            continue
        copies = clips.setdefault((f"{folder_id}/{stem}", speaker), {})
        if suffix in copies:
            raise UserError(
                f"Two copies of one TIMIT file: {copies[suffix]} and {file}. Expected one: remove either the "
                "upper-case or the lower-case copy."
            )
        copies[suffix] = file

    utterances, skipped = [], []
    for (id, speaker), copies in sorted(clips.items()):
        audio = next((copies[suffix] for suffix in _AUDIO_SUFFIXES if suffix in copies), None)
        if audio is None:
            skipped.append(Skipped(id, f"no audio file beside {copies['txt']}"))
        elif "txt" not in copies:
            skipped.append(Skipped(id, f"no .TXT file beside {audio}"))
        else:
            try:
                utterances.append(Utterance(id, audio, _timit_sentence(copies["txt"]), speaker))
            except UserError as error:
                skipped.append(Skipped(id, str(error)))
    return utterances, skipped


def _timit_sentence(file: Path) -> str:
    """The sentence of "0 46797 She had your dark suit.", begin and end in samples."""
    text = _read_utf8(file)
    fields = text.split(maxsplit=2)
    if len(fields) < 3 or not (fields[0].isdigit() and fields[1].isdigit()):
        raise UserError(
            f"{file}: holds {text[:60]!r}, expected a line 'begin end sentence'. Restore the file."
        )
    return fields[2].strip()


def _read_utf8(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot read it ({error.strerror}). Expected a text file: check its permissions."
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A byte order mark is not part of the offset.
        start = error.start + 3 * data.startswith(b"\xef\xbb\xbf")
        line = data.count(b"\n", 0, start) + 1
        raise UserError(
            f"{file}:{line}: byte 0x{data[start]:02x} is not UTF-8. Expected UTF-8 text: convert the file, "
            "for example with `iconv -f latin1 -t utf-8`."
        ) from error


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


def _hub_audio(dataset: Dataset, row: int, column: str, id: str) -> bytes:
    """Bytes of the audio file in one row; a row holds them, or a path to them."""
    audio = dataset[row][column]
    if audio and audio["bytes"]:
        return audio["bytes"]
    path = audio["path"] if audio else None
    try:
        return Path(path or "").read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Hugging Face dataset row {id}: no audio in it and no file {path!r} ({reason}). "
            "Expected either: load the dataset again, or remove the row."
        ) from error

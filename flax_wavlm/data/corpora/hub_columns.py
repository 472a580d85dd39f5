"""The columns of a Hugging Face data set: audio by its kind, text and speaker by their usual names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax_wavlm.data.corpora.utterance import Samples
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, reason, shown, some

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

Get = Callable[[], bytes | Samples]

TEXT_COLUMNS = (
    *("text", "sentence", "transcription", "transcript", "transcripts", "normalized_text", "normalised_text"),
    *("label_text", "raw_text", "raw_transcription", "orthographic_transcription", "transcription_text"),
)
# Columns of paths, of bytes or of numbers are audio only under one of these names.
_AUDIO_COLUMNS = (
    *("audio", "speech", "wav", "waveform", "samples", "array", "input_values", "recording", "sound"),
    *("path", "file", "file_name", "audio_path", "audio_filepath", "audio_file"),
)
_SPEAKER_COLUMNS = ("speaker_id", "client_id", "speaker", "spk_id")
_RATE_COLUMNS = ("sampling_rate", "sample_rate", "samplerate", "sr")


def find_column(dataset: Dataset, wanted: str, where: str) -> str:
    """The column of audio: the wanted one, or else the only one whose kind is audio.

    Kinds are `Audio`, and objects with `bytes` and `path` or with `array` and `sampling_rate`. Where there is
    no such column, paths, bytes and lists of numbers count in columns with a usual name. UserError where
    there is none, or several.
    """
    kinds = {column: _kind(kind) for column, kind in dataset.features.items()}
    if wanted:
        _check_there(dataset, "data.audio_column", wanted, where)
        if not kinds[wanted]:
            raise UserError(
                where=where,
                field="data.audio_column",
                found=wanted,
                expected=f"a column of audio files or samples, not of {dataset.features[wanted]}",
            )
        return wanted
    found = [column for column, kind in kinds.items() if kind in ("file", "decoded")]
    if not found:
        usual = [column for column in kinds if column.lower() in _AUDIO_COLUMNS and kinds[column]]
        found = [column for column in usual if kinds[column] != "path"] or usual
    return _only(dataset, found, "data.audio_column", "audio", where)


def text_column_of(dataset: Dataset, wanted: str, where: str) -> str:
    """The column of text: the wanted one, or else the only one with a usual name.

    UserError where there is none, or several, or it holds no text.
    """
    if wanted:
        _check_there(dataset, "data.text_column", wanted, where)
    else:
        usual = [column for column in dataset.column_names if column.lower() in TEXT_COLUMNS]
        texts = [column for column in usual if _is_text(dataset.features[column])]
        wanted = _only(dataset, texts or usual, "data.text_column", "text", where)
    if not _is_text(dataset.features[wanted]):
        raise UserError(
            where=where,
            field="data.text_column",
            found=wanted,
            expected=f"a column of text, not of {dataset.features[wanted]}",
        )
    return wanted


def find_speaker(dataset: Dataset) -> str:
    """The column of speakers' names or numbers; "" where there is none."""
    return next((column for column in _SPEAKER_COLUMNS if column in dataset.column_names), "")


def audio_getter(dataset: Dataset, column: str, where: str, folder: Path) -> Callable[[int, str], Get]:
    """A function from row and id to the function that gives the row's audio.

    Relative paths are looked up in `folder`. Samples without a sampling rate are taken as 16 kHz, which the
    log says.
    """
    import datasets

    kind = _kind(dataset.features[column])
    if kind in ("numbers", "decoded"):
        rate = next((name for name in _RATE_COLUMNS if name in dataset.column_names), "")
        if kind == "numbers" and not rate:
            log.warning(
                "%s: no column says the sampling rate of %r: it is taken as %d Hz. Speech of another "
                "rate would be heard too fast or too slow: then add a column sampling_rate",
                where,
                column,
                SAMPLE_RATE,
            )
        columns = [column, *([rate] if kind == "numbers" and rate else [])]
        rows = dataset.select_columns(columns).with_format("numpy")
        return lambda row, id: partial(_samples, rows, row, column, rate, id)
    files = dataset.select_columns([column])
    if kind != "bytes":
        # decode=False: decoding in datasets 4 and later needs torchcodec and ffmpeg.
        files = files.cast_column(column, datasets.Audio(decode=False))
    return lambda row, id: partial(_audio_bytes, files, row, column, id, folder)


def _kind(feature: Any) -> str:
    """ "file", "decoded", "path", "bytes", "numbers", or "" for what cannot be audio."""
    import datasets

    if isinstance(feature, datasets.Audio):
        return "file"
    if isinstance(feature, dict):
        if "array" in feature and "sampling_rate" in feature:
            return "decoded"
        return "file" if set(feature) == {"bytes", "path"} else ""
    if isinstance(feature, datasets.Value):
        if feature.dtype in ("string", "large_string"):
            return "path"
        return "bytes" if feature.dtype in ("binary", "large_binary") else ""
    inner = getattr(feature, "feature", None)
    inner = getattr(inner, "feature", inner)  # of channels
    return (
        "numbers" if "float" in getattr(inner, "dtype", "") or getattr(inner, "dtype", "") == "int16" else ""
    )


def _is_text(feature: Any) -> bool:
    return _kind(feature) == "path"


def _check_there(dataset: Dataset, field: str, column: str, where: str) -> None:
    if column not in dataset.column_names:
        expected = f"one of the columns {some(dataset.column_names)}"
        raise UserError(where=where, field=field, found=column, expected=expected)


def _only(dataset: Dataset, found: list[str], field: str, what: str, where: str) -> str:
    if len(found) == 1:
        return found[0]
    problem = f"the columns {some(found)} may be the {what}" if found else f"no column of {what} is found"
    raise UserError(
        problem,
        where=where,
        field=field,
        expected=f"one of the columns {some(found or dataset.column_names)}",
        do=f"set {field} to the one that is meant",
    )


def _samples(dataset: Dataset, row: int, column: str, rate_column: str, id: str) -> Samples:
    """The samples in one row, [N] or [N, channels]."""
    import numpy as np

    where = f"Hugging Face dataset row {id}"
    value = dataset[row][column]
    rate: Any = SAMPLE_RATE
    if isinstance(value, dict):
        value, rate = value["array"], value["sampling_rate"]
    elif rate_column:
        rate = dataset[row][rate_column]
    try:
        samples = np.asarray(value)
        samples = samples.astype(np.int16 if samples.dtype == np.int16 else np.float32)
        hertz = int(rate)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"its audio is no samples with a rate ({reason(error)})", where=where, do="remove the row"
        ) from error
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:  # torchaudio's order is channels first
        samples = samples.T
    if samples.ndim not in (1, 2) or not samples.size:
        raise UserError("there are no samples in it", where=where, do="remove the row")
    return Samples(samples, hertz)


def _audio_bytes(dataset: Dataset, row: int, column: str, id: str, folder: Path) -> bytes:
    """The bytes of the audio file in one row; a row holds them, or a path to them."""
    audio = dataset[row][column]
    if isinstance(audio, bytes):
        return audio
    if audio and audio["bytes"]:
        return audio["bytes"]
    path = audio["path"] if audio else None
    where = f"Hugging Face dataset row {id}"
    if not path:
        raise UserError("no audio in it", where=where, do="remove the row")
    try:
        return (folder / path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(
            f"no audio in it, and the file {shown(path)} cannot be read ({reason(error)})",
            where=where,
            do="load the dataset again, or remove the row",
        ) from error

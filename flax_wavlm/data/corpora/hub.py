"""Datasets of the Hugging Face hub, or of its `datasets` library on the disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flax_wavlm.data.corpora.utterance import Skipped, Utterance, empty_split
from flax_wavlm.errors import UserError, reason, shown, some

if TYPE_CHECKING:
    from datasets import Dataset


def read_hub(
    name: str,
    split: str,
    *,
    audio_column: str = "",
    text_column: str = "",
    config: str | None = None,
) -> tuple[list[Utterance], list[Skipped]]:
    """A Hugging Face dataset: hub id, folder of parquet files, or a DatasetDict saved to disk.

    Audio stays undecoded: each utterance's `audio` gives the bytes of its file when called. An id is the
    split and the row, "train/000017". Rows without text are skipped. (Datasets that are plain audio files,
    "audiofolder", load only where torchcodec is installed: datasets 5 asks for it even to note a path.)

    Raises UserError where `datasets` cannot load it, or a column is missing or of another kind.
    """
    audio_column, text_column = audio_column or "audio", text_column or "text"
    where = f"Hugging Face dataset {name!r}"
    dataset = _load(name, config, split)
    audio = _checked_columns(dataset, audio_column, text_column, where)
    utterances, skipped = [], []
    for row, text in enumerate(dataset[text_column][:]):
        id = f"{split}/{row:06d}"
        if text and text.strip():
            utterances.append(Utterance(id, partial(_audio_bytes, audio, row, audio_column, id), text))
        else:
            skipped.append(Skipped(id, "no text"))
    if not utterances:
        raise empty_split(where, f"rows in split {split!r}", skipped)
    return utterances, skipped


def splits_of_hub(name: str, *, config: str | None = None) -> list[str]:
    """The names of the splits that there are."""
    import datasets

    try:
        if (Path(name) / "dataset_dict.json").exists():
            return list(datasets.load_from_disk(name))
        return datasets.get_dataset_split_names(name, config)
    except Exception as error:
        raise UserError(f"datasets cannot load it ({reason(error)})", where=name) from error


def _load(name: str, config: str | None, split: str) -> Dataset:
    import datasets

    try:
        if (Path(name) / "dataset_dict.json").exists():
            return datasets.load_from_disk(name)[split]
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub, the network, the cache and each format have their own exceptions
        cause: BaseException = error
        while cause.__cause__:  # "An error occurred while generating the dataset" says nothing
            cause = cause.__cause__
        raise UserError(
            f"datasets cannot load it ({type(cause).__name__}: {reason(cause)})",
            where=f"Hugging Face dataset {name!r}, config {config!r}, split {split!r}",
            field="data.path",
            do="check data.path, the split's name and the network; folders of audio files need torchcodec "
            "here: write a manifest for them, and set data.corpus to manifest",
        ) from error


def _checked_columns(dataset: Dataset, audio_column: str, text_column: str, where: str) -> Dataset:
    """The column of undecoded audio; UserError where either column is missing or of another kind."""
    import datasets

    columns = {"data.audio_column": audio_column, "data.text_column": text_column}
    for field, column in columns.items():
        if column not in dataset.column_names:
            expected = f"one of the columns {some(dataset.column_names)}"
            raise UserError(where=where, field=field, found=column, expected=expected)
    kind = dataset.features[text_column]
    if kind not in (datasets.Value("string"), datasets.Value("large_string")):
        raise UserError(
            where=where,
            field="data.text_column",
            found=text_column,
            expected=f"a column of text, not of {kind}",
        )
    try:
        # decode=False: decoding in datasets 4 and later needs torchcodec and ffmpeg.
        return dataset.select_columns([audio_column]).cast_column(audio_column, datasets.Audio(decode=False))
    except Exception as error:  # pyarrow's and datasets' own
        raise UserError(
            where=where,
            field="data.audio_column",
            found=audio_column,
            expected=f"a column of audio files, not of {dataset.features[audio_column]}",
        ) from error


def _audio_bytes(dataset: Dataset, row: int, column: str, id: str) -> bytes:
    """The bytes of the audio file in one row; a row holds them, or a path to them."""
    audio = dataset[row][column]
    if audio and audio["bytes"]:
        return audio["bytes"]
    path = audio["path"] if audio else None
    try:
        return Path(path or "").read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(
            f"no audio in it, and the file {shown(path)} cannot be read ({reason(error)})",
            where=f"Hugging Face dataset row {id}",
            do="load the dataset again, or remove the row",
        ) from error

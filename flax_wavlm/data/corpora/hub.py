"""TODO."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flax_wavlm.data.corpora.utterance import Skipped, Utterance, empty_split
from flax_wavlm.errors import UserError, reason

if TYPE_CHECKING:
    from datasets import Dataset


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
            f"({type(cause).__name__}: {reason(cause)}). Check data.path, the split's name and the "
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
        raise empty_split(f"Hugging Face dataset {name!r}", f"rows in split {split!r}", skipped)
    return utterances, skipped


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

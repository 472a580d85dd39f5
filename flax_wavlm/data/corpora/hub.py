"""Data sets of the Hugging Face hub, and those that its `datasets` library has on the disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax_wavlm.data.corpora.audiofolder import is_audiofolder, read_audiofolder, splits_of_audiofolder
from flax_wavlm.data.corpora.hub_columns import audio_getter, find_column, find_speaker, text_column_of
from flax_wavlm.data.corpora.splits import no_such_split
from flax_wavlm.data.corpora.utterance import Skipped, Utterance, empty_split
from flax_wavlm.errors import UserError, reason, some
from flax_wavlm.files import is_file, read_json_object

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT = re.compile(r"([\w.-]+)(\[.*\])?")
_TABLES = (".parquet", ".arrow")


def read_hub(
    name: str,
    split: str,
    *,
    audio_column: str = "",
    text_column: str = "",
    config: str | None = None,
) -> tuple[list[Utterance], list[Skipped]]:
    """A split of a Hugging Face data set.

    Audio stays undecoded: each utterance's `audio` gives the bytes of its file, or its samples, when called.
    An id is the split and the row in the whole split, "train/000017". Rows without text are skipped.

    Args:
        name: a hub id, a folder of parquet files or of audio files with `metadata.csv`, a parquet file, or
            what `save_to_disk` wrote.
        split: its name, or a part of one, as `datasets` writes it: "train[:95%]", "train[100:200]".
        audio_column, text_column: empty: found, see `hub_columns`.
        config: the data set's configuration.
    Raises:
        NoSplit: there is no such split.
        UserError: `datasets` cannot load it, or a column is missing, of another kind, or one of several.
    """
    where = f"Hugging Face dataset {name!r}"
    match = _SPLIT.fullmatch(split)
    if not match:
        raise no_such_split(where, split, splits_of_hub(name, config=config))
    base, part = match[1], match[2] or ""
    if is_audiofolder(Path(name)):
        return _part_of(read_audiofolder(Path(name), base, text_column), part, where, split)
    dataset = _load(name, config, base)
    rows = _rows(part, len(dataset), where, split)
    audio = find_column(dataset, audio_column, where)
    text = text_column_of(dataset, text_column, where)
    get_audio = audio_getter(dataset, audio, where, Path(name))
    speaker = find_speaker(dataset)
    speakers = dataset[speaker][:] if speaker else [""] * len(dataset)
    texts = dataset[text][:]
    utterances, skipped = [], []
    for row in rows:
        id = f"{base}/{row:06d}"
        if texts[row] and texts[row].strip():
            who = "" if speakers[row] is None else str(speakers[row])
            utterances.append(Utterance(id, get_audio(row, id), texts[row], who))
        else:
            skipped.append(Skipped(id, "no text"))
    if not utterances:
        raise empty_split(where, f"rows in split {split!r}", skipped)
    return utterances, skipped


def splits_of_hub(name: str, *, config: str | None = None) -> list[str]:
    """The names of the splits that there are; those of a hub id are asked of the hub."""
    if is_audiofolder(Path(name)):
        return splits_of_audiofolder(Path(name))
    import datasets

    try:
        if (saved := _saved(name)) is not None:
            return list(saved)
        if _is_table(name):
            return ["train"]
        return list(datasets.get_dataset_split_names(name, config))
    except Exception as error:  # the hub, the network, the cache and each format have their own exceptions
        raise _cannot_load(name, config, "", error) from error


def _load(name: str, config: str | None, split: str) -> Dataset:
    """A whole split; no code of the data set is run, since `datasets` 4 dropped loading scripts."""
    import datasets

    try:
        if (saved := _saved(name)) is not None:
            return _load_saved(saved, split, f"Hugging Face dataset {name!r}")
        if _is_table(name):
            if split != "train":
                raise no_such_split(f"Hugging Face dataset {name!r}", split, ["train"])
            return datasets.load_dataset(Path(name).suffix[1:], data_files={"train": name}, split="train")
        return datasets.load_dataset(name, config, split=split)
    except UserError:
        raise
    except Exception as error:  # the hub, the network, the cache and each format have their own exceptions
        raise _cannot_load(name, config, split, error) from error


def _saved(name: str) -> dict[str, Path] | None:
    """The folder of each split that `save_to_disk` wrote, of a DatasetDict or of one Dataset; else None."""
    folder = Path(name)
    if is_file(folder / "dataset_dict.json"):
        splits = read_json_object(folder / "dataset_dict.json", "the names of splits").get("splits", [])
        return {str(split): folder / Path(str(split)).name for split in splits}
    if is_file(folder / "state.json") and is_file(folder / "dataset_info.json"):
        state = read_json_object(folder / "state.json", "the state of a data set")
        return {str(state.get("_split") or "train").partition("[")[0]: folder}
    return None


def _load_saved(saved: dict[str, Path], split: str, where: str) -> Dataset:
    import datasets

    if split not in saved:
        raise no_such_split(where, split, list(saved))
    state = read_json_object(saved[split] / "state.json", "the state of a data set")
    if not state.get("_data_files"):  # a split without rows has no files, and `datasets` cannot load it
        raise empty_split(where, f"rows in split {split!r}", [])
    return datasets.load_from_disk(str(saved[split]))


def _is_table(name: str) -> bool:
    return Path(name).suffix in _TABLES and is_file(Path(name))


def _part_of(
    read: tuple[list[Utterance], list[Skipped]], part: str, where: str, split: str
) -> tuple[list[Utterance], list[Skipped]]:
    """The part of a split that "[:95%]" means, in the order of ids; skipped clips count."""
    ids = sorted([clip.id for clip in read[0]] + [clip.id for clip in read[1]])
    wanted = {ids[row] for row in _rows(part, len(ids), where, split)}
    utterances = [clip for clip in read[0] if clip.id in wanted]
    skipped = [clip for clip in read[1] if clip.id in wanted]
    if not utterances:
        raise empty_split(where, f"rows in split {split!r}", skipped)
    return utterances, skipped


def _rows(part: str, count: int, where: str, split: str) -> range:
    """The rows that "[:95%]" means, rounded as `datasets` does; "" means all."""
    if not part:
        return range(count)
    import datasets

    try:
        [rows] = datasets.ReadInstruction.from_spec(f"rows{part}").to_absolute({"rows": count})
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{part} is no part of a split ({reason(error)})",
            where=where,
            field="split",
            found=split,
            expected="a part such as train[:95%], train[95%:] or train[100:200]",
        ) from error
    return range(rows.from_ or 0, count if rows.to is None else rows.to)


def _cannot_load(name: str, config: str | None, split: str, error: Exception) -> UserError:
    """One line for what `datasets` raised, with what to do."""
    where = f"Hugging Face dataset {name!r}"
    messages, cause = [str(error)], error
    while isinstance(cause.__cause__, Exception):  # "An error occurred while generating" says nothing
        cause = cause.__cause__
        messages.append(str(cause))
    said = " ".join(messages)
    if unknown := re.search(r"Unknown split .*?\[(.*?)\]", said):
        return no_such_split(where, split, _quoted(unknown[1]))
    if re.search(r"BuilderConfig .* not found|Config name is missing", said):
        listed = re.search(r"(?:Available|available configs): \[(.*?)\]", said, re.DOTALL)
        return UserError(
            where=where,
            field="data.hub_config",
            found=config or "",
            expected=f"one of {some(_quoted(listed[1]))}" if listed else "one of the data set's",
        )
    where = f"{where}, config {config!r}" + (f", split {split!r}" if split else "")
    return UserError(
        f"datasets cannot load it ({type(cause).__name__}: {reason(cause)})",
        where=where,
        field="data.path",
        do=_what_to_do(said, name),
    )


def _what_to_do(said: str, name: str) -> str:
    if "gated" in said:
        return f"ask for access on https://huggingface.co/datasets/{name}, then log in with `hf auth login`"
    if "doesn't exist on the Hub" in said:
        return "check data.path; a private data set needs `hf auth login` first"
    if "torchcodec" in said:
        return "write a manifest for these audio files, and set data.corpus to manifest"
    if "scripts are no longer supported" in said:
        return "it has a program that loads it, which is not run: use a copy in parquet, or write a manifest"
    if re.search(r"offline|couldn't reach|connection", said, re.IGNORECASE):
        return "check the network and HF_HUB_OFFLINE, or download it and set data.path to its folder"
    return "check data.path and the network"


def _quoted(names: str) -> list[Any]:
    return re.findall(r"'([^']*)'", names)

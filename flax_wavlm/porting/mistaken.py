"""What people name in place of weights (a run's folder, a pointer, a web page), and what to name instead."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from flax_wavlm.errors import UserError, cannot_read, some
from flax_wavlm.files import exists, folder_entries, is_file, read_json_object

LARGE = "download the file itself"
# What a file is by its first bytes, and what to do.
BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights", "run git lfs pull in its folder"),
    (b"<!doctype", "a web page (HTML) saved as weights", LARGE),
    (b"<html", "a web page (HTML) saved as weights", LARGE),
    (b"<?xml", "a web service's answer (XML) saved as weights", LARGE),
    (b"entry not found", "a web service's error saved as weights", LARGE),
    (b"invalid username or password", "a web service's error saved as weights", LARGE),
    (b"access to model", "a web service's error saved as weights", LARGE),
    (b'{"error"', "a web service's error saved as weights", LARGE),
    (b"\x89hdf\r\n", "weights of TensorFlow or Keras (HDF5)", "save them with transformers' PyTorch model"),
    (b"gguf", "a GGUF file", "take the checkpoint that it was made from"),
    (b"riff", "an audio file", "give the model here"),
    (b"\x1f\x8b", "a gzip archive", "unpack it, and give the folder or file in it"),
)
# What a file is by the end of its name.
ENDINGS: tuple[tuple[str, str, str], ...] = (
    (".incomplete", "half a download", "download it again to its end"),
    (".part", "half a download", "download it again to its end"),
    (".crdownload", "half a download", "download it again to its end"),
    (".onnx", "an ONNX graph, not weights by name", "take the checkpoint that it was made from"),
    (".msgpack", "weights of transformers' Flax model", "take the repository's safetensors or .bin file"),
    (".h5", "weights of TensorFlow or Keras", "take the repository's safetensors or .bin file"),
    (".tflite", "a TensorFlow Lite graph", "take the checkpoint that it was made from"),
    (".gguf", "a GGUF file", "take the checkpoint that it was made from"),
    (".ckpt.index", "a checkpoint of TensorFlow", "take the PyTorch checkpoint of the same model"),
    (".ckpt.meta", "a checkpoint of TensorFlow", "take the PyTorch checkpoint of the same model"),
    (".data-00000-of-00001", "a checkpoint of TensorFlow", "take the PyTorch checkpoint of the same model"),
    (".zip", "an archive", "unpack it, and give the folder or file in it"),
    (".tar", "an archive", "unpack it, and give the folder or file in it"),
    (".nemo", "an archive of NeMo's", "WavLM weights are needed: a Hugging Face folder or a state dict"),
)
NOT_WEIGHTS = (".json", ".jsonl", ".md", ".txt", ".yaml", ".yml", ".py", ".svg", ".png", ".csv", ".log")
STATE_DICTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
MOST_FOLDERS = 200  # that are looked into for weights


def check_file(path: Path) -> None:
    """UserError for a file that holds no weights, by its name or its first bytes; it names what to give."""
    name = path.name.lower()
    for ending, what, do in ENDINGS:
        if name.endswith(ending):
            raise UserError(f"is {what}", where=path, do=do)
    if name.endswith(".index.json") and not path.is_dir():
        return  # of a folder that is opened; one that is named itself is refused by `check_named`
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise cannot_read(path, error) from None
    if not start:
        raise UserError("is an empty file", where=path, expected="weights", do="download or copy it again")
    for beginning, what, do in BEGINNINGS:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(beginning):
            raise UserError(f"is {what}", where=path, do=do)


def check_named(source: str | Path) -> None:
    """UserError where a name is not what holds weights, but lies in or beside it.

    A part of a run, a file of a model's folder other than its weights, or one shard of several.
    """
    path = Path(source).expanduser() if not str(source).startswith("~") else Path(source)
    name = path.name
    if is_file(path):
        shard = "-of-0" in name and any(exists(path.parent / f) for f in _indexes(path.parent))
        if path.suffix.lower() in NOT_WEIGHTS or shard:
            what = "one of several files of weights" if shard else "no file of weights"
            if run := _run_around(path):
                raise _part_of_run(path, run)
            raise UserError(f"is {what}", where=path, do=f"give its folder, {path.parent}")
    elif not exists(path) and len(path.parts) > 1 and (run := _run_around(path)):
        raise _part_of_run(path, run)


def _indexes(folder: Path) -> list[str]:
    return [entry.name for entry in folder_entries(folder) if entry.name.endswith(".index.json")]


def no_weights_in(folder: Path, weight_files: Collection[str]) -> UserError:
    """The error for a folder without weights: what it is, and what to name instead."""
    if run := _run_around(folder):
        return _part_of_run(folder, run)
    entries = folder_entries(folder)
    if inside := _folders_with_weights(folder, weight_files):
        return UserError(
            "holds no weights itself, but folders in it do",
            where=folder,
            do=f"give {'it' if len(inside) == 1 else 'one of them'}: {some([str(f) for f in inside])}",
        )
    for entry in entries:
        for ending, what, do in ENDINGS:
            if entry.name.lower().endswith(ending):
                return UserError(f"holds no weights for PyTorch; {entry.name} is {what}", where=folder, do=do)
    files = [entry for entry in entries if entry.suffix in STATE_DICTS and is_file(entry)]
    found = some([entry.name for entry in entries]) or "nothing"
    return UserError(
        f"holds no weights, but {found}",
        where=folder,
        expected=f"one of {', '.join(weight_files)}",
        do=f"give the file itself: {some([str(file) for file in files])}" if files else "",
    )


def _folders_with_weights(folder: Path, weight_files: Collection[str]) -> list[Path]:
    """The folders below, at most two deep (three in the hub's cache), that a model could be loaded from."""
    level, found = [folder], []
    for _ in range(3):
        level = [e for f in level for e in _listed(f) if e.is_dir() and not e.name.startswith(".")]
        level = level[:MOST_FOLDERS]
        with_weights = [f for f in level if any(exists(f / name) for name in weight_files)]
        found += with_weights
        level = [f for f in level if f not in with_weights]
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # one that may not be read says nothing; another may
        return []


def _run_around(path: Path) -> Path | None:
    """The workdir of a run that a path is, or lies in; None where it is in none."""
    for folder in (path, *list(path.absolute().parents)[:4]):
        if (folder / "checkpoints").is_dir() and is_file(folder / "config.json"):
            fields = read_json_object(folder / "config.json", "a run's configuration")
            if {"model", "data", "train", "optim"} <= fields.keys():
                return folder
    return None


def _part_of_run(path: Path, run: Path) -> UserError:
    """The error for a run's workdir, or something in it that is not its export."""
    parts = path.absolute().parts[len(run.absolute().parts) :]
    step = parts[1] if len(parts) > 1 and parts[0] == "checkpoints" and parts[1].isdecimal() else ""
    export = run / "export"
    command = f"flax-wavlm export --workdir {run} --output FOLDER"
    saved = any(entry.name.isdecimal() for entry in _listed(run / "checkpoints"))
    if exists(export / "model.safetensors"):
        do = f"give its export, {export}"
        do += f"; for step {step}, run {command} --step {step} and give FOLDER" if step else ""
    elif saved:
        do = f"run {command}{f' --step {step}' if step else ''} and give FOLDER"
    else:
        do = "it has saved no checkpoint yet: let it train on, or give another folder"
    what = "is the workdir of a run" if not parts else f"is a part of the run {run}"
    return UserError(f"{what}, not a model's folder", where=path, do=do)


def missing_vocabulary(folder: Path) -> str:
    """What lies in a folder in place of vocab.json, and what to do about it."""
    if exists(folder / "tokenizer.json"):
        return (
            "tokenizer.json is a fast tokenizer's: write its vocabulary beside it, with "
            "json.dump(PreTrainedTokenizerFast(tokenizer_file='tokenizer.json').get_vocab(), "
            "open('vocab.json', 'w'))"
        )
    for name in ("dict.ltr.txt", "dict.txt"):
        if exists(folder / name):
            return (
                f"{name} is fairseq's: write vocab.json, "
                '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} and its lines in order from 4 on, and '
                'tokenizer_config.json, {"pad_token": "<s>", "bos_token": "<pad>"}, because fairseq\'s blank '
                "is <s>"
            )
    if exists(folder / "vocab.txt"):
        return "vocab.txt is another kind of tokenizer's: write vocab.json, each token with its id"
    return "copy the tokenizer's files of the fine-tuned model into it"

"""Tensors in files, opened but not read: safetensors, pickles, and indexes of shards of either.

Nothing that is read here can run code: pickles are loaded with PyTorch's `weights_only=True` alone.
"""

from __future__ import annotations

import argparse
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flax_wavlm.errors import UserError, cannot_read, reason, shown, some
from flax_wavlm.files import is_file, read_json_object

SHARD_SUFFIXES = (".safetensors", ".bin")
FLOATS = ("F32", "F16", "BF16", "F64", "float32", "float16", "bfloat16", "float64")
MODULES = ("torch.nn.", "transformers.", "torchaudio.", "fairseq.", "__main__.")  # of whole models
DEEPEST = 16  # dicts within dicts that are looked into


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file: its name there, its shape and type, and the function that reads it."""

    spelled: str
    shape: tuple[int, ...]
    dtype: str  # "F32" and so on in safetensors, "float32" and so on in pickles
    read: Callable[[], np.ndarray]

    def third(self, index: int, path: Path) -> Tensor:
        """Query (0), key (1) or value (2) of a joint projection [3 D, ...]; `path` is for the error."""
        if not self.shape or self.shape[0] % 3:
            raise UserError(
                where=path,
                field=self.spelled,
                found=list(self.shape),
                expected="query, key and value joined along the first axis",
                do="download it again",
            )
        rows = self.shape[0] // 3
        own = slice(index * rows, (index + 1) * rows)
        return Tensor(self.spelled, (rows, *self.shape[1:]), self.dtype, lambda: self.read()[own])


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, or of all files that an index names, by their names there.

    Raises UserError where a file is missing, damaged, unsafe, or holds quantised weights.
    """
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return torch_tensors(path, load_pickle(path))


def _open_shards(index_file: Path) -> dict[str, Tensor]:
    index = read_json_object(index_file, "an index of weight files").get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError("has no weight_map", where=index_file, do="download the checkpoint again")
    for name in index.values():
        _check_shard_name(index_file, name)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        shard = index_file.parent / name
        if not is_file(shard):
            raise UserError(
                f"no such file, but {index_file.name} names it", where=shard, do="download it again"
            )
        found = open_tensors(shard)
        if twice := sorted(found.keys() & tensors):
            raise UserError(
                f"holds {twice[0]}, which another shard holds too", where=shard, do="download it again"
            )
        tensors.update(found)
    if missing := sorted(set(index) - set(tensors)):
        raise UserError(
            f"the shards lack {len(missing)} tensors that it lists: {some(missing)}",
            where=index_file,
            do="download the checkpoint again",
        )
    return tensors


def _check_shard_name(index_file: Path, name: Any) -> None:
    """UserError for a name that leads out of the folder.

    A file of the folder may be a link to anywhere. That is its owner's business: the hub's cache consists of
    links.
    """
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(SHARD_SUFFIXES):
        raise UserError(
            where=index_file,
            field="weight_map",
            found=name,
            expected=f"a file of the same folder, {' or '.join(SHARD_SUFFIXES)}",
        )


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    def read(name: str) -> np.ndarray:
        # Opened anew for each tensor: while a file is open, every page that was read counts as our memory.
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    try:
        path.open("rb").close()  # safetensors says of every such failure that there is no file
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            types = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    except OSError as error:
        raise cannot_read(path, error) from None
    except SafetensorError as error:
        raise UserError(
            f"not a whole safetensors file ({reason(error)})", where=path, do="download or copy it again"
        ) from None
    return {
        name: Tensor(name, shape, types[name], functools.partial(read, name))
        for name, shape in shapes.items()
    }


def check_types(path: Path, tensors: Iterable[Tensor]) -> None:
    """UserError for integers and the like: quantised weights say nothing without their scales."""
    wrong = [tensor for tensor in tensors if tensor.dtype not in FLOATS]
    if wrong:
        expected = FLOATS[:4] if wrong[0].dtype.isupper() else FLOATS[4:]
        raise UserError(
            f"tensors are of type {wrong[0].dtype}: {some([tensor.spelled for tensor in wrong])}",
            where=path,
            expected=f"one of {', '.join(expected)}",
            do="a quantised checkpoint cannot be used, take the one that it was made from",
        )


def load_pickle(path: Path) -> dict[str, Any]:
    """The dict in a pickled checkpoint, by torch's weights-only loading: no code in it is run.

    One class is allowed that PyTorch does not allow by itself, argparse.Namespace: Lightning and fairseq keep
    a program's arguments in one. It holds values, and has no code that a pickle could make run.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            "reading a pickled checkpoint needs PyTorch",
            where=path,
            do="pip install 'flax-wavlm[torch]', or use the checkpoint's safetensors form",
        ) from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # TorchScript is named in our own words
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise cannot_read(path, error) from None
    except Exception as error:  # torch raises half a dozen types for damaged or unsafe files
        raise _not_loaded(path, error) from None
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}", where=path, expected="a dict of tensors")
    return content


def _not_loaded(path: Path, error: Exception) -> UserError:
    """The UserError for what torch refused. Its own words, of many lines, advise to load without care."""
    save = "save its tensors alone where it was made, with torch.save(model.state_dict(), FILE)"
    said = str(error)
    unsafe = re.search(r"GLOBAL ([\w.]+)", said)
    if unsafe and unsafe[1].startswith(MODULES):
        problem, do = f"holds a whole model with its code ({unsafe[1]}), which cannot be loaded safely", save
    elif unsafe:
        problem = f"not a checkpoint that can be loaded safely (it holds {unsafe[1]}, which is no tensor)"
        do = save
    elif "TorchScript" in said:
        problem, do = "a TorchScript program, not a checkpoint that can be loaded safely", save
    else:
        problem = f"not a checkpoint that can be loaded safely ({type(error).__name__})"
        do = "it is damaged, or no checkpoint of PyTorch: download it again, or take another file"
    return UserError(problem, where=path, do=do)


def torch_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors anywhere in a loaded checkpoint; `path` is for the errors.

    A tensor in dicts within dicts is named by the keys that lead to it, with dots between them. Whatever else
    a trainer saved (numbers, settings, lists) is passed over.
    """
    import torch

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def collect(values: Mapping[Any, Any], prefix: str, depth: int) -> None:
        if id(values) in seen or depth > DEEPEST:
            return
        seen.add(id(values))
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                collect(value, f"{name}.", depth + 1)
            elif isinstance(value, torch.Tensor):
                if name in tensors:
                    raise UserError(f"holds {shown(name)} twice", where=path, do="remove one")
                read = functools.partial(_torch_to_numpy, value)
                tensors[name] = Tensor(name, tuple(value.shape), _dtype(value), read)

    collect(content, "", 0)
    if not tensors:
        keys = some([shown(key) for key in content]) or "nothing"
        raise UserError(f"holds no tensors, but {keys}", where=path, expected="a dict of tensors")
    return tensors


def _dtype(value: Any) -> str:
    """A tensor's type; of one without values in order (sparse, meta), what it is instead."""
    import torch

    if value.layout != torch.strided or value.is_meta:
        return "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
    return str(value.dtype).removeprefix("torch.")


def _torch_to_numpy(value: Any) -> np.ndarray:
    return value.detach().float().numpy()

"""Tensors in files, opened but not read: safetensors, pickles, and indexes of shards of either.

Nothing that is read here can run code: pickles are loaded with PyTorch's `weights_only=True` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flax_wavlm.errors import UserError, cannot_read, reason, some
from flax_wavlm.files import is_file, read_json_object

SHARD_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file: its name there, its shape, and the function that reads it."""

    spelled: str
    shape: tuple[int, ...]
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
        return Tensor(self.spelled, (rows, *self.shape[1:]), lambda: self.read()[own])


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
    _check_types(path, types, ("F32", "F16", "BF16", "F64"))
    return {name: Tensor(name, shape, functools.partial(read, name)) for name, shape in shapes.items()}


def _check_types(path: Path, types: Mapping[str, str], floats: tuple[str, ...]) -> None:
    """UserError for integers and the like: quantised weights say nothing without their scales."""
    if wrong := [name for name, kind in types.items() if kind not in floats]:
        raise UserError(
            f"tensors are of type {types[wrong[0]]}: {some(wrong)}",
            where=path,
            expected=f"one of {', '.join(floats)}",
            do="a quantised checkpoint cannot be used, take the one that it was made from",
        )


def load_pickle(path: Path) -> dict[str, Any]:
    """The dict in a pickled checkpoint, by torch's weights-only loading: no code in it is run."""
    try:
        import torch
    except ImportError:
        raise UserError(
            "reading a pickled checkpoint needs PyTorch",
            where=path,
            do="pip install 'flax-wavlm[torch]', or use the checkpoint's safetensors form",
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise cannot_read(path, error) from None
    except Exception as error:  # torch raises half a dozen types for damaged or unsafe files
        raise UserError(
            f"not a checkpoint that can be loaded safely ({type(error).__name__}: {reason(error)})",
            where=path,
            do="it is damaged, or it holds more than tensors: take another file",
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}", where=path, expected="a dict of tensors")
    return content


def torch_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a loaded state dict; `path` is for the errors."""
    if not isinstance(content, Mapping) or not content:
        raise UserError("holds no dict of tensors", where=path)
    import torch

    wrong = [
        str(name)
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided)
    ]
    if wrong:
        raise UserError(
            f"holds something else under {some(wrong)}", where=path, expected="named, dense tensors only"
        )
    floats = ("float32", "float16", "bfloat16", "float64")
    types = {name: str(value.dtype).removeprefix("torch.") for name, value in content.items()}
    _check_types(path, types, floats)
    return {
        name: Tensor(name, tuple(value.shape), functools.partial(_torch_to_numpy, value))
        for name, value in content.items()
    }


def _torch_to_numpy(value: Any) -> np.ndarray:
    return value.detach().float().numpy()

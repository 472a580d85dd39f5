"""TODO."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flax_wavlm.errors import UserError, reason
from flax_wavlm.files import is_file, read_json_object
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.table import HEAD

# --- Reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file: its name there, its shape, and the function that reads it."""

    spelled: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class PretrainedWeights:
    """A checkpoint on the disk, opened but not read. `tensors` is keyed by Hugging Face's names."""

    source: str
    kind: str
    config: WavLMConfig
    do_normalize: bool | None  # what the file itself says of the input's normalisation, if anything
    tensors: Mapping[str, Tensor]

    @property
    def folder(self) -> Path:
        """Where its other files lie: tokenizer, preprocessor."""
        path = Path(self.source)
        return path if path.is_dir() else path.parent

    @property
    def has_head(self) -> bool:
        return any(name in self.tensors for name in HEAD)


SHARD_SUFFIXES = (".safetensors", ".bin")


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, or of all files that an index names."""
    if path.name.endswith(".index.json"):
        index = read_json_object(path, "an index of weight files").get("weight_map")
        if not isinstance(index, dict) or not index:
            raise UserError(f"{path}: has no weight_map; download the checkpoint again")
        for name in index.values():
            # No way out of the folder. What a file there links to is its owner's business: the hub's cache
            # consists of links.
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(SHARD_SUFFIXES):
                raise UserError(
                    f"{path}: names the shard {name!r}, expected a file of the same folder, "
                    f"{' or '.join(SHARD_SUFFIXES)}"
                )
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(index.values())):
            shard = path.parent / name
            if not is_file(shard):
                raise UserError(f"{shard}: no such file, but {path.name} names it; download it again")
            found = open_tensors(shard)
            if twice := sorted(found.keys() & tensors):
                raise UserError(
                    f"{shard}: holds {twice[0]}, which another shard holds too; download it again"
                )
            tensors.update(found)
        missing = sorted(set(index) - set(tensors))
        if missing:
            raise UserError(
                f"{path}: the shards lack {len(missing)} tensors that it lists: {', '.join(missing)}"
            )
        return tensors
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return torch_tensors(path, load_pickle(path))


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    def read(name: str) -> np.ndarray:
        # Opened anew for each: while it is open, every page that was read counts as this process's memory.
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    try:
        path.open("rb").close()  # safetensors says of every such failure that there is no file
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            types = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({reason(error)}); download or copy it again"
        ) from None
    _check_types(path, types, ("F32", "F16", "BF16", "F64"))
    return {name: Tensor(name, shape, functools.partial(read, name)) for name, shape in shapes.items()}


def _check_types(path: Path, types: Mapping[str, str], floats: tuple[str, ...]) -> None:
    """UserError for integers and the like: quantised weights say nothing without their scales."""
    if wrong := [name for name, kind in types.items() if kind not in floats]:
        raise UserError(
            f"{path}: {', '.join(wrong[:10])}: of type {types[wrong[0]]}, expected one of "
            f"{', '.join(floats)}; a quantised checkpoint cannot be used, take the one that it was made from"
        )


def load_pickle(path: Path) -> dict[str, Any]:
    """The dict in a pickled checkpoint, by torch's weights-only loading: no code in it is run."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading a pickled checkpoint needs PyTorch: pip install 'flax-wavlm[torch]', "
            "or use its safetensors form"
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # torch raises half a dozen types for damaged or unsafe files
        raise UserError(
            f"{path}: not a checkpoint that can be loaded safely ({type(error).__name__}: "
            f"{reason(error)}). It is damaged, or it holds more than tensors"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    return content


def torch_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no dict of tensors")
    import torch

    wrong = [
        str(name)
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided)
    ]
    if wrong:
        raise UserError(
            f"{path}: expected named, dense tensors only, found something else under {', '.join(wrong[:10])}"
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

"""Pretrained weights on a disk, in every format that users hold, opened but not read.

Formats: Hugging Face folders and hub ids (safetensors or pickled, sharded or not, either spelling of weight
norm, encoder-only or with a CTC head), Microsoft's own .pt, torchaudio's state dict. Only this room knows
the names that Hugging Face, Microsoft and torchaudio give to tensors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flax_wavlm.errors import UserError, some
from flax_wavlm.files import exists, folder_entries, is_folder, local_copy
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.configs import config_of_microsoft, infer_config
from flax_wavlm.porting.names import canonical_names
from flax_wavlm.porting.table import HEAD
from flax_wavlm.porting.tensors import Tensor, load_pickle, open_tensors, torch_tensors

log = logging.getLogger(__name__)

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MICROSOFT, TORCHAUDIO = "Microsoft .pt", "torchaudio state dict"  # values of `PretrainedWeights.kind`


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights on a disk, opened but not read: the tensors are read one by one when they are needed.

    Attributes:
        source: the file or folder.
        kind: the format, as messages call it.
        config: the model that the weights are for.
        do_normalize: what the file itself says about the input's normalisation; None where it says nothing.
        tensors: the tensors by Hugging Face's names in WavLMForCTC.
    """

    source: str
    kind: str
    config: WavLMConfig
    do_normalize: bool | None
    tensors: Mapping[str, Tensor]

    @property
    def folder(self) -> Path:
        """Where its other files lie: tokenizer, preprocessor."""
        path = Path(self.source)
        return path if path.is_dir() else path.parent

    @property
    def has_head(self) -> bool:
        return any(name in self.tensors for name in HEAD)


def open_weights(source: str | Path) -> PretrainedWeights:
    """Opens a folder, a file or a hub id, in any format of the module's docstring.

    Raises UserError where there is none, where a file is damaged, or where it is not a WavLM's.
    """
    path = locate(source)
    if is_folder(path):
        return _open_folder(path)
    if path.suffix == ".safetensors":
        return _open_state_dict(path, open_tensors(path))
    content = load_pickle(path)
    if "cfg" in content and "model" in content:
        config, do_normalize = config_of_microsoft(path, content["cfg"])
        tensors = torch_tensors(path, content["model"])
        return PretrainedWeights(str(path), MICROSOFT, config, do_normalize, _renamed(path, tensors))
    return _open_state_dict(path, torch_tensors(path, content.get("state_dict", content)))


def locate(source: str | Path) -> Path:
    """The local file or folder: the path itself, or the snapshot of a hub id.

    A hub id is downloaded (or found in the cache) by huggingface_hub, which honours HF_HUB_OFFLINE.
    """
    path = local_copy(source, ["*.json", "model*.safetensors"])
    downloaded = path != Path(os.path.expanduser(source))
    if downloaded and not any((path / name).exists() for name in WEIGHT_FILES):
        path = local_copy(source, ["*.json", "pytorch_model*.bin"])
    return path


def _open_folder(path: Path) -> PretrainedWeights:
    weights = next((path / name for name in WEIGHT_FILES if exists(path / name)), None)
    if weights is None:
        found = some([entry.name for entry in folder_entries(path)]) or "nothing"
        raise UserError(
            f"holds no weights, but {found}", where=path, expected=f"one of {', '.join(WEIGHT_FILES)}"
        )
    # First the configuration: another architecture is named before its tensors.
    config = WavLMConfig.from_hf(path / "config.json")
    tensors = _renamed(path, open_tensors(weights))
    return PretrainedWeights(str(path), "Hugging Face folder", config, None, tensors)


def _open_state_dict(path: Path, raw: Mapping[str, Tensor]) -> PretrainedWeights:
    kind = TORCHAUDIO if any("in_proj_weight" in name for name in raw) else "state dict"
    beside = path.parent / "config.json"
    config = WavLMConfig.from_hf(beside) if exists(beside) else None
    tensors = _renamed(path, raw)
    if config is None:
        config = infer_config(path, {name: tensor.shape for name, tensor in tensors.items()})
        log.warning("%s: no config.json beside it; the configuration was inferred from the tensors", path)
    return PretrainedWeights(str(path), kind, config, None, tensors)


def _renamed(path: Path, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by Hugging Face's names, a joint projection cut into three; UserError for a name twice."""
    tensors: dict[str, Tensor] = {}
    for spelled, tensor in raw.items():
        names = canonical_names(spelled)
        for i, name in enumerate(names):
            if name in tensors:
                raise UserError(
                    f"holds {name} twice, as {tensors[name].spelled} and as {spelled}",
                    where=path,
                    do="remove one",
                )
            tensors[name] = tensor if len(names) == 1 else tensor.third(i, path)
    return tensors

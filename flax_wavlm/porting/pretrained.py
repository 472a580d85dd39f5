"""TODO."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, is_folder, local_copy
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.configs import config_of_microsoft, infer_config
from flax_wavlm.porting.names import canonical_names
from flax_wavlm.porting.weights import PretrainedWeights, Tensor, load_pickle, open_tensors, torch_tensors

log = logging.getLogger(__name__)


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def locate(source: str | Path) -> Path:
    """The local file or folder of a checkpoint: the path itself, or the snapshot of a hub id.

    A hub id is downloaded (or found in the cache) by huggingface_hub, which honours HF_HUB_OFFLINE.
    """
    path = local_copy(source, ["*.json", "model*.safetensors"])
    downloaded = path != Path(os.path.expanduser(source))
    if downloaded and not any((path / name).exists() for name in WEIGHT_FILES):
        path = local_copy(source, ["*.json", "pytorch_model*.bin"])
    return path


def open_weights(source: str | Path) -> PretrainedWeights:
    """Opens a checkpoint of any format (see the module's docstring); weights are read later, one by one."""
    path = locate(source)
    if is_folder(path):
        weights = next((path / name for name in WEIGHT_FILES if exists(path / name)), None)
        if weights is None:
            try:
                found = ", ".join(sorted(os.listdir(path))[:10]) or "nothing"
            except OSError as error:
                raise UserError(f"{path}: cannot list it ({error.strerror}); check its permissions") from None
            raise UserError(f"{path}: has none of {', '.join(WEIGHT_FILES)}; found {found}")
        config_path = path / "config.json"
        config = WavLMConfig.from_hf(config_path)  # first: another architecture is named before its tensors
        return _weights(path, "Hugging Face folder", config, None, open_tensors(weights))
    if path.suffix == ".safetensors":
        raw: Mapping[str, Tensor] = open_tensors(path)
    else:
        content = load_pickle(path)
        if "cfg" in content and "model" in content:
            with naming_file(path):
                config, do_normalize = config_of_microsoft(path, content["cfg"])
            return _weights(
                path, "Microsoft .pt", config, do_normalize, torch_tensors(path, content["model"])
            )
        raw = torch_tensors(path, content.get("state_dict", content))
    kind = "torchaudio state dict" if any("in_proj_weight" in name for name in raw) else "state dict"
    beside = path.parent / "config.json"
    if exists(beside):
        return _weights(path, kind, WavLMConfig.from_hf(beside), None, raw)
    checkpoint = _weights(path, kind, WavLMConfig(), None, raw)
    with naming_file(path):
        config = infer_config(checkpoint)
    log.warning("%s: no config.json beside it; the configuration was inferred from the tensors", path)
    return PretrainedWeights(checkpoint.source, kind, config, None, checkpoint.tensors)


def _weights(
    path: Path, kind: str, config: WavLMConfig, do_normalize: bool | None, raw: Mapping[str, Tensor]
) -> PretrainedWeights:
    tensors: dict[str, Tensor] = {}
    for spelled, tensor in raw.items():
        names = canonical_names(spelled)
        for i, name in enumerate(names):
            if name in tensors:
                raise UserError(
                    f"{path}: holds {name} twice, as {tensors[name].spelled} and as {spelled}; remove one"
                )
            tensors[name] = tensor if len(names) == 1 else _third(path, tensor, i)
    return PretrainedWeights(str(path), kind, config, do_normalize, tensors)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """WavLMConfig's errors, with the file that its values were found in."""
    try:
        yield
    except UserError as error:
        if not str(error).startswith("config: "):
            raise
        raise UserError(
            f"{path}: no configuration of a WavLM: {str(error).removeprefix('config: ')}"
        ) from None


def _third(path: Path, tensor: Tensor, index: int) -> Tensor:
    """One of query, key and value in torchaudio's joint projection."""
    if not tensor.shape or tensor.shape[0] % 3:
        raise UserError(
            f"{path}: {tensor.spelled} is {list(tensor.shape)}, expected query, key and value joined along "
            "the first axis; download it again"
        )
    rows = tensor.shape[0] // 3
    return Tensor(
        tensor.spelled,
        (rows, *tensor.shape[1:]),
        lambda: tensor.read()[index * rows : (index + 1) * rows],
    )

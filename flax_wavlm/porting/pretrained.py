"""Pretrained weights on a disk, in every format that users hold, opened but not read.

Formats: Hugging Face folders and hub ids (safetensors or pickled, sharded or not, either spelling of weight
norm, encoder-only or with a CTC head), Microsoft's own .pt, fairseq's fine-tuned one, torchaudio's state
dict; each also inside a trainer's checkpoint, or under a wrapper's prefix. Only this room knows the names
that Hugging Face, Microsoft and torchaudio give to tensors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flax_wavlm.errors import some
from flax_wavlm.files import exists, is_folder, local_copy, read_json_object
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.adapters import is_adapter_folder, merge_first
from flax_wavlm.porting.configs import cfg_of_fairseq, config_of_microsoft, infer_config
from flax_wavlm.porting.mistaken import check_file, check_named, no_weights_in
from flax_wavlm.porting.parts import Found, find_wavlm
from flax_wavlm.porting.table import HEAD
from flax_wavlm.porting.tensors import Tensor, check_types, load_pickle, open_tensors, torch_tensors

log = logging.getLogger(__name__)

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
BESIDE = ("*.json", "language_model/*.arpa", "language_model/*.arpa.gz")  # of a hub's repository
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
        prefix: what the encoder's names begin with in the file.
    """

    source: str
    kind: str
    config: WavLMConfig
    do_normalize: bool | None
    tensors: Mapping[str, Tensor]
    prefix: str = ""

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
    check_file(path)
    if path.suffix == ".safetensors":
        return _open_state_dict(path, open_tensors(path))
    content = load_pickle(path)
    raw = torch_tensors(path, content)
    cfg = cfg_of_fairseq(content)
    if cfg is None:
        return _open_state_dict(path, raw)
    found = _wavlm_of(path, raw)
    config, do_normalize = config_of_microsoft(path, cfg)
    config = _with_width_of_head(path, config, found.tensors)
    return PretrainedWeights(str(path), MICROSOFT, config, do_normalize, found.tensors, found.prefix)


def locate(source: str | Path) -> Path:
    """The local file or folder: the path itself, or the snapshot of a hub id.

    A hub id is downloaded (or found in the cache) by huggingface_hub, which honours HF_HUB_OFFLINE.
    """
    check_named(source)
    path = local_copy(source, [*BESIDE, "model*.safetensors", "aligner.safetensors"])
    downloaded = path != Path(os.path.expanduser(source))
    if downloaded and not any((path / name).exists() for name in WEIGHT_FILES):
        path = local_copy(source, [*BESIDE, "pytorch_model*.bin"])
    return path


def _open_folder(path: Path) -> PretrainedWeights:
    if is_adapter_folder(path):
        raise merge_first(path)
    weights = next((path / name for name in WEIGHT_FILES if exists(path / name)), None)
    if weights is None:
        raise no_weights_in(path, WEIGHT_FILES)
    # First the configuration: another architecture is named before its tensors.
    config = WavLMConfig.from_hf(path / "config.json")
    check_file(weights)
    found = _wavlm_of(weights, open_tensors(weights))
    return PretrainedWeights(str(path), "Hugging Face folder", config, None, found.tensors, found.prefix)


def _open_state_dict(path: Path, raw: Mapping[str, Tensor]) -> PretrainedWeights:
    kind = TORCHAUDIO if any("in_proj_weight" in name for name in raw) else "state dict"
    found = _wavlm_of(path, raw)
    beside = path.parent / "config.json"
    # One without a model_type is no model's: a trainer's settings, say.
    if exists(beside) and "model_type" in read_json_object(beside, "a model's configuration"):
        config = _with_width_of_head(path, WavLMConfig.from_hf(beside), found.tensors)
    else:
        config = infer_config(path, {name: tensor.shape for name, tensor in found.tensors.items()})
        log.warning("%s: no config.json beside it; the configuration was inferred from the tensors", path)
    return PretrainedWeights(str(path), kind, config, None, found.tensors, found.prefix)


def _wavlm_of(path: Path, raw: Mapping[str, Tensor]) -> Found:
    """The WavLM in a file; the log names what was left out. UserError as `find_wavlm` raises it."""
    found = find_wavlm(path, raw)
    check_types(path, found.tensors.values())
    if found.prefix not in ("", "wavlm."):
        log.info("%s: the WavLM's tensors are those under %r", path, found.prefix.removesuffix("."))
    if found.left_out:
        log.warning(
            "%s: left out, as no part of a WavLM with a CTC head (number of tensors): %s",
            path,
            some(found.left_out),
        )
    return found


def _with_width_of_head(path: Path, config: WavLMConfig, tensors: Mapping[str, Tensor]) -> WavLMConfig:
    """The configuration with the head's own width: the file beside may be the encoder's it was tuned from."""
    head = tensors.get(HEAD[0])
    if head is None or len(head.shape) != 2 or head.shape[0] in (0, config.vocab_size):
        return config
    log.info("%s: its CTC head has %d outputs (vocab_size)", path, head.shape[0])
    return config.replace(vocab_size=head.shape[0])

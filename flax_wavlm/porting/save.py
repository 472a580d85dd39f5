"""TODO."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flax_wavlm.errors import UserError, reason
from flax_wavlm.files import read_json_object
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import WavLMForCTC
from flax_wavlm.models.parameters import Params, flatten, split
from flax_wavlm.porting.table import MASK_EMBEDDING, has_mask_embedding, table


def hf_tensors(config: WavLMConfig, params: Params) -> dict[str, np.ndarray]:
    """The parameters (or a tree of the same form: gradients) as Hugging Face's WavLMForCTC names them."""
    host = {}
    for path, leaf in flatten(params):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        host[path] = np.asarray(leaf)
    return {
        entry.name: np.ascontiguousarray(entry.layout.to_theirs(host[entry.path][entry.index]))
        for entry in table(config)
        if entry.name != MASK_EMBEDDING or has_mask_embedding(config)
    }


def save_model(model: WavLMForCTC, folder: Path) -> None:
    """Writes config.json and model.safetensors for `transformers.WavLMForCTC.from_pretrained`.

    The weights file is whole or absent: it is written beside its place and renamed. In a run of several
    processes all must call; the first one writes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = hf_tensors(model.config, split(model)[1])
    if jax.process_index() != 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            weights = Path(scratch) / "model.safetensors"
            # transformers refuses a file that does not say which framework it is for.
            save_file(tensors, weights, metadata={"format": "pt"})
            config = Path(scratch) / "config.json"
            config.write_text(json.dumps(model.config.to_hf(), indent=2) + "\n")
            for path in (config, weights):
                os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written: {reason(error)}; give another folder") from None


# The other files of a checkpoint's folder that say how to use it.
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SIDE_FILES = (
    *PREPROCESSOR_FILES,
    "tokenizer_config.json",
    "vocab.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def copy_side_files(source: Path, folder: Path) -> list[str]:
    """Copies tokenizer and preprocessor files that lie with a checkpoint; returns their names.

    UserError for one that is no JSON object: it is damaged, or a link to something that is not to be copied.
    """
    origin = source if source.is_dir() else source.parent
    found = [name for name in SIDE_FILES if (origin / name).exists()]
    if origin.resolve() != folder.resolve():
        for name in found:
            read_json_object(origin / name, "a file of a tokenizer or preprocessor")
            shutil.copyfile(origin / name, folder / name)
    return found

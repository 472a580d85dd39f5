"""A model as a Hugging Face folder, and the tokenizer and preprocessor files that go with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flax_wavlm.data.preprocessor import PREPROCESSOR_FILES
from flax_wavlm.data.tokenizer import TOKENIZER_FILES
from flax_wavlm.errors import cannot_write
from flax_wavlm.files import read_json_object, replaced, write_atomically
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import WavLMForCTC
from flax_wavlm.models.parameters import Params, flatten, split
from flax_wavlm.porting.extras import EXTRAS_FILE
from flax_wavlm.porting.table import MASK_EMBEDDING, has_mask_embedding, table

# The files of a checkpoint's folder, beside weights and configuration, that say how to use it.
SIDE_FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES, EXTRAS_FILE)


def hf_tensors(config: WavLMConfig, params: Params) -> dict[str, np.ndarray]:
    """The parameters, or a tree of the same form such as their gradients, by Hugging Face's names.

    Where arrays are spread over several processes, all must call: the arrays are gathered.
    """
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

    Each file is written beside its place and renamed, the weights last: a folder that has weights is whole.
    In a run of several processes all must call; the first one writes.

    Raises UserError where the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = hf_tensors(model.config, split(model)[1])
    if jax.process_index() != 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(folder / "model.safetensors") as weights:
            # transformers refuses a file that does not say which framework it is for.
            save_file(tensors, weights, metadata={"format": "pt"})
            write_atomically(folder / "config.json", json.dumps(model.config.to_hf(), indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error, do="give another folder") from None


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

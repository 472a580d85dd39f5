"""From a checkpoint of any format to a Hugging Face folder that transformers loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, is_folder
from flax_wavlm.models.heads import WavLMForCTC
from flax_wavlm.models.parameters import count_parameters, split
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.pretrained import WEIGHT_FILES, open_weights
from flax_wavlm.porting.save import PREPROCESSOR_FILES, copy_side_files, save_model
from flax_wavlm.porting.weights import PretrainedWeights

log = logging.getLogger(__name__)


class Conversion(NamedTuple):
    """What was read, the model made of it, and the folder that it was written to."""

    checkpoint: PretrainedWeights
    model: WavLMForCTC
    folder: Path


def convert(source: str | Path, folder: Path, *, overwrite: bool = False) -> Conversion:
    """Writes any checkpoint as a Hugging Face folder.

    The folder gets config.json, model.safetensors, and the tokenizer's and preprocessor's files that lie with
    the source. Microsoft's .pt has none: its own cfg says what preprocessor_config.json must.

    Args:
        source: what `port.open_weights` reads: a folder, a file, or a hub id.
        folder: made if need be.
        overwrite: replace the checkpoint that the folder holds.
    Raises:
        UserError: the source cannot be used, or the folder is the source's own, holds a checkpoint, or cannot
            be written.
    """
    checkpoint = open_weights(source)
    origin = Path(checkpoint.source)
    if folder.resolve() == (origin if origin.is_dir() else origin.parent).resolve():
        raise UserError(f"{folder}: is the source's own folder, expected another one to write to")
    if exists(folder) and not is_folder(folder):
        raise UserError(f"{folder}: is a file, expected a folder to write to; give another name")
    held = [name for name in WEIGHT_FILES if exists(folder / name)]
    if held and not overwrite:
        raise UserError(
            f"{folder}: holds a checkpoint already ({', '.join(held)}), expected a new or empty folder; give "
            "another one, or --overwrite"
        )
    model = load_model(checkpoint)
    config = model.config
    head = f"CTC head of {config.vocab_size} outputs" if checkpoint.has_head else "no CTC head"
    log.info(
        "%s: %s, %d layers of width %d, %.1f million parameters, %s",
        checkpoint.source,
        checkpoint.kind,
        config.num_hidden_layers,
        config.hidden_size,
        count_parameters(split(model)[1]) / 1e6,
        head,
    )
    try:
        save_model(model, folder)
        copied = copy_side_files(origin, folder)
        if checkpoint.do_normalize is not None and not set(copied) & set(PREPROCESSOR_FILES):
            masks = config.feat_extract_norm == "layer"
            Preprocessor(checkpoint.do_normalize, return_attention_mask=masks).save(folder)
            copied.append("preprocessor_config.json")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror or error}; give another folder"
        ) from None
    log.info("wrote %s to %s", ", ".join(["config.json", "model.safetensors", *copied]), folder)
    return Conversion(checkpoint, model, folder)

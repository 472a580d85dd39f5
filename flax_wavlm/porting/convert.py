"""From pretrained weights of any format to a Hugging Face folder that transformers loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from flax_wavlm.data.preprocessor import PREPROCESSOR_FILES, Preprocessor
from flax_wavlm.errors import UserError, cannot_write
from flax_wavlm.files import exists, is_folder
from flax_wavlm.models.heads import WavLMForCTC
from flax_wavlm.models.parameters import count_parameters, split
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.pretrained import WEIGHT_FILES, PretrainedWeights, open_weights
from flax_wavlm.porting.save import copy_side_files, save_model

log = logging.getLogger(__name__)


class Conversion(NamedTuple):
    """The weights that were read, their model, and the folder that it was written to."""

    weights: PretrainedWeights
    model: WavLMForCTC
    folder: Path


def convert(source: str | Path, folder: Path, *, overwrite: bool = False) -> Conversion:
    """Writes pretrained weights as a Hugging Face folder.

    The folder gets config.json, model.safetensors, and the tokenizer's and preprocessor's files that lie with
    the source. Microsoft's .pt has none: its own cfg says what preprocessor_config.json must.

    Args:
        source: what `open_weights` reads: a folder, a file, or a hub id.
        folder: made if need be.
        overwrite: replace the weights that the folder holds.
    Raises:
        UserError: the source cannot be used, or the folder is the source's own, holds weights, or cannot be
            written.
    """
    weights = open_weights(source)
    _check_folder(folder, weights, overwrite)
    model = load_model(weights)
    _describe(weights, model)
    try:
        save_model(model, folder)
        copied = copy_side_files(Path(weights.source), folder)
        if weights.do_normalize is not None and not set(copied) & set(PREPROCESSOR_FILES):
            masks = model.config.feat_extract_norm == "layer"
            Preprocessor(weights.do_normalize, return_attention_mask=masks).save(folder)
            copied.append("preprocessor_config.json")
    except OSError as error:
        raise cannot_write(folder, error, do="give another folder") from None
    log.info("wrote %s to %s", ", ".join(["config.json", "model.safetensors", *copied]), folder)
    return Conversion(weights, model, folder)


def _check_folder(folder: Path, weights: PretrainedWeights, overwrite: bool) -> None:
    """UserError where writing there would destroy something."""
    if folder.resolve() == weights.folder.resolve():
        raise UserError("is the source's own folder", where=folder, expected="another one to write to")
    if exists(folder) and not is_folder(folder):
        raise UserError("is a file", where=folder, expected="a folder to write to", do="give another name")
    held = [name for name in WEIGHT_FILES if exists(folder / name)]
    if held and not overwrite:
        raise UserError(
            f"holds weights already ({', '.join(held)})",
            where=folder,
            field="overwrite",
            expected="a new or empty folder",
            do="give another one, or set overwrite",
        )


def _describe(weights: PretrainedWeights, model: WavLMForCTC) -> None:
    config = model.config
    log.info(
        "%s: %s, %d layers of width %d, %.1f million parameters, %s",
        weights.source,
        weights.kind,
        config.num_hidden_layers,
        config.hidden_size,
        count_parameters(split(model)[1]) / 1e6,
        f"CTC head of {config.vocab_size} outputs" if weights.has_head else "no CTC head",
    )

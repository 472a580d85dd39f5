"""From a run's checkpoint to a Hugging Face folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

import jax

from flax_wavlm.errors import UserError
from flax_wavlm.files import is_folder, read_json_object, write_atomically, writing
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import merge
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.save import copy_side_files, save_model
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.report.metrics import evaluations, read_metrics
from flax_wavlm.training.report.model_card import model_card


def export_run(workdir: Path, output: Path, step: str = "best") -> int:
    """Writes a run's checkpoint as a Hugging Face folder; returns its step.

    The folder holds config.json, model.safetensors, the tokenizer's and the preprocessor's files, and a
    model card (README.md) with the results table. In a run of several processes all must call.

    Args:
        workdir: the run's folder.
        output: the folder to write; made if need be.
        step: "best" (lowest word error rate), "latest", or a checkpoint's number.
    Raises:
        UserError: there is no such run or checkpoint.
    """
    if not is_folder(workdir / "checkpoints"):
        raise UserError(f"{workdir}: has no checkpoints/, so it is not the workdir of a run")
    run = read_json_object(workdir / "config.json", "a run's configuration")
    try:
        run_name, base_model, dataset = run["name"], run["model"]["checkpoint"], run["data"]["corpus"]
    except (KeyError, TypeError):
        raise UserError(
            f"{workdir / 'config.json'}: lacks name, model.checkpoint or data.corpus; expected the "
            "configuration that the run wrote. Start the run's command again to have it restored"
        ) from None
    config = WavLMConfig.from_hf(workdir / "processor" / "config.json")
    rows = read_metrics(workdir / "metrics.jsonl")
    scores = {row["step"]: row["wer"] for row in evaluations(rows)}
    checkpoints = Checkpoints(workdir / "checkpoints", scores)
    try:
        number = checkpoints.resolve(step)
        graphdef, shapes = structure(config)
        placement = sharding.tree_sharding(sharding.make_mesh(), shapes)
        like = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, placement
        )
        params = checkpoints.restore_params(number, like)
    finally:
        checkpoints.close()
    save_model(merge(graphdef, params), output)
    if jax.process_index() == 0:
        card = model_card(
            name=output.name if output.name != "export" else run_name or workdir.name,
            base_model=base_model or None,
            dataset=dataset,
            dataset_id=dataset,
            config=run,
            rows=rows,
        )
        with writing(output):
            copy_side_files(workdir / "processor", output)
            write_atomically(output / "README.md", card)
    return number

"""From a run's checkpoint to a Hugging Face folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax

from flax_wavlm.errors import UserError
from flax_wavlm.files import is_folder, write_atomically, writing
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import merge
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.save import copy_side_files, save_model
from flax_wavlm.recognition.ctc_task import ctc_scoring
from flax_wavlm.recognition.task import Row, Scoring, choosing
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.config import read_saved
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.report.model_card import model_card


class Exported(NamedTuple):
    """Which weights of a run: a checkpoint's, or the mean of several."""

    step: int  # of a mean: its last checkpoint's
    averaged: int = 0  # checkpoints in a mean

    def __str__(self) -> str:
        mean = f"the mean of the {self.averaged} checkpoints evaluated last, up to " if self.averaged else ""
        return f"{mean}step {self.step}"


def export_run(
    workdir: Path, output: Path, step: str = "best", *, scoring: Scoring | None = None
) -> Exported:
    """Writes a run's weights as a Hugging Face folder; returns which ones they are.

    The folder holds config.json, model.safetensors, the tokenizer's and the preprocessor's files, and a
    model card (README.md) with the results table. In a run of several processes all must call.

    Args:
        workdir: the run's folder.
        output: the folder to write; made if need be.
        step: "best" (by the score that `scoring` names; the averaged weights, where these were evaluated and
            are better than every checkpoint), "latest", a checkpoint's number, or "averaged": the mean of
            the last `train.average_last` checkpoints that were evaluated so far, better or not.
        scoring: of the run's task; None: as the run itself chose.
    Raises:
        UserError: there is no such run or checkpoint, or the folder cannot be written.
    """
    if not is_folder(workdir / "checkpoints"):
        raise UserError("has no checkpoints/, so it is not the workdir of a run", where=workdir)
    scoring = scoring or scoring_of(workdir)
    config = WavLMConfig.from_hf(workdir / "processor" / "config.json")
    rows = read_metrics(workdir / "metrics.jsonl")
    checkpoints = Checkpoints(workdir / "checkpoints", scoring.ranks(rows))
    try:
        steps = _steps_of(step, workdir, checkpoints, scoring.best(rows))
        graphdef, shapes = structure(config)
        placement = sharding.tree_sharding(sharding.make_mesh(), shapes)
        like = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, placement
        )
        params = checkpoints.restore_mean(steps, like)
    finally:
        checkpoints.close()
    save_model(merge(graphdef, params), output)
    if jax.process_index() == 0:
        with writing(output):
            copy_side_files(workdir / "processor", output)
    exported = Exported(steps[-1], len(steps) if len(steps) > 1 else 0)
    write_model_card(workdir, output, exported, scoring=scoring)
    return exported


def _steps_of(step: str, workdir: Path, checkpoints: Checkpoints, best: Row | None) -> list[int]:
    """The checkpoints whose mean the weights are: several, or a single one."""
    if step != "averaged" and not (step == "best" and best and best.get("averaged")):
        return [checkpoints.resolve(step)]
    last = read_saved(workdir / "config.json")["train"]["average_last"]
    steps = checkpoints.last_evaluated(last)
    if len(steps) < 2:
        raise UserError(
            f"no average: train.average_last of the run is {last}, and {len(steps)} of the checkpoints that "
            "it counts were evaluated",
            where=workdir,
            expected="2 or more",
            do="export best, latest, or the number of a checkpoint",
        )
    return steps


def write_model_card(workdir: Path, output: Path, exported: Exported, *, scoring: Scoring) -> None:
    """Writes README.md of an exported folder, from what the run's metrics.jsonl says by now."""
    if jax.process_index() != 0:
        return
    run = read_saved(workdir / "config.json")
    card = model_card(
        name=output.name if output.name != "export" else run["name"] or workdir.name,
        base_model=run["model"]["checkpoint"] or None,
        dataset=run["data"]["corpus"],
        dataset_id=run["data"]["corpus"],
        config=run,
        rows=read_metrics(workdir / "metrics.jsonl"),
        exported=exported.step,
        averaged=exported.averaged,
        scoring=scoring,
    )
    with writing(output):
        write_atomically(output / "README.md", card)


def scoring_of(workdir: Path) -> Scoring:
    """How a run chose: `train.best_by`, as its evaluations say that it was understood."""
    scoring = ctc_scoring(str(read_saved(workdir / "config.json")["data"]["corpus"]))
    rows = choosing(read_metrics(workdir / "metrics.jsonl"))
    best_by = next((row["best_by"] for row in rows if "best_by" in row), scoring.best_by)
    return scoring.chosen_by(best_by)

"""Averaged weights: the mean of a run's last evaluated checkpoints, one more candidate for the export."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from flax_wavlm.errors import UserError
from flax_wavlm.models.parameters import combine
from flax_wavlm.recognition.evaluate import figures_line, write_predictions
from flax_wavlm.recognition.task import choosing
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.journal import Journal
from flax_wavlm.training.prepare import Parts

log = logging.getLogger(__name__)


def evaluate_average(run: Parts, workdir: Path, last: int, journal: Journal) -> None:
    """Evaluates the mean of the last checkpoints once, at a run's end, on the split that chooses.

    While `train.average_last` is on, the run keeps that many of the last evaluated checkpoints on the disk,
    beside the latest two and the best. Their mean (Izmailov et al. 2018, Vaswani et al. 2017) is often better
    than each of them, and at times it is worse. So it is one more candidate: it gets a line in
    metrics.jsonl with `averaged`, the number of its checkpoints, and the step of the last one. If it ranks
    better than the best checkpoint, it is what the run exports and evaluates on test. Its predictions are in
    predictions/averaged.jsonl.

    The mean is made of checkpoints on the disk alone, so a run that was killed gets the same. Fewer than two
    evaluated checkpoints, or a damaged one, make no average: the log says so, and the best checkpoint counts.

    Args:
        run: its parts.
        workdir: its folder.
        last: `train.average_last`; 0 does nothing.
        journal: of the run.
    """
    scoring, chooser = run.origin.task.scoring, run.speech.chooser
    if last == 0 or any(row.get("averaged") for row in choosing(journal.rows())):
        return
    with Checkpoints(workdir / "checkpoints", journal.ranks) as checkpoints:
        steps = checkpoints.last_evaluated(last)
        if len(steps) < 2:
            log.warning("no average: %d evaluated checkpoint(s), train.average_last is %d", len(steps), last)
            return
        try:
            params = checkpoints.restore_mean(
                steps, combine(run.programs.template.params, run.programs.template.frozen)
            )
            figures, predictions = run.evaluate(params, run.speech.dev)
        except UserError as error:
            log.warning("no average: %s", error)
            return
    if jax.process_index() == 0:
        write_predictions(workdir / "predictions" / "averaged.jsonl", predictions)
    journal.write(steps[-1], chooser, {**figures, "best_by": scoring.best_by, "averaged": len(steps)})
    multihost_utils.sync_global_devices("averaged")  # the choice of what is exported reads this line
    log.info(
        "the mean of the checkpoints of steps %s  %s: %s",
        ", ".join(map(str, steps)),
        chooser,
        figures_line(figures, scoring),
    )

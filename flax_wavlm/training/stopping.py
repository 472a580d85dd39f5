"""When a run ends before its last step: after evaluations that found nothing better."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from flax_wavlm.recognition.task import Rank
from flax_wavlm.training.journal import Journal

log = logging.getLogger(__name__)


def last_improvement(ranks: Mapping[int, Rank]) -> tuple[int, int]:
    """The step of the last evaluation that was better than all before it, and the evaluations after it.

    An equal score is no better one, unless what decides between equals, such as the loss, is better. A rank's
    last part, the step, plays no role here: the step is the best checkpoint's, or that of an earlier equal.

    Args:
        ranks: step to rank, see `Scoring.ranks`; at least one.
    """
    steps = sorted(ranks)
    best = min(steps, key=lambda step: ranks[step][:-1])
    return best, len(steps) - 1 - steps.index(best)


def steps_to_make(start: int, total: int, journal: Journal, patience: int) -> Iterator[int]:
    """The steps start + 1, ..., total, until the run is to stop early.

    That is asked before every step, of the evaluations in metrics.jsonl alone. So a run that is killed and
    resumed stops where the unbroken one does, and one that has stopped makes no further step.

    Args:
        start: steps made.
        total: steps of the whole run; the schedule of the learning rate is made for these.
        journal: knows the evaluations.
        patience: `train.early_stopping`, evaluations in a row without a better score; 0 never stops early.
    """
    for step in range(start + 1, total + 1):
        if patience and journal.ranks:
            best, since = last_improvement(journal.ranks)
            if since >= patience:
                log.info(
                    "stopped early, at step %d of %d: the last %d evaluations were not better than that of "
                    "step %d, whose %s is %.4f (train.early_stopping is %d)",
                    step - 1,
                    total,
                    since,
                    best,
                    journal.scoring.best_by,
                    journal.ranks[best][0] * (-1 if journal.scoring.highest else 1),
                    patience,
                )
                return
        yield step

"""A task as a value: what a model learns to say of a clip, and how its answers are judged.

Training step, evaluation, choice of the best checkpoint and report know no task: they are handed one. A new
task (phones, one label a clip) is a new file with a function that returns a `Task`, as `ctc_task.py` has one
for character CTC. tests/training/test_task.py defines a second task and trains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flax_wavlm.data.targets import Targets
from flax_wavlm.models.config import WavLMConfig

Array = jax.Array
Batch = Mapping[str, Array]  # as `flax_wavlm.data.batches` describes it, on the devices
Row = Mapping[str, Any]  # a line of metrics.jsonl
Rank = tuple[float, ...]  # of an evaluation: the lowest is the best

DEV, TEST = "dev", "test"  # what a line of metrics.jsonl calls the split that it is about


class ClipLosses(NamedTuple):
    """The losses of a batch."""

    loss: Array  # [B] float32; 0 where not feasible, anything finite on filler rows
    feasible: Array  # [B] bool: whether the clip has enough frames for its labels


class BatchLoss(NamedTuple):
    """The losses of a batch's valid rows, added up."""

    total: Array  # [] float32
    infeasible: Array  # [] int: valid clips whose labels do not fit in their frames


@dataclass(frozen=True)
class Loss:
    """What training lowers.

    Attributes:
        of_clips: (outputs [B, T, V], frame_lengths [B], batch) -> `ClipLosses`.
        mean: the loss of a batch is the mean over its valid clips; False: it is their sum.
    """

    of_clips: Callable[[Array, Array, Batch], ClipLosses]
    mean: bool = True

    def __call__(self, outputs: Array, frame_lengths: Array, batch: Batch) -> BatchLoss:
        """The sum over valid clips. The caller divides it where `mean`: it knows the whole batch's clips."""
        loss, feasible = self.of_clips(outputs, frame_lengths, batch)
        infeasible = jnp.sum(batch["valid"] & ~feasible)
        return BatchLoss(jnp.sum(jnp.where(batch["valid"], loss, 0.0)), infeasible)

    def scale(self, clips: Array) -> Array:
        """What a batch's sum is multiplied by; `clips` [] is the number of its valid clips."""
        return 1 / jnp.maximum(clips, 1) if self.mean else jnp.ones(())


@dataclass(frozen=True)
class Scoring:
    """How evaluations are shown, and which of them is the best.

    Attributes:
        titles: score to heading, in the order of the table's columns: {"wer": "WER"}.
        line: a format string that makes one line for a person of an evaluation's figures.
        best_by: the score (or "loss") that chooses the best checkpoint.
        highest: the highest value of `best_by` is the best; by default the lowest is.
        ties: what decides between equals, in this order, the lowest value; then it is the later step.
        on_hub: the scores that the Hugging Face hub knows by the same names.
        notes: what the columns mean, as Markdown for the model card.
    """

    titles: Mapping[str, str]
    line: str
    best_by: str
    highest: bool = False
    ties: tuple[str, ...] = ("loss",)
    on_hub: tuple[str, ...] = ()
    notes: str = ""

    def chosen_by(self, best_by: str) -> Scoring:
        """The same, with another score (or "loss") that chooses: the lowest, unless it is the task's own."""
        return replace(self, best_by=best_by, highest=self.highest and best_by == self.best_by)

    def ranks(self, rows: Iterable[Row]) -> dict[int, Rank]:
        """Step to rank, of every checkpoint's evaluation that chooses; the lowest rank is the best.

        An evaluation of averaged weights is of no checkpoint: it has no rank here, but `best` knows it.
        """
        return {
            row["step"]: self._rank(row)
            for row in choosing(rows)
            if self._scored(row) and not row.get("averaged")
        }

    def best(self, rows: Iterable[Row]) -> Row | None:
        """The best of the evaluations that choose; None where none has a finite score."""
        return min((row for row in choosing(rows) if self._scored(row)), key=self._rank, default=None)

    def _scored(self, row: Row) -> bool:
        score = row.get(self.best_by)
        return score is not None and math.isfinite(score)

    def _rank(self, row: Row) -> Rank:
        sign = -1 if self.highest else 1
        ties = (row.get(name) for name in self.ties)
        return (
            sign * row[self.best_by],
            *(math.inf if value is None or math.isnan(value) else value for value in ties),
            -row["step"],
        )


def choosing(rows: Iterable[Row]) -> list[Row]:
    """The evaluations that choose the best checkpoint: those on dev, or on test where a run has no dev.

    Where a run has a dev split, test is evaluated once, at the end, and chooses nothing.
    """
    evaluations = [row for row in rows if row.get("split") != "train"]
    return [row for row in evaluations if row.get("split") == DEV] or evaluations


def _whole_row(row: Any) -> Any:
    return row


@dataclass(frozen=True)
class Task:
    """What a model learns to say of a clip.

    Attributes:
        head: the model's class, called with (config, rngs); the model keeps the config. The model called with
        (input_values, lengths,
            key=...) gives a tuple that begins with outputs [B, T, V] and frame_lengths [B]. So does its
            `from_features`, which training calls where the convolutional encoder is frozen.
        settings: the fields of WavLMConfig that the task decides, such as the head's width.
        targets: an utterance's text to labels.
        loss: what training lowers.
        predict: (outputs, frame_lengths) -> what the host needs of each clip, an array [B, ...] or a tree of
            such arrays; runs under jit.
        decode: a clip's row of that -> its hypothesis.
        score: (references, hypotheses, what is kept of rows) -> scores by name, over the whole set.
        scoring: how the scores are shown and compared.
        keep: a clip's row -> what `score` needs of it.
        decodes_long: `decode` takes about as long as the model does. Then it is called in threads.
    """

    head: Callable[[WavLMConfig, nnx.Rngs], nnx.Module]
    settings: Mapping[str, Any]
    targets: Targets
    loss: Loss
    predict: Callable[[Array, Array], Any]
    decode: Callable[[Any], str]
    score: Callable[[Sequence[str], Sequence[str], Sequence[Any]], dict[str, float]]
    scoring: Scoring
    keep: Callable[[Any], Any] = _whole_row
    decodes_long: bool = False

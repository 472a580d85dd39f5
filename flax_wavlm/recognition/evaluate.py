"""Evaluation of a task over a whole set: its loss, its scores, and every clip's hypothesis."""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flax_wavlm.data.batches import FILLER
from flax_wavlm.errors import UserError, cannot_read, cannot_write, reason, shown
from flax_wavlm.files import write_atomically
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import Params
from flax_wavlm.ops.switch import kernels
from flax_wavlm.progress import bar
from flax_wavlm.recognition.forward import ClipBatches, forward_pass, jit_over_batches, run_over
from flax_wavlm.recognition.task import Batch, Scoring, Task
from flax_wavlm.recognition.threads import Decoding

Array = jax.Array

NEARLY_ALL = 0.95  # share of a set's outputs from which on a model is said to say nothing else


class Prediction(NamedTuple):
    """One clip's hypothesis beside its reference."""

    id: str
    reference: str
    hypothesis: str


class Evaluation(NamedTuple):
    """`figures`: loss, the task's scores, clips and infeasible (a count), over the whole set."""

    figures: dict[str, Any]
    predictions: list[Prediction]


class EvalOutput(NamedTuple):
    """What a batch's evaluation gives."""

    clip: Array  # [B] int32: which clip a row holds
    prediction: Any  # arrays [B, ...], as the task's `predict` gives them
    loss: Array  # [], the sum over valid rows
    infeasible: Array  # [] int


EvalStep = Callable[[Params, Batch], EvalOutput]


def make_eval_step(task: Task, config: WavLMConfig, mesh: Mesh) -> EvalStep:
    """The jitted function (params, batch) -> `EvalOutput`. Sums go over the rows of all devices."""
    forward = forward_pass(task, config)

    def eval_step(params: Params, batch: Batch) -> EvalOutput:
        outputs, frame_lengths = forward(params, batch)
        with kernels(config.kernels):
            loss = task.loss(outputs, frame_lengths, batch)
        return EvalOutput(batch["clip"], task.predict(outputs, frame_lengths), *loss)

    return jit_over_batches(eval_step, mesh)


def evaluate(
    task: Task,
    eval_step: EvalStep,
    params: Params,
    batches: ClipBatches,
    mesh: Mesh,
    *,
    field: str = "batch_size",
) -> Evaluation:
    """Evaluates every clip once. The loss is the mean over clips of the task's loss of each.

    `field` is what sets the batch size. UserError where the device's memory does not suffice for it.
    """
    rows: dict[int, Any] = {}  # what is kept of each clip
    said: dict[int, Future[str]] = {}
    loss, infeasible = 0.0, 0
    decoding: Decoding[str] = Decoding(task.decode, in_threads=task.decodes_long)
    with bar("evaluating", len(batches.clips)) as shown, decoding:
        for output in run_over(eval_step, params, batches, mesh, field=field):
            loss += float(output.loss)
            infeasible += int(output.infeasible)
            own = np.flatnonzero(output.clip != FILLER)
            for i in own:
                row = jax.tree.map(operator.itemgetter(i), output.prediction)
                clip = int(output.clip[i])
                rows[clip], said[clip] = task.keep(row), decoding(row)
            shown.advance(len(own))
        texts = {clip: said[clip].result() for clip in sorted(said)}
    clips = [batches.clips[i] for i in texts]
    references, hypotheses = [clip.text for clip in clips], list(texts.values())
    figures = {
        "loss": loss / len(clips),
        **task.score(references, hypotheses, [rows[i] for i in texts]),
        "clips": len(clips),
        "infeasible": infeasible,
    }
    predictions = [
        Prediction(clip.id, clip.text, hypothesis) for clip, hypothesis in zip(clips, hypotheses, strict=True)
    ]
    return Evaluation(figures, predictions)


def collapse(predictions: Sequence[Prediction]) -> str:
    """A sentence about a model that says nothing, or the same for nearly every clip; "" where it says more.

    Nothing of the kind is shown by references that nearly all are so themselves, nor by a single clip's text.
    """
    hypotheses = [prediction.hypothesis for prediction in predictions]
    references = [prediction.reference for prediction in predictions]
    letter = _most_common(character for text in hypotheses for character in set(text) - {" "})
    alike: dict[str, Callable[[str], bool]] = {
        "blank": lambda said: said == "",
        f"blank or {letter!r}": lambda said: set(said) <= {letter, " "},
    }
    if len(set(references)) > 1:
        text = _most_common(hypotheses)
        alike[shown(text)] = lambda said: said == text
    total = len(predictions)
    for what, is_so in alike.items():
        outputs = sum(map(is_so, hypotheses))
        if outputs >= NEARLY_ALL * total > sum(map(is_so, references)):
            which = "every output is" if outputs == total else f"{outputs} of {total} outputs are"
            return (
                f"{which} {what}. CTC models begin so. If the loss does not fall any more either, try a "
                "lower optim.learning_rate with more optim.warmup_steps, and see that the texts belong to "
                "their audio"
            )
    return ""


def _most_common(texts: Iterable[str]) -> str:
    return next((text for text, _ in Counter(texts).most_common(1)), "")


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One JSON object a line: id, reference, hypothesis. UserError where the file cannot be written."""
    lines = (json.dumps(prediction._asdict(), ensure_ascii=False) for prediction in predictions)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise cannot_write(path, error) from None


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote. UserError where the file cannot be read, or is something else."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Prediction(*(row[name] for name in Prediction._fields)) for row in rows]
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"holds no predictions ({reason(error)})",
            where=path,
            expected=f"lines of JSON objects with {', '.join(Prediction._fields)}",
            do="restore or remove the file",
        ) from error


def figures_line(figures: Mapping[str, Any], scoring: Scoring) -> str:
    """The figures as one line for a person."""
    return scoring.line.format_map(figures)

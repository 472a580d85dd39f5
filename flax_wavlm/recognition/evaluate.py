"""Evaluation: greedy decoding over each clip's own frames, error rates and loss over a whole set."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flax_wavlm.data.batches import FILLER, Batch
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.preprocessor import input_values
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import Params, merge
from flax_wavlm.ops.ctc.api import ctc_loss, reduced_sum
from flax_wavlm.parallel import sharding
from flax_wavlm.recognition.decoding import collapse
from flax_wavlm.recognition.metrics import error_rates, wer_hf_padded

Array = jax.Array
T = TypeVar("T")


class Prediction(NamedTuple):
    """One clip's text beside its reference."""

    id: str
    reference: str
    hypothesis: str


class Evaluation(NamedTuple):
    """`figures`: loss, wer, cer, wer_hf_padded, clips and infeasible, over the whole set."""

    figures: dict[str, float]
    predictions: list[Prediction]


def make_eval_step(
    config: WavLMConfig, mesh: Mesh, *, blank_id: int, reduction: str
) -> Callable[[Params, dict[str, Array]], dict[str, Array]]:
    """The jitted function (params, batch) -> ids [B, T], frames [B], clip [B], loss [], infeasible [].

    Loss and counts are sums over the valid rows of all devices. Whatever the config says of GroupNorm over
    padding, a base model is evaluated as if each clip were alone: figures must not depend on the batches.
    """
    graphdef, _ = structure(dataclasses.replace(config, masked_group_norm=True))

    def eval_step(params: Params, batch: dict[str, Array]) -> dict[str, Array]:
        logits, frames = merge(graphdef, params)(input_values(batch), batch["lengths"])
        loss, feasible = ctc_loss(logits, frames, batch["labels"], batch["label_lengths"], blank_id=blank_id)
        return {
            "ids": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "frames": frames,
            "clip": batch["clip"],
            "loss": reduced_sum(loss, batch["label_lengths"], batch["valid"], reduction=reduction),
            "infeasible": jnp.sum(batch["valid"] & ~feasible),
        }

    return jax.jit(
        eval_step,
        in_shardings=(None, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )


def evaluate(
    eval_step: Callable[[Params, dict[str, Array]], dict[str, Array]],
    params: Params,
    batches: Iterable[Batch],
    clips: Sequence[Clip],
    tokenizer: CTCTokenizer,
    mesh: Mesh,
) -> Evaluation:
    """Evaluates every clip once. The loss is the mean over clips of what the loss's reduction gives each."""
    paths: dict[int, np.ndarray] = {}
    loss, infeasible = 0.0, 0
    outputs = (eval_step(params, sharding.put_batch(mesh, batch)) for batch in batches)
    for output in map(jax.device_get, prefetch(outputs, 2)):
        loss += float(output["loss"])
        infeasible += int(output["infeasible"])
        for clip, ids, frames in zip(output["clip"], output["ids"], output["frames"], strict=True):
            if clip != FILLER:
                paths[int(clip)] = ids[:frames]
    order = sorted(paths)
    references = [clips[i].text for i in order]
    hypotheses = [tokenizer.decode(collapse(paths[i], tokenizer.blank_id), collapsed=True) for i in order]
    figures = {
        "loss": loss / len(order),
        **error_rates(references, hypotheses),
        "wer_hf_padded": wer_hf_padded(references, [paths[i] for i in order], tokenizer),
        "clips": len(order),
        "infeasible": infeasible,
    }
    predictions = [
        Prediction(clips[i].id, reference, hypothesis)
        for i, reference, hypothesis in zip(order, references, hypotheses, strict=True)
    ]
    return Evaluation(figures, predictions)


def prefetch(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items, each made `count` before it is given: the device works while the host collects."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One JSON object a line: id, reference, hypothesis. UserError where the file cannot be written."""
    lines = (json.dumps(prediction._asdict(), ensure_ascii=False) for prediction in predictions)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; give another place") from None


def figures_line(figures: dict[str, Any]) -> str:
    """The figures as one line for a person."""
    return (
        f"loss {figures['loss']:.4f}  WER {figures['wer']:.4f}  CER {figures['cer']:.4f}  "
        f"(WER as the padded Trainer: {figures['wer_hf_padded']:.4f})  {figures['clips']} clips"
    )

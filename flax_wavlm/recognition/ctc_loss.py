"""The loss of CTC tasks. It needs only jax and flax, so a training step can be measured without the rest."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from flax_wavlm.ops.ctc.api import ctc_loss
from flax_wavlm.recognition.task import Batch, ClipLosses, Loss

Array = jax.Array


def loss_of_ctc(blank_id: int, reduction: str = "mean") -> Loss:
    """The CTC loss with the reductions of `torch.nn.functional.ctc_loss`, and its `zero_infinity`.

    "mean" divides each clip's loss by its number of labels and takes the mean over clips. "sum" adds up.
    """
    return Loss(functools.partial(_losses, blank_id=blank_id, mean=reduction == "mean"), reduction == "mean")


def _losses(logits: Array, frame_lengths: Array, batch: Batch, *, blank_id: int, mean: bool) -> ClipLosses:
    labels, label_lengths = batch["labels"], batch["label_lengths"]
    loss, feasible = ctc_loss(logits, frame_lengths, labels, label_lengths, blank_id=blank_id)
    if mean:
        loss = loss / jnp.maximum(label_lengths, 1)
    return ClipLosses(loss, feasible)

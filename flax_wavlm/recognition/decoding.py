"""Decoders: from what a CTC model says of every frame to what was said.

A decoder's work is in two parts. On the device, it takes of every frame what the host needs of it, its
evidence. On the host, it turns the evidence of a whole stretch of speech into hypotheses. Between the two,
the evidence of a long recording's windows is joined. So a decoder works for clips and for hours alike.

    B  clips      T  frames      V  labels of the model      U  labels of a hypothesis
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
NO_FRAME = -1  # what a path holds after its clip's last frame


class Hypothesis(NamedTuple):
    """What may have been said."""

    ids: np.ndarray  # int [U], without blanks
    frames: np.ndarray  # int [U, 2]: each label's first frame, and the one after its last
    confidences: np.ndarray  # float [U]: the mean posterior of each label over its frames, 0 to 1
    score: float  # of the decoder; higher is better
    ctc_score: float | None = None  # where a beam search says it: the log-probability of the labels by CTC
    lm_score: float | None = None  # where there is a language model: the words' natural log-probability by it


class Decoder(Protocol):
    """Log-probabilities and lengths in, hypotheses out."""

    @property
    def takes_long(self) -> bool:
        """Whether `hypotheses` takes about as long as the model does. Then it is called in threads."""
        ...

    @property
    def alternatives(self) -> int:
        """How many alternatives a transcript has, the best one among them; 0: none, there is but one text."""
        ...

    def describe(self) -> str:
        """How it decodes, in a few words for the log."""
        ...

    def evidence(self, log_probs: Array, frame_lengths: Array) -> dict[str, Array]:
        """What the host needs of each frame, arrays [B, T, ...]; runs under jit.

        Args:
            log_probs: [B, T, V] float32.
            frame_lengths: [B] int, the valid frames of each clip; what is said of others is not read.
        """
        ...

    def hypotheses(self, evidence: Mapping[str, np.ndarray]) -> list[Hypothesis]:
        """Of one stretch of speech, from arrays [T, ...] of its own frames; at least one, the best first."""
        ...


class GreedyDecoder(NamedTuple):
    """The most probable label of every frame (best path decoding, Graves et al. 2006, section 3.2)."""

    blank_id: int
    temperature: float = 1.0  # log-probabilities are divided by it before they are taken as confidences

    @property
    def takes_long(self) -> bool:
        return False

    @property
    def alternatives(self) -> int:
        return 0

    def describe(self) -> str:
        return "greedy"

    def evidence(self, log_probs: Array, frame_lengths: Array) -> dict[str, Array]:
        """`path` [B, T] int32 and `log_prob` [B, T] float32, the label's at the temperature."""
        if self.temperature != 1.0:
            log_probs = jax.nn.log_softmax(log_probs / self.temperature)
        return {"path": best_path(log_probs, frame_lengths), "log_prob": log_probs.max(axis=-1)}

    def hypotheses(self, evidence: Mapping[str, np.ndarray]) -> list[Hypothesis]:
        path, log_prob = evidence["path"], evidence["log_prob"]
        begins, ends = runs(path)
        said = path[begins] != self.blank_id
        posterior = np.concatenate([[0.0], np.cumsum(np.exp(log_prob, dtype=np.float64))])
        means = (posterior[ends] - posterior[begins]) / (ends - begins)
        return [
            Hypothesis(
                path[begins][said],
                np.stack([begins, ends], axis=1)[said],
                np.clip(means[said], 0.0, 1.0),
                float(log_prob.sum(dtype=np.float64)),
            )
        ]


def every_posterior(log_probs: Array, frame_lengths: Array) -> dict[str, Array]:
    """The evidence of no decoder: `log_probs` [B, T, V] as they are, for an alignment."""
    return {"log_probs": log_probs}


def best_path(logits: Array, frame_lengths: Array) -> Array:
    """The most probable label of every frame.

    Args:
        logits: [B, T, V].
        frame_lengths: [B] int, the valid frames of each clip.
    Returns:
        [B, T] int32; `NO_FRAME` behind a clip's own frames.
    """
    ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.arange(ids.shape[1]) < frame_lengths[:, None], ids, NO_FRAME)


def path_of_clip(row: np.ndarray) -> np.ndarray:
    """The clip's own frames [T_i] of its row [T] of `best_path`."""
    return row[row != NO_FRAME]


def runs(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first frame of each run of equal labels in a path [T], and the one after its last."""
    changes = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    bounds = np.concatenate([[0], changes, [len(ids)]]) if len(ids) else np.zeros(1, int)
    return bounds[:-1], bounds[1:]


def collapse(ids: np.ndarray, blank_id: int) -> np.ndarray:
    """The labels that a path of frame labels [T] stands for: repeats merged, then blanks dropped.

    Source: the map B of Graves et al. 2006, section 3.1.
    """
    ids = np.asarray(ids)
    begins, _ = runs(ids)
    return ids[begins][ids[begins] != blank_id]

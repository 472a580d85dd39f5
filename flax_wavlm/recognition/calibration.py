"""Confidences that mean what they say: a temperature, fitted on clips whose text is known.

A CTC model's posteriors are not the probabilities that its words are right. Logits are divided by a
temperature before posteriors are taken (Guo et al. 2017). It is the one by which words' confidences best
predict whether they are right. The greedy text does not depend on it.

    B  clips   T  frames   V  labels of the model   K  temperatures   W  words   U  labels of a hypothesis
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jiwer
import numpy as np
from jax.sharding import Mesh

from flax_wavlm.data.batches import FILLER
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import Params
from flax_wavlm.recognition.decoding import GreedyDecoder, best_path, path_of_clip
from flax_wavlm.recognition.forward import ClipBatches, forward_pass, jit_over_batches, run_over
from flax_wavlm.recognition.task import Batch, Task
from flax_wavlm.recognition.transcript import words_of_labels

Array = jax.Array

TEMPERATURES = 2.0 ** (np.arange(-8, 19) / 8)  # 0.5 to 4.8, a step is 9 %; 1 is among them
AT_1 = int(np.flatnonzero(TEMPERATURES == 1.0)[0])
# Few words say little, and words without an error alone would have the lowest temperature there is. So log
# temperatures are taken as normal around 0 with this deviation, which counts as much as a few words do.
PRIOR = 0.5
LEAST = 1e-4  # a word that was never to be wrong, and is, would cost infinitely much

MOST_CLIPS = 300  # that a temperature is fitted on, and their seconds
MOST_SECONDS = 1200.0


class JudgedWords(NamedTuple):
    """The words that a model said."""

    confidences: np.ndarray  # float [W, K], at each of TEMPERATURES
    right: np.ndarray  # bool [W]


def fit_temperature(words: JudgedWords) -> float:
    """The temperature of the lowest cross-entropy; 1 where there are no words."""
    return float(TEMPERATURES[np.argmin(_costs(words))])


def _costs(words: JudgedWords) -> np.ndarray:
    """[K] of each temperature: the words' cross-entropies, added up, and what the prior adds."""
    costs = cross_entropies(words.confidences, words.right[:, None]).sum(axis=0)
    return costs + np.log(TEMPERATURES) ** 2 / (2 * PRIOR**2)


def cross_entropies(confidences: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of each word, in nats: -log of the probability that its confidence gives to what is true of it."""
    probabilities = np.clip(np.where(right, confidences, 1 - confidences), LEAST, 1.0)
    return -np.log(probabilities)


def calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """The expected calibration error (Guo et al. 2017, section 2) of words' confidences [W], 0 to 1.

    The words are put into bins of equal width by their confidence. It is the mean distance between a bin's
    share of right words and its mean confidence, by the words in each bin.
    """
    which = np.minimum((confidences * bins).astype(int), bins - 1)
    off = np.bincount(which, weights=right - confidences, minlength=bins)
    return float(np.abs(off).sum() / len(confidences))


def some_clips(clips: Sequence[Clip]) -> list[Clip]:
    """From the whole of a set, always the same, and one at least: `MOST_CLIPS` and about `MOST_SECONDS`."""
    share = min(1.0, MOST_CLIPS / len(clips))
    share = min(share, MOST_SECONDS * SAMPLE_RATE / sum(len(clip.samples) for clip in clips))
    return [clips[i] for i in np.linspace(0, len(clips) - 1, max(1, int(share * len(clips)))).astype(int)]


def judged_words(
    task: Task,
    config: WavLMConfig,
    params: Params,
    tokenizer: CTCTokenizer,
    batches: ClipBatches,
    mesh: Mesh,
    *,
    field: str = "batch_size",
) -> JudgedWords:
    """What a model says of clips whose text is known, judged. Memory: K numbers a frame of a batch.

    Args:
        task: character CTC; `tokenizer` is its own.
        field: what sets the batch size.
    """
    run = jit_over_batches(_at_temperatures(forward_pass(task, config)), mesh)
    found = []
    for rows, paths, posteriors in run_over(run, params, batches, mesh, field=field):
        for row, path, posterior in zip(rows, paths, posteriors, strict=True):
            if row != FILLER:
                path = path_of_clip(path)
                found.append(judge(tokenizer, path, posterior[: len(path)], batches.clips[row]))
    return JudgedWords(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _at_temperatures(
    forward: Callable[[Params, Batch], tuple[Array, Array]],
) -> Callable[[Params, Batch], tuple[Array, Array, Array]]:
    """The function (params, batch) -> clip [B], best path [B, T], its posteriors [B, T, K]."""

    def run(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        logits, frame_lengths = forward(params, batch)
        return batch["clip"], best_path(logits, frame_lengths), best_posteriors(logits)

    return run


def best_posteriors(logits: Array) -> Array:
    """The posterior of each frame's most probable label, at each of `TEMPERATURES`.

    Args:
        logits: [B, T, V].
    Returns:
        [B, T, K] float32.
    """
    below = (logits - logits.max(axis=-1, keepdims=True)).astype(jnp.float32)
    at_each = jax.lax.map(  # one after the other: an array of K vocabularies a frame would be large
        lambda temperature: 1 / jnp.exp(below / temperature).sum(axis=-1),
        jnp.asarray(TEMPERATURES, jnp.float32),
    )
    return jnp.moveaxis(at_each, 0, -1)


def judge(tokenizer: CTCTokenizer, path: np.ndarray, posteriors: np.ndarray, clip: Clip) -> JudgedWords:
    """The words of a clip's best path [T], with `posteriors` [T, K] of its frames."""
    [best] = GreedyDecoder(tokenizer.blank_id).hypotheses(
        {"path": path, "log_prob": np.log(posteriors[:, AT_1])}
    )
    said = list(words_of_labels(tokenizer, best.ids))
    confidences = [_mean(posteriors, best.frames[part]) for _, part in said]
    return JudgedWords(
        np.array(confidences).reshape(-1, posteriors.shape[1]),
        right_words([text for text, _ in said], reference_words(tokenizer, clip)),
    )


def _mean(posteriors: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The mean [K] of the posteriors [T, K] over spans of frames [U, 2]."""
    return np.concatenate([posteriors[begin:end] for begin, end in frames]).mean(axis=0)


def reference_words(tokenizer: CTCTokenizer, clip: Clip) -> list[str]:
    """The words of a clip's text, as a transcript that says the same has them."""
    return [text for text, _ in words_of_labels(tokenizer, clip.labels)]


def right_words(words: Sequence[str], reference: Sequence[str]) -> np.ndarray:
    """Which of the words [W] stand in the reference, by the alignment of the fewest edits."""

    def joined(texts: Iterable[str]) -> str:
        return " ".join("".join(text.split()) for text in texts)  # a word with a blank in it stays one

    aligned = jiwer.process_words([joined(reference)], [joined(words)])
    right = np.zeros(len(words), bool)
    for chunk in aligned.alignments[0]:
        if chunk.type == "equal":
            right[chunk.hyp_start_idx : chunk.hyp_end_idx] = True
    return right

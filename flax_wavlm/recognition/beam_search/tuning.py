"""The weights of a language model, found on speech whose text is known.

The model hears the speech once. Its log-probabilities are kept, and decoded again for each pair of weights.

    T  frames of a clip      V  labels of the model
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN
from flax_wavlm.parallel.machine import held_bytes, in_gb, in_mb, machine_bytes
from flax_wavlm.recognition.beam_search.decoder import BeamDecoder
from flax_wavlm.recognition.beam_search.folder import write_lm
from flax_wavlm.recognition.decoding import collapse
from flax_wavlm.recognition.metrics import error_rates
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.recognition.threads import cores

log = logging.getLogger(__name__)

# The first pairs are those of all these; then smaller and smaller steps are made from the best one.
ALPHAS, BETAS = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 1.5, 3.0)
STEPS = ((0.25, 0.75), (0.125, 0.375))
MOST_MOVES = 4  # with steps of one size
DIGITS = 4  # of weights, so that two ways to a pair lead to the same one


class KnownClip(NamedTuple):
    """A clip whose text is known."""

    text: str
    log_probs: np.ndarray  # float32 [T, V], of its own frames


class Tried(NamedTuple):
    """A pair of weights, and its error rate."""

    alpha: float
    beta: float
    error_rate: float

    @property
    def rank(self) -> tuple[float, float, float, float]:
        """The lowest is the best. Among equals, the language model that says less is."""
        return self.error_rate, self.alpha, abs(self.beta), self.beta


class Tuning(NamedTuple):
    """The pairs that were tried, beside greedy decoding."""

    score: str  # the error rate's name: "wer" or "cer"
    greedy: float  # its value by greedy decoding
    tried: list[Tried]  # in the order of trying

    @property
    def best(self) -> Tried:
        return min(self.tried, key=lambda tried: tried.rank)


def tune(decoder: BeamDecoder, clips: Sequence[KnownClip], tokenizer: CTCTokenizer) -> Tuning:
    """Decodes clips with many pairs of weights; deterministic.

    Args:
        decoder: with a language model; its settings but for alpha and beta are kept.
        clips: whose text has gone through the tokenizer's text rule.
        tokenizer: the model's.
    """
    references = [clip.text for clip in clips]
    score = score_of(references)
    greedy = [collapse(clip.log_probs.argmax(axis=-1), tokenizer.blank_id) for clip in clips]
    longest_first = np.argsort([-len(clip.log_probs) for clip in clips], kind="stable")

    with ThreadPoolExecutor(cores()) as threads:

        def error_rate(alpha: float, beta: float) -> float:
            settings = dataclasses.replace(decoder.settings, alpha=alpha, beta=beta, alternatives=1)
            weighted = decoder.with_settings(settings)

            def text(clip: int) -> str:
                found = weighted.hypotheses({"log_probs": clips[clip].log_probs})[0]
                return _text(tokenizer, found.ids)

            texts = dict(zip(longest_first, threads.map(text, longest_first), strict=True))
            found = error_rates(references, [texts[i] for i in range(len(clips))])[score]
            log.info("alpha %-6g beta %-6g %s %.4f", alpha, beta, score.upper(), found)
            return found

        tried = search_weights(error_rate)
    return Tuning(score, error_rates(references, [_text(tokenizer, ids) for ids in greedy])[score], tried)


def tune_on(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    unusable: Sequence[Skipped] = (),
    *,
    name: str,
    batch_size: int = 8,
    channel: str = "auto",
) -> Tuning:
    """`tune` of a model's decoder on a corpus's split. The log has each pair that is tried.

    Args:
        recogniser: whose decoder is a beam search with a language model.
        utterances, unusable, name, batch_size, channel: as for `Recogniser.evaluate`.
    Raises:
        UserError: as `Recogniser.evaluate`; there is no language model; the log-probabilities of all clips do
            not fit into memory.
    """
    decoder = recogniser.decoder
    if not isinstance(decoder, BeamDecoder) or decoder.model is None:
        raise UserError("there is no language model to tune", expected="an ARPA file", do="give decoding.lm")
    clips, _ = recogniser.clips(utterances, unusable, name=name, batch_size=batch_size, channel=channel)
    frames = sum(int(recogniser.config.frame_count(len(clip.samples))) for clip in clips)
    check_memory(frames, recogniser.config.vocab_size)
    log_probs = recogniser.log_probs(clips, batch_size=batch_size)
    known = [KnownClip(clip.text, array) for clip, array in zip(clips, log_probs, strict=True)]
    return tune(decoder, known, recogniser.tokenizer)


def search_weights(error_rate: Callable[[float, float], float]) -> list[Tried]:
    """Tries pairs of weights from coarse to fine: first a grid, then the neighbours of the best pair.

    The neighbours are tried until none is better, with steps of one size after the other. So a best pair
    outside the grid is found too. Alpha is never below 0.
    """
    tried: dict[tuple[float, float], Tried] = {}

    def attempt(alpha: float, beta: float) -> None:
        pair = round(alpha, DIGITS), round(beta, DIGITS)
        if pair not in tried and pair[0] >= 0:
            tried[pair] = Tried(*pair, error_rate(*pair))

    def best() -> Tried:
        return min(tried.values(), key=lambda one: one.rank)

    for alpha in ALPHAS:
        for beta in BETAS:
            attempt(alpha, beta)
    coarse = ALPHAS[1] - ALPHAS[0], BETAS[1] - BETAS[0]
    for alpha_step, beta_step in (coarse, *STEPS):
        for _ in range(MOST_MOVES):
            centre = best()
            for alpha in (centre.alpha - alpha_step, centre.alpha, centre.alpha + alpha_step):
                for beta in (centre.beta - beta_step, centre.beta, centre.beta + beta_step):
                    attempt(alpha, beta)
            if best() == centre:
                break
    return list(tried.values())


def score_of(texts: Sequence[str]) -> str:
    """The error rate that judges, as for `train.best_by`: "cer" where most texts are one word, else "wer".

    Texts without blanks between words are such ones.
    """
    single = sum(len(text.split()) == 1 for text in texts)
    return "cer" if 2 * single > len(texts) else "wer"


def check_memory(frames: int, labels: int) -> None:
    """UserError where the log-probabilities of so many frames do not fit into the machine's memory."""
    needed, free = 4 * frames * labels, machine_bytes() - held_bytes()
    log.info("log-probabilities to keep: %s", in_mb(needed))
    if needed > free:
        raise UserError(
            f"the log-probabilities of {frames:,} frames and {labels} labels are {in_gb(needed)}",
            expected=f"at most the {in_gb(max(free, 0))} of memory that are free",
            do="give a smaller split",
        )


def _text(tokenizer: CTCTokenizer, ids: np.ndarray) -> str:
    return tokenizer.normalise_hypothesis(tokenizer.decode(ids, collapsed=True))


def save_tuned(folder: Path, arpa: Path, recogniser: Recogniser, best: Tried) -> Path:
    """Writes the language model of `tune_on` with the best weights into the model's folder; returns its file.

    Args:
        arpa: the file that it was read from.
    Raises:
        UserError: it cannot be written.
    """
    decoder = recogniser.decoder
    assert isinstance(decoder, BeamDecoder)
    assert decoder.model is not None
    settings = dataclasses.replace(decoder.settings, alpha=best.alpha, beta=best.beta)
    words = set(decoder.model.words) - {BEGIN, END, UNKNOWN}
    return write_lm(folder, arpa, words, settings, recogniser.tokenizer)

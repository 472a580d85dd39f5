"""Prefix beam search with an n-gram model and hot words, as a decoder of a `Recogniser`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.language_model.model import NGramModel
from flax_wavlm.language_model.tables import NGramTables
from flax_wavlm.recognition.alignment import align_labels, frames_needed
from flax_wavlm.recognition.beam_search.fusion import Fusion, unweighted, weighted
from flax_wavlm.recognition.beam_search.hotwords import hotwords_of, spelt_hotwords, words_of
from flax_wavlm.recognition.beam_search.lexicon import NO_WORDS, label_kinds, lexicon_of
from flax_wavlm.recognition.beam_search.search import Found, search
from flax_wavlm.recognition.beam_search.settings import BeamSettings
from flax_wavlm.recognition.decoding import Hypothesis, collapse

Array = jax.Array
DEFAULTS = BeamSettings()
SPARE = 4  # hypotheses of the search for each one that is given, as different labels may read the same


@dataclass(frozen=True, eq=False)
class BeamDecoder:
    """A `Decoder` whose hypotheses are the best ones of a prefix beam search. Threads may share it.

    Attributes:
        tokenizer: of the model.
        settings: of the search.
        model: the language model; None: there is none.
        fusion: what prefixes are judged by.
        temperature: log-probabilities are divided by it before posteriors are taken as confidences.
        lm_name: what the log calls the language model.
    """

    tokenizer: CTCTokenizer
    settings: BeamSettings
    model: NGramModel | None
    fusion: Fusion
    temperature: float = 1.0
    lm_name: str = "the language model"

    @property
    def takes_long(self) -> bool:
        return True

    @property
    def alternatives(self) -> int:
        return self.settings.alternatives

    def describe(self) -> str:
        """E.g. "beam 100, lm.arpa, alpha 0.5, beta 1.5"."""
        settings = self.settings
        weights = "no language model"
        if self.model is not None:
            weights = f"{Path(self.lm_name).name}, alpha {settings.alpha:g}, beta {settings.beta:g}"
        return f"beam {settings.beam}, {weights}"

    @classmethod
    def of(
        cls,
        tokenizer: CTCTokenizer,
        lm: NGramTables | None = None,
        settings: BeamSettings = DEFAULTS,
        *,
        hotwords: Sequence[str] = (),
        temperature: float = 1.0,
        lm_name: str = "the language model",
    ) -> BeamDecoder:
        """A decoder for a model's labels.

        Args:
            tokenizer: spells the words of the language model and the hot words, by its text rule.
            lm: None: without a language model; then alpha and beta count for nothing. What the rule changes
                or drops of its words is logged.
            settings: of the search.
            hotwords: words, or phrases of several words, that are expected. One that the language model
                lacks is no unknown word.
            temperature: of the confidences.
            lm_name: what messages call the language model, e.g. its file.
        Raises:
            UserError: a setting cannot be used, the language model shares no word with the vocabulary, or a
                hot word cannot be spelt in it.
        """
        kinds = label_kinds(tokenizer)
        spelt = spelt_hotwords(tokenizer, hotwords, kinds)
        words = [word for labels in spelt for word in words_of(labels, kinds)]
        model = None if lm is None else NGramModel.of(lm)
        lexicon = NO_WORDS if lm is None else lexicon_of(tokenizer, lm, kinds, name=lm_name, also=words)
        fusion = unweighted(
            kinds,
            tokenizer.delimiter_id,
            model,
            lexicon,
            hotwords_of(spelt, kinds, tokenizer.delimiter_id) if spelt else None,
        )
        decoder = cls(tokenizer, settings, model, fusion, temperature, lm_name)
        return decoder.with_settings(settings)

    def with_settings(self, settings: BeamSettings) -> BeamDecoder:
        """The same language model and hot words under other settings; cheap. UserError as `of`."""
        _check(settings)
        return dataclasses.replace(
            self, settings=settings, fusion=weighted(self.fusion, self.model, settings)
        )

    def evidence(self, log_probs: Array, frame_lengths: Array) -> dict[str, Array]:
        """`log_probs` [B, T, V] as they are."""
        return {"log_probs": log_probs}

    def hypotheses(self, evidence: Mapping[str, np.ndarray]) -> list[Hypothesis]:
        """The best ones, which differ in their text. Other threads go on meanwhile.

        The best one's labels have the times of its best path. The other ones' frames are all 0, and so are
        their confidences. UserError where the model's outputs are not numbers.
        """
        log_probs = np.asarray(evidence["log_probs"], np.float32)
        found = self._search(log_probs, SPARE * self.settings.alternatives)
        begins = np.concatenate([[0], found.ends])
        texts: set[str] = set()
        best: list[Hypothesis] = []
        for i, (begin, end) in enumerate(itertools.pairwise(begins)):
            ids = found.labels[begin:end].astype(np.intp)
            text = self.tokenizer.decode(ids, collapsed=True)
            if text in texts:
                continue
            texts.add(text)
            score, ctc_score = float(found.scores[i]), float(found.ctc[i])
            lm_score = None if self.model is None else float(found.lm[i])
            frames, confidences = np.zeros((len(ids), 2), np.intp), np.zeros(len(ids))
            if not best:
                ids, frames, confidences = self._timed(ids, log_probs)
            best.append(Hypothesis(ids, frames, confidences, score, ctc_score, lm_score))
            if len(best) == self.settings.alternatives:
                break
        return best

    def live_beams(self, evidence: Mapping[str, np.ndarray]) -> float:
        """The mean number of hypotheses that are kept after a frame."""
        return self._search(np.asarray(evidence["log_probs"], np.float32), 1).live

    def _search(self, log_probs: np.ndarray, wanted: int) -> Found:
        if np.isnan(log_probs).any():
            raise UserError(
                "the model's outputs are not numbers",
                do="use a checkpoint from before its training diverged",
            )
        settings = self.settings
        return search(
            np.ascontiguousarray(log_probs),
            self.tokenizer.blank_id,
            self.fusion,
            settings.beam,
            float(settings.token_threshold),
            float(settings.beam_threshold),
            wanted,
        )

    def _timed(self, ids: np.ndarray, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels with those of the blanks before and behind them that the model says, frames, confidences."""
        blank, delimiter = self.tokenizer.blank_id, self.tokenizer.delimiter_id
        said = collapse(log_probs.argmax(axis=1), blank)
        if delimiter is not None and len(ids) and len(said):
            before = [delimiter] if said[0] == delimiter else []
            behind = [delimiter] if said[-1] == delimiter else []
            longer = np.array([*before, *ids, *behind], np.intp)
            ids = longer if frames_needed(longer) <= len(log_probs) else ids
        frames = align_labels(log_probs, ids, blank).frames
        posteriors = np.exp(_tempered(log_probs, self.temperature)[:, ids], dtype=np.float64)
        means = [posteriors[begin:end, i].mean() for i, (begin, end) in enumerate(frames)]
        return ids, frames, np.clip(means, 0.0, 1.0)


def _tempered(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """[T, V]: log-softmax of the logits divided by the temperature."""
    if temperature == 1.0:
        return log_probs
    divided = log_probs / np.float32(temperature)
    divided -= divided.max(axis=1, keepdims=True)
    return np.asarray(divided - np.log(np.exp(divided).sum(axis=1, keepdims=True)))


def _check(settings: BeamSettings) -> None:
    """UserError where a setting cannot be used."""
    finite = math.isfinite
    wrong = {
        "beam": (settings.beam >= 1, "a whole number from 1"),
        "alternatives": (settings.alternatives >= 1, "a whole number from 1"),
        "alpha": (finite(settings.alpha) and settings.alpha >= 0, "a number from 0"),
        "beta": (finite(settings.beta), "a number"),
        "unknown_offset": (finite(settings.unknown_offset), "a number"),
        "hotword_weight": (finite(settings.hotword_weight) and settings.hotword_weight >= 0, "from 0"),
        "token_threshold": (settings.token_threshold <= 0, "at most 0, a natural logarithm"),
        "beam_threshold": (settings.beam_threshold > 0, "above 0"),
    }
    for field, (usable, expected) in wrong.items():
        if not usable:
            raise UserError(field=field, found=getattr(settings, field), expected=expected)

"""Beam search against the enumeration of every path, with and without a language model and hot words."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.language_model.model import NGramModel
from flax_wavlm.language_model.tables import NGramTables, Table
from flax_wavlm.recognition.beam_search.decoder import BeamDecoder
from flax_wavlm.recognition.beam_search.settings import BeamSettings
from flax_wavlm.recognition.decoding import Hypothesis, collapse
from flax_wavlm.recognition.transcript import words_of_labels

EVERYTHING = BeamSettings(
    beam=10**6, token_threshold=-math.inf, beam_threshold=math.inf, alternatives=10**6, hotword_weight=3.0
)
LETTERS = CTCTokenizer.from_texts(["ab a"])  # a b | [UNK] [PAD] <s> </s>
CHINESE = CTCTokenizer.from_texts(["你a"])


def lm_of(words: Sequence[str], seed: int = 0, order: int = 3) -> NGramTables:
    """A language model of random n-grams; each one's context is an n-gram too."""
    rng = np.random.default_rng(seed)
    every = ("<unk>", "<s>", "</s>", *words)
    ids = np.arange(len(every), dtype=np.int32)[:, None]
    tables = []
    for n in range(order):
        if n:
            grown = [(*context, word) for context in ids.tolist() for word in range(len(every))]
            ids = np.array([ngram for ngram in grown if rng.random() < 0.6], np.int32)
        tables.append(Table(ids, -3 * rng.random(len(ids)), -rng.random(len(ids))))
    return NGramTables(every, tuple(tables))


def log_probs_of(tokenizer: CTCTokenizer, frames: int, seed: int = 0, labels: str = "") -> np.ndarray:
    """Random log-probabilities [T, V], of these labels and the blank alone where some are given."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(tokenizer.size, 0.5), size=frames) + 1e-3
    if labels:
        kept = [tokenizer.blank_id, *(tokenizer.tokens.get(c, tokenizer.delimiter_id) for c in labels)]
        probs[:, np.setdiff1d(np.arange(tokenizer.size), kept)] = 0
    with np.errstate(divide="ignore"):
        return np.log(probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)


def every_text(
    log_probs: np.ndarray,
    tokenizer: CTCTokenizer,
    lm: NGramTables | None,
    settings: BeamSettings,
    hotwords: Sequence[str] = (),
) -> dict[str, float]:
    """Each text's score by its definition: a sum over all paths of one label a frame."""
    log_probs = log_probs.astype(np.float64)
    model = None if lm is None else NGramModel.of(lm)
    possible = [np.flatnonzero(row > -np.inf).tolist() for row in log_probs]
    ctc: dict[str, float] = {}
    labels: dict[str, np.ndarray] = {}
    for path in itertools.product(*possible):
        ids = collapse(np.array(path), tokenizer.blank_id)
        text = " ".join(tokenizer.decode(ids, collapsed=True).split())
        ctc[text] = np.logaddexp(ctc.get(text, -np.inf), log_probs[np.arange(len(path)), path].sum())
        labels[text] = ids
    scores = {}
    for text, log_prob in ctc.items():
        words = [word for word, _ in words_of_labels(tokenizer, labels[text])]
        score = log_prob + settings.hotword_weight * sum(
            words[i : i + len(hot.split())] == hot.split() for hot in hotwords for i in range(len(words))
        )
        if lm is not None and model is not None:
            expected = {w for hot in hotwords for w in hot.split()}
            unknown = sum(word not in lm.words and word not in expected for word in words)
            known = model.score(words, begin=settings.boundaries, end=settings.boundaries)
            lm_score = known + unknown * settings.unknown_offset * math.log(10)
            score += settings.alpha * lm_score + settings.beta * len(words)
        scores[text] = score
    return scores


def found_texts(tokenizer: CTCTokenizer, found: Sequence[Hypothesis]) -> dict[str, float]:
    texts = {" ".join(tokenizer.decode(one.ids, collapsed=True).split()): one.score for one in found}
    assert len(texts) == len(found)
    return texts


CASES = {
    "no language model": (LETTERS, None, {}, []),
    "language model": (LETTERS, ["a", "ab", "ba"], {"alpha": 0.7, "beta": 0.4}, []),
    "no boundaries": (LETTERS, ["a", "ab", "ba"], {"alpha": 0.7, "beta": -2.0, "boundaries": False}, []),
    "hot words": (LETTERS, None, {}, ["ab", "a b", "a"]),
    "hot words and language model": (LETTERS, ["a", "ba"], {"alpha": 0.7, "beta": 0.4}, ["b", "a b"]),
    "no blanks between words": (CHINESE, ["你", "a"], {"alpha": 0.7, "beta": 0.4}, ["a 你", "你 你"]),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_exhaustive_enumeration(case: str) -> None:
    tokenizer, words, changed, hotwords = CASES[case]
    settings = replace(EVERYTHING, **changed)
    lm = None if words is None else lm_of(words)
    decoder = BeamDecoder.of(tokenizer, lm, settings, hotwords=hotwords)
    for seed in range(3):
        log_probs = log_probs_of(tokenizer, 5, seed, labels="你a " if tokenizer is CHINESE else "ab ")
        found = decoder.hypotheses({"log_probs": log_probs})
        expected = every_text(log_probs, tokenizer, lm, settings, hotwords)
        scores = found_texts(tokenizer, found)
        assert scores.keys() == expected.keys()
        np.testing.assert_allclose([scores[text] for text in expected], list(expected.values()), atol=1e-4)
        assert [one.score for one in found] == sorted(scores.values(), reverse=True)

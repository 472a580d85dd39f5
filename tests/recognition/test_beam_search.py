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


def spoken(tokenizer: CTCTokenizer, text: str, sureness: float) -> np.ndarray:
    """Log-probabilities [T, V] of a text: two frames a label and a blank frame after it."""
    labels = tokenizer.encode(text)
    path = [id for label in labels for id in (label, label, tokenizer.blank_id)]
    probs = np.full((len(path), tokenizer.size), (1 - sureness) / (tokenizer.size - 1))
    probs[np.arange(len(path)), path] = sureness
    return np.log(probs).astype(np.float32)


def ctc_log_prob(log_probs: np.ndarray, labels: Sequence[int], blank_id: int) -> float:
    """Of labels, by the forward algorithm (Graves et al. 2006, section 4.1)."""
    states = [blank_id, *itertools.chain.from_iterable((label, blank_id) for label in labels)]
    alpha = np.full(len(states), -np.inf)
    alpha[:2] = log_probs[0, states[:2]]
    may_skip = np.array([i > 1 and states[i] not in (blank_id, states[i - 2]) for i in range(len(states))])
    for row in log_probs[1:].astype(np.float64):
        one, two = np.r_[-np.inf, alpha[:-1]], np.r_[-np.inf, -np.inf, alpha[:-2]]
        alpha = np.logaddexp.reduce([alpha, one, np.where(may_skip, two, -np.inf)]) + row[states]
    return float(np.logaddexp(*alpha[-2:]))


@pytest.mark.parametrize("width", [1, 3, 20])
def test_a_long_recording(width: int) -> None:
    """Prefixes that lead nowhere are forgotten on the way, and nothing else is."""
    text = "abba" * 150
    log_probs = spoken(LETTERS, text, 0.99)
    settings = BeamSettings(beam=width, token_threshold=-math.inf, beam_threshold=math.inf)
    decoder = BeamDecoder.of(LETTERS, None, settings)
    [best, *others] = decoder.hypotheses({"log_probs": log_probs})
    assert LETTERS.decode(best.ids, collapsed=True) == text
    assert best.ctc_score is not None
    assert best.lm_score is None
    if width == 20:
        exact = ctc_log_prob(log_probs, LETTERS.encode(text), LETTERS.blank_id)
        assert best.ctc_score == pytest.approx(exact, rel=1e-3)
    assert len(others) < width
    assert 1 <= decoder.live_beams({"log_probs": log_probs}) <= width
    begins = 3 * np.arange(len(best.ids))
    np.testing.assert_array_equal(best.frames, np.stack([begins, begins + 2], axis=1))
    np.testing.assert_allclose(best.confidences, 0.99, rtol=1e-5)


def test_the_beam_holds_the_best_prefixes() -> None:
    """In the first frame nothing is shared, so the beam is what a sort of the labels gives."""
    log_probs = log_probs_of(LETTERS, 1, labels="ab")
    for width in (1, 2, 3):
        settings = replace(EVERYTHING, beam=width)
        found = BeamDecoder.of(LETTERS, None, settings).hypotheses({"log_probs": log_probs})
        expected = sorted(log_probs[0], reverse=True)[:width]
        np.testing.assert_allclose([one.score for one in found], expected, rtol=1e-6)


def test_pruned_labels_are_not_tried() -> None:
    log_probs = np.log(np.full((1, LETTERS.size), 1e-3, np.float32))
    log_probs[0, [LETTERS.tokens["a"], LETTERS.blank_id]] = np.log([0.6, 0.3])
    settings = replace(EVERYTHING, token_threshold=math.log(0.01))
    found = BeamDecoder.of(LETTERS, None, settings).hypotheses({"log_probs": log_probs})
    assert found_texts(LETTERS, found).keys() == {"a", ""}
    # The best label is tried, whatever the threshold.
    found = BeamDecoder.of(LETTERS, None, replace(settings, token_threshold=-0.1)).hypotheses(
        {"log_probs": log_probs}
    )
    assert found_texts(LETTERS, found).keys() == {"a"}


def test_a_language_model_decides_between_words_that_sound_alike() -> None:
    lm = lm_of(["a", "ab", "ba"], order=1)
    log10_probs = np.array([-4.0, -9, -1, -3, -1, -1])  # "a" is rare
    lm = NGramTables(lm.words, (lm.tables[0]._replace(log10_probs=log10_probs),))
    log_probs = spoken(LETTERS, "a", 0.9)
    log_probs = np.concatenate([log_probs, log_probs_of(LETTERS, 1, labels="b")])
    log_probs[-1, [LETTERS.tokens["b"], LETTERS.blank_id]] = np.log([0.4, 0.6])
    alone = BeamDecoder.of(LETTERS, None).hypotheses({"log_probs": log_probs})[0]
    settings = BeamSettings(alpha=0.5, beta=0.0)
    with_lm = BeamDecoder.of(LETTERS, lm, settings).hypotheses({"log_probs": log_probs})[0]
    assert LETTERS.decode(alone.ids, collapsed=True) == "a"
    assert LETTERS.decode(with_lm.ids, collapsed=True) == "ab"
    assert with_lm.ctc_score is not None
    assert with_lm.lm_score is not None
    assert with_lm.lm_score == pytest.approx(math.log(10) * -2, rel=1e-3)  # "ab" and the end
    assert with_lm.score == pytest.approx(with_lm.ctc_score + 0.5 * with_lm.lm_score, abs=1e-5)


def test_temperature_flattens_confidences_alone() -> None:
    log_probs = spoken(LETTERS, "ab", 0.9)
    plain, flat = (
        BeamDecoder.of(LETTERS, None, temperature=temperature).hypotheses({"log_probs": log_probs})[0]
        for temperature in (1.0, 2.0)
    )
    assert plain.score == flat.score
    others = LETTERS.size - 1
    expected = math.sqrt(0.9) / (math.sqrt(0.9) + others * math.sqrt(0.1 / others))
    np.testing.assert_allclose(flat.confidences, expected, rtol=1e-5)


def test_blanks_at_the_ends_have_their_frames() -> None:
    """So a letter does not last into the blank that is said after it."""
    log_probs = np.concatenate([spoken(LETTERS, text, 0.9) for text in (" ", "a", " ")])
    best = BeamDecoder.of(LETTERS, None).hypotheses({"log_probs": log_probs})[0]
    assert best.ids.tolist() == [LETTERS.delimiter_id, LETTERS.tokens["a"], LETTERS.delimiter_id]
    assert best.frames.tolist() == [[0, 2], [3, 5], [6, 8]]


def test_no_frames() -> None:
    nothing = np.zeros((0, LETTERS.size), np.float32)
    [only] = BeamDecoder.of(LETTERS, lm_of(["a"])).hypotheses({"log_probs": nothing})
    assert only.ids.tolist() == []
    assert only.ctc_score == 0.0


# --- Words --------------------------------------------------------------------------------------------------


def test_words_in_another_form(caplog: pytest.LogCaptureFixture) -> None:
    """The text rule is applied to the words of a language model, and what it does is said."""
    words = ["A", "ab", "AB", "x", "b.", "a b"]
    tokenizer = CTCTokenizer.from_texts(["ab a"])
    with caplog.at_level("WARNING"):
        decoder = BeamDecoder.of(tokenizer, lm_of(words, order=1), lm_name="lm.arpa")
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "lm.arpa: the text rule changes 3 of its words" in said
    assert "1 words are the same as others" in said
    assert "2 of 5 words cannot be spelt in the model's vocabulary and are left out" in said
    assert "'x'" in said
    assert "'a b'" in said
    assert decoder.fusion.lexicon.words.tolist().count(-1) < len(decoder.fusion.lexicon.words)


def test_a_language_model_of_another_language() -> None:
    with pytest.raises(UserError, match=r"lm.arpa.*none of its 2 words can be spelt.*'x', 'y'"):
        BeamDecoder.of(LETTERS, lm_of(["x", "y"]), lm_name="lm.arpa")


def test_hot_words_that_cannot_be_spelt() -> None:
    with pytest.raises(UserError, match=r"cannot spell 'xa', '!'.*expected no word with 'x'"):
        BeamDecoder.of(LETTERS, None, hotwords=["ab", "xa", "!"])


@pytest.mark.parametrize(
    "field", ["beam", "alternatives", "alpha", "beta", "hotword_weight", "beam_threshold"]
)
def test_settings_that_cannot_be_used(field: str) -> None:
    value = 0 if field in ("beam", "alternatives") else math.nan
    with pytest.raises(UserError, match=field):
        BeamDecoder.of(LETTERS, None).with_settings(replace(BeamSettings(), **{field: value}))


def test_outputs_that_are_no_numbers() -> None:
    with pytest.raises(UserError, match="outputs are not numbers"):
        BeamDecoder.of(LETTERS, None).hypotheses({"log_probs": np.full((3, LETTERS.size), np.nan)})

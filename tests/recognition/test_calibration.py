"""Temperatures: found again where they are known, sane where little is known; and which words are right."""

import jax
import numpy as np
import pytest
from helpers.clips import make_clips

from flax_wavlm.data.clips import Clip
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.recognition.calibration import (
    AT_1,
    MOST_CLIPS,
    MOST_SECONDS,
    TEMPERATURES,
    JudgedWords,
    best_posteriors,
    calibration_error,
    cross_entropies,
    fit_temperature,
    judge,
    right_words,
    some_clips,
)
from flax_wavlm.recognition.decoding import GreedyDecoder
from flax_wavlm.recognition.transcript import TimedLabels, spell

TOKENIZER = CTCTokenizer.from_texts(["ab c"])
CHINESE = CTCTokenizer.from_texts(["我爱你"])


def words_of_two_labels(logits: np.ndarray, right: np.ndarray) -> JudgedWords:
    """Words whose label has these logits [W] over that of the only other label."""
    return JudgedWords(1 / (1 + np.exp(-logits[:, None] / TEMPERATURES)), right)


@pytest.mark.parametrize("true", [0.6, 1.0, 2.0, 4.0])
def test_a_known_temperature_is_found(true):
    rng = np.random.default_rng(0)
    logits = rng.uniform(0, 5, 20_000) * true
    right = rng.random(20_000) < 1 / (1 + np.exp(-logits / true))
    words = words_of_two_labels(logits, right)
    found = fit_temperature(words)
    assert found == pytest.approx(true, rel=0.1)
    at = int(np.flatnonzero(found == TEMPERATURES)[0])
    assert calibration_error(words.confidences[:, at], right) < 0.02
    best = cross_entropies(words.confidences, right[:, None]).sum(axis=0).argmin()
    assert at == best  # the prior says nothing beside so many words


def test_little_is_known():
    nothing = JudgedWords(np.zeros((0, len(TEMPERATURES))), np.zeros(0, bool))
    assert fit_temperature(nothing) == 1.0
    assert TEMPERATURES[AT_1] == 1.0

    def of(count: int, right: bool) -> float:
        return fit_temperature(words_of_two_labels(np.full(count, 2.0), np.full(count, right)))

    assert 0.75 < of(3, True) < 1.0 < of(3, False) < 2.0
    assert of(1, True) == pytest.approx(1.0, rel=0.1)
    assert (of(10_000, True), of(10_000, False)) == (TEMPERATURES[0], TEMPERATURES[-1])
    sure = words_of_two_labels(np.full(5, 50.0), np.zeros(5, bool))
    assert np.isfinite(cross_entropies(sure.confidences, sure.right[:, None])).all()


def test_posteriors_are_softmaxs():
    logits = np.random.default_rng(0).normal(0, 4, (2, 3, 7)).astype(np.float32)
    found = np.asarray(best_posteriors(logits))
    assert found.shape == (2, 3, len(TEMPERATURES))
    for k in (0, AT_1, -1):
        expected = jax.nn.softmax(logits / TEMPERATURES[k], axis=-1).max(axis=-1)
        np.testing.assert_allclose(found[..., k], expected, rtol=1e-5)


def test_confidences_are_those_of_transcripts():
    """At each temperature what the greedy decoder and `spell` give there."""
    rng = np.random.default_rng(1)
    path = rng.integers(0, TOKENIZER.size, 60)
    posteriors = rng.uniform(0.1, 0.9, (60, len(TEMPERATURES)))
    found = judge(
        TOKENIZER, path, posteriors, Clip("", np.zeros(1), np.array(TOKENIZER.encode("ab c")), "ab c", "")
    )
    assert len(found.right) > 3
    for k in (0, AT_1, 20):
        [best] = GreedyDecoder(TOKENIZER.blank_id).hypotheses(
            {"path": path, "log_prob": np.log(posteriors[:, k])}
        )
        labels = TimedLabels(best.ids, best.frames * 0.02, best.confidences, np.diff(best.frames).ravel())
        expected = [word.confidence for word in spell(TOKENIZER, labels).words]
        np.testing.assert_allclose(found.confidences[:, k], expected, rtol=1e-9)


def test_nothing_is_said():
    path = np.full(5, TOKENIZER.blank_id)
    clip = Clip("", np.zeros(1), np.zeros(0, int), "", "")
    for frames in (5, 0):
        found = judge(TOKENIZER, path[:frames], np.full((frames, len(TEMPERATURES)), 0.9), clip)
        assert (found.confidences.shape, found.right.shape) == ((0, len(TEMPERATURES)), (0,))


def judged(tokenizer: CTCTokenizer, said: str, reference: str) -> list[bool]:
    blank = tokenizer.blank_id
    path = np.array([id for label in tokenizer.encode(said) for id in (label, blank)])
    labels = np.array(tokenizer.encode(reference))
    clip = Clip("", np.zeros(1), labels, reference, "")
    return judge(tokenizer, path, np.full((len(path), len(TEMPERATURES)), 0.9), clip).right.tolist()


def test_right_words():
    assert judged(TOKENIZER, "ab c", "ab c") == [True, True]
    assert judged(TOKENIZER, "ab a c", "ab c") == [True, False, True]
    assert judged(TOKENIZER, "ab", "c ab") == [True]
    assert judged(TOKENIZER, "a", "") == [False]
    assert judged(CHINESE, "我你", "我爱你") == [True, True]  # a character is a word
    assert judged(CHINESE, "我我你", "我爱你") == [True, False, True]
    assert right_words(["new york", "is"], ["new york", "was"]).tolist() == [True, False]
    assert right_words([], ["a"]).tolist() == []


def test_calibration_error():
    confidences = np.array([0.95, 0.95, 0.95, 0.95, 0.25, 1.0])
    right = np.array([True, True, True, False, False, True])
    # Bins 0.9 to 1: confidence 0.96, 4 of 5 right; 0.2 to 0.3: confidence 0.25, none right.
    assert calibration_error(confidences, right) == pytest.approx((5 * 0.16 + 0.25) / 6)


def test_a_sample_of_many_clips():
    few = make_clips([16_000] * 3)
    assert some_clips(few) == few
    many = few * 1000
    assert len(some_clips(many)) == MOST_CLIPS
    assert some_clips(many)[-1] is many[-1]
    long = [Clip("", np.zeros(400 * 16_000, np.int16), np.zeros(0), "", "")] * 10
    assert len(some_clips(long)) == MOST_SECONDS // 400
    assert len(some_clips(long[:1] * 2)) == 2

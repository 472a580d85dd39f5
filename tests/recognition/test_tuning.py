"""The weights of a language model: found where they are known, without a model."""

import math

import numpy as np
import pytest
from helpers.errors import refused

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables, Table
from flax_wavlm.recognition.beam_search import tuning
from flax_wavlm.recognition.beam_search.decoder import BeamDecoder
from flax_wavlm.recognition.beam_search.settings import BeamSettings
from flax_wavlm.recognition.beam_search.tuning import KnownClip, Tried, Tuning, score_of, search_weights, tune

TOKENIZER = CTCTokenizer.from_texts(["abc d"])


@pytest.mark.parametrize("best", [(0.7, 0.9), (2.9, -1.3), (0.0, 4.0)])
def test_the_lowest_of_a_bowl_is_found(best: tuple[float, float]) -> None:
    """Within the last steps, inside the first grid and outside it."""
    tried = search_weights(lambda alpha, beta: math.hypot(alpha - best[0], (beta - best[1]) / 3))
    found = Tuning("wer", 1.0, tried).best
    assert abs(found.alpha - best[0]) <= 0.125
    assert abs(found.beta - best[1]) <= 0.375
    assert len({one[:2] for one in tried}) == len(tried) < 70
    assert min(one.alpha for one in tried) == 0.0


def test_among_equals_the_smaller_alpha_is_taken() -> None:
    tried = search_weights(lambda alpha, beta: 0.25)
    assert Tuning("wer", 1.0, tried).best == Tried(0.0, 0.0, 0.25)


def unigrams(**log10_probs: float) -> NGramTables:
    """A language model of single words."""
    words = {BEGIN: -99.0, END: -1.0, UNKNOWN: -5.0} | log10_probs
    ids = np.arange(len(words), dtype=np.int32)[:, None]
    table = Table(ids, np.array(list(words.values())), np.zeros(len(words)))
    return NGramTables(tuple(words), (table,))


def heard(text: str, *frames: dict[str, float]) -> KnownClip:
    """A clip whose frames are letter (or "_", the blank) to posterior."""
    posteriors = np.full((len(frames), TOKENIZER.size), 1e-4)
    for row, frame in zip(posteriors, frames, strict=True):
        for letter, posterior in frame.items():
            row[TOKENIZER.blank_id if letter == "_" else TOKENIZER.encode(letter)[0]] = posterior
    return KnownClip(text, np.log(posteriors / posteriors.sum(1, keepdims=True)).astype(np.float32))


def test_the_best_alpha_of_a_toy_is_inside() -> None:
    """The language model likes "a" 100 times as much as "b" and "c".

    In the first clip it has to help a little, in the second it must not be believed: the posteriors are 2 to
    1, and 20 to 1. So alpha is between log 2 / log 100 = 0.15 and log 20 / log 100 = 0.65.
    """
    clips = [heard("a", {"b": 0.66, "a": 0.33}), heard("c", {"c": 0.95, "a": 0.0475})]
    decoder = BeamDecoder.of(TOKENIZER, unigrams(a=-1.0, b=-3.0, c=-3.0), BeamSettings(beam=10))
    found = tune(decoder, clips, TOKENIZER)
    assert found.score == "cer"  # these texts are one word each
    assert found.greedy == 0.5
    assert found.best.error_rate == 0.0
    assert 0.15 < found.best.alpha < 0.65
    assert tune(decoder, clips, TOKENIZER) == found


def test_memory_is_reckoned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "machine_bytes", lambda: 10**9)
    monkeypatch.setattr(tuning, "held_bytes", lambda: 10**8)
    tuning.check_memory(frames=10**6, labels=32)
    with refused("of 10,000,000 frames and 32 labels are 1.28 GB", expected="0.9 GB .* free"):
        tuning.check_memory(frames=10**7, labels=32)


def test_the_score_is_the_cer_where_there_are_no_blanks() -> None:
    assert score_of(["ab", "a b"]) == "wer"
    assert score_of(["ab", "ba", "a b"]) == "cer"

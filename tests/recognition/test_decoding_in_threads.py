"""Decoding in threads: results and errors as they are, in order, with bounded memory; and n-best texts."""

import itertools
import json
import threading

import numpy as np
import pytest

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.recognition.alternatives import alternatives
from flax_wavlm.recognition.decoding import Hypothesis
from flax_wavlm.recognition.formats import content
from flax_wavlm.recognition.threads import Decoding, in_order
from flax_wavlm.recognition.transcript import Alternative, Transcript

TOKENIZER = CTCTokenizer.from_texts(["abcde f"])


def test_errors_come_out_as_they_are() -> None:
    def fail(error: Exception) -> None:
        raise error

    with Decoding(fail, in_threads=True) as decoding:
        futures = [decoding(UserError("wrong outputs", where="x")), decoding(ZeroDivisionError("ours"))]
        with pytest.raises(UserError, match="x: wrong outputs"):
            futures[0].result()
        with pytest.raises(ZeroDivisionError, match="ours"):
            futures[1].result()


def test_what_waits_is_bounded() -> None:
    """The third array does not fit beside the first two: it waits until there is room."""
    gate, begun = threading.Event(), []

    def decode(array: np.ndarray) -> int:
        gate.wait(10)
        return len(array)

    def submit(decoding: Decoding[int]) -> None:
        for _ in range(3):
            begun.append(decoding(np.zeros(100)))

    with Decoding(decode, in_threads=True, most_bytes=1700) as decoding:
        caller = threading.Thread(target=submit, args=(decoding,))
        caller.start()
        caller.join(0.1)
        assert len(begun) == 2
        gate.set()
        caller.join()
        assert [future.result() for future in begun] == [100, 100, 100]
        assert decoding(np.zeros(1000)).result() == 1000  # one that is too large alone


def test_without_threads_it_is_done_at_once() -> None:
    with Decoding(threading.current_thread, in_threads=False) as decoding:
        assert decoding().result() is threading.current_thread()


def test_items_keep_their_order() -> None:
    ready: set[int] = set()

    def items():
        for i in range(4):
            ready.update({2: {2, 1}, 3: {0}}.get(i, set()))
            yield i

    found = in_order(items(), ready.__contains__)
    assert list(found) == [0, 1, 2, 3]


# --- Alternatives of a recording ----------------------------------------------------------------------------


def hypothesis(text: str, score: float, lm_score: float | None = -2.0) -> Hypothesis:
    ids = np.array(TOKENIZER.encode(text), int)
    return Hypothesis(ids, np.zeros((len(ids), 2), int), np.ones(len(ids)), score, score - 1, lm_score)


def test_alternatives_of_a_recording_are_the_best_sums() -> None:
    rng = np.random.default_rng(0)
    stretches = [
        [hypothesis(text, score) for text, score in zip(texts, sorted(rng.normal(size=3))[::-1], strict=True)]
        for texts in (("a", "b", "c"), ("d", "e", ""), ("f", "ab", "ac"), ("a", "ba", "bb"))
    ]
    every = sorted(itertools.product(*stretches), key=lambda way: -sum(h.score for h in way))
    found = alternatives(TOKENIZER, stretches, 7)
    for one, way in zip(found, every, strict=False):
        said = [TOKENIZER.decode(h.ids, collapsed=True) for h in way]
        assert one.text == " ".join(filter(None, said))
        assert one.score == pytest.approx(sum(h.score for h in way))
    assert len(found) == 7
    assert found[0].ctc_score == pytest.approx(found[0].score - 4)
    assert found[0].lm_score == -8.0


def test_texts_that_are_equal_are_given_once() -> None:
    first, second = [("a", 0.0), ("a b", -1.0)], [("b c", 0.0), ("c", -1.5)]
    stretches = [[hypothesis(*each) for each in stretch] for stretch in (first, second)]
    found = alternatives(TOKENIZER, stretches, 4)
    assert [(one.text, one.score) for one in found] == [("a b c", 0.0), ("a b b c", -1.0), ("a c", -1.5)]
    assert alternatives(TOKENIZER, [], 4) == (Alternative("", 0.0, None, None),)


def test_json_has_the_alternatives_of_a_beam_search_alone() -> None:
    with_lm = Alternative("a b", -1.23456, -3.0, -2.5)
    transcript = Transcript("x.wav", "a b", 1.0, alternatives=(with_lm, Alternative("a", -4.0, -4.0, None)))
    found = json.loads(content(transcript, "json"))
    assert found == json.loads(content(transcript, "jsonl"))
    assert found["alternatives"] == [
        {"text": "a b", "score": -1.2346, "ctc_score": -3.0, "lm_score": -2.5},
        {"text": "a", "score": -4.0, "ctc_score": -4.0},
    ]
    assert list(found)[-1] == "alternatives"
    assert "alternatives" not in json.loads(content(Transcript("x.wav", "a b", 1.0), "json"))

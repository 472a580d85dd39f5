"""Greedy decoding with times and confidences, and labels as words."""

import jax.numpy as jnp
import numpy as np
import pytest

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.recognition.decoding import GreedyDecoder, collapse
from flax_wavlm.recognition.transcript import Character, TimedLabels, Word, spell

TOKENIZER = CTCTokenizer.from_texts(["ab c"])
BLANK, SPACE = TOKENIZER.blank_id, TOKENIZER.delimiter_id
A, B, C = TOKENIZER.encode("abc")


def test_a_label_lasts_as_long_as_its_run_of_frames() -> None:
    path = [BLANK, A, A, BLANK, A, B, B]
    posterior = np.full((1, len(path), TOKENIZER.size), 1e-3)
    posterior[0, np.arange(len(path)), path] = [0.9, 0.8, 0.6, 0.9, 0.5, 0.7, 0.9]
    decoder = GreedyDecoder(BLANK)
    evidence = decoder.evidence(jnp.log(posterior), jnp.array([len(path)]))
    [found] = decoder.hypotheses({name: np.asarray(x[0]) for name, x in evidence.items()})
    assert found.ids.tolist() == [A, A, B] == collapse(np.array(path), BLANK).tolist()
    assert found.frames.tolist() == [[1, 3], [4, 5], [5, 7]]
    np.testing.assert_allclose(found.confidences, [0.7, 0.5, 0.8], rtol=1e-6)


def test_nothing_is_said_in_no_frames() -> None:
    nothing = {"path": np.zeros(0, np.int32), "log_prob": np.zeros(0, np.float32)}
    [found] = GreedyDecoder(BLANK).hypotheses(nothing)
    assert found.ids.tolist() == []
    assert found.frames.shape == (0, 2)


def labels(ids: list[int], confidences: list[float], frames: list[int]) -> TimedLabels:
    times = np.array([[i, i + 0.5] for i in range(len(ids))], float).reshape(-1, 2)
    return TimedLabels(np.array(ids, int), times, np.array(confidences), np.array(frames, int))


def test_words_have_the_times_of_their_characters() -> None:
    found = spell(TOKENIZER, labels([A, B, SPACE, SPACE, C], [0.9, 0.6, 0.1, 0.1, 0.5], [2, 1, 1, 1, 3]))
    assert found.text == "ab c"
    assert found.words == (Word("ab", 0.0, 1.5, pytest.approx(0.8)), Word("c", 4.0, 4.5, 0.5))
    assert found.characters == (
        Character("a", 0.0, 0.5, 0.9),
        Character("b", 1.0, 1.5, 0.6),
        Character("c", 4.0, 4.5, 0.5),
    )
    assert found.confidence == pytest.approx((0.9 * 2 + 0.6 + 0.5 * 3) / 6)


def test_without_a_label_nothing_is_said() -> None:
    assert spell(TOKENIZER, labels([], [], [])) == ("", (), (), None)
    assert spell(TOKENIZER, labels([SPACE], [0.5], [1]))[1:] == ((), (), None)


def test_a_character_is_a_word_where_a_script_has_no_blanks() -> None:
    """Our vocabularies have a blank whether or not the texts have one."""
    tokenizer = CTCTokenizer.from_texts(["我爱 ab"])
    ids = tokenizer.encode("我爱ab我 ab")
    found = spell(tokenizer, labels(ids, [0.5] * len(ids), [1] * len(ids)))
    assert [word.word for word in found.words] == ["我", "爱", "ab", "我", "ab"]
    assert found.text == "我爱ab我 ab"

"""A recording with its text: the model finds the words, the aligner says when they were."""

import numpy as np
import pytest

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.recognition.align import Aligned, align_text
from flax_wavlm.recognition.emissions import Emissions
from flax_wavlm.recognition.known_text import known_text

TOKENIZER = CTCTokenizer.from_texts(["abcdefghij"])
SECONDS = 0.02  # of a frame
BLANK = TOKENIZER.blank_id


def heard(frames: int, *words: tuple[str, int, int], sure: float = 0.95) -> np.ndarray:
    """Log-probabilities where the letters of each word share its frames [begin, end)."""
    path = np.full(frames, BLANK)
    for word, begin, end in words:
        places = np.linspace(begin, end, len(word) + 1).round().astype(int)
        for letter, first, last in zip(TOKENIZER.encode(word), places, places[1:], strict=False):
            path[first:last] = letter
    posterior = np.full((frames, TOKENIZER.size), (1 - sure) / (TOKENIZER.size - 1))
    posterior[np.arange(frames), path] = sure
    return np.log(posterior).astype(np.float32)


def align(model: np.ndarray, text: str, aligner: np.ndarray | None = None, *, stars: bool = True) -> Aligned:
    emissions = Emissions(model, aligner, SECONDS, SECONDS * len(model))
    return align_text(emissions, known_text(TOKENIZER, text), "a.wav", stars=stars)


def check(aligned: Aligned, expected: tuple[tuple[str, int, int], ...]) -> None:
    """The words are in these frames, or near: an aligner has offsets, and letters may share a frame."""
    words = aligned.transcript.words
    assert [word.word for word in words] == [word for word, _, _ in expected]
    found = np.array([[word.start, word.end] for word in words]) / SECONDS
    np.testing.assert_allclose(found, [place for _, *place in expected], atol=2)


SAID = (("abc", 20, 29), ("de", 31, 37), ("fgh", 100, 112))


def test_the_models_own_peaks_without_an_aligner() -> None:
    check(align(heard(150, *SAID), "abc de fgh"), SAID)


def test_the_aligner_says_when_and_the_model_how_surely() -> None:
    early = heard(150, ("abc", 14, 17), ("de", 18, 20), ("fgh", 90, 93), sure=0.8)
    found = align(early, "abc de fgh", heard(150, *SAID))
    check(found, SAID)
    assert [word.confidence for word in found.transcript.words] == pytest.approx([0.8] * 3)
    assert found.transcript.confidence == pytest.approx(0.8)


def test_the_aligner_is_not_asked_about_speech_that_the_text_lacks() -> None:
    foreign = (("ijij", 60, 90), ("abc", 120, 129))  # of which it would take a part for the text's
    model = heard(150, *SAID[:2], *foreign)
    aligner = heard(150, ("abc", 20, 29), ("de", 31, 37), ("abc", 120, 129))
    found = align(model, "abc de", aligner)
    check(found, SAID[:2])
    assert (found.absent / SECONDS).round().tolist() == [[60, 129]]
    [doubt] = found.doubts()
    assert doubt == "speech that the text lacks: 0:01.2 to 0:02.6"
    assert len(align(model, "abc de", aligner, stars=False).absent) == 0


def test_a_short_text_is_found_in_much_other_speech() -> None:
    sentences = [("abc", "de", "fgh"), ("abc", "ij", "fgh"), ("gab", "de", "abc")] * 5
    said = [
        (word, 60 * i + 12 * j, 60 * i + 12 * j + 9)
        for i, words in enumerate(sentences)
        for j, word in enumerate(words)
    ]
    model = heard(60 * len(sentences), *said)
    model[said[0][1] : said[0][2], :] -= 0.01  # nothing else tells the repetitions apart
    for aligner in (None, model):
        found = align(model, "fgh gab", aligner)
        first, then = (word.start for word in found.transcript.words)
        assert 0.5 < then - first < 1.0  # of one place, and not the two words from anywhere
        assert len(found.absent) == 2


def test_words_that_were_not_said_are_named() -> None:
    found = align(heard(150, *SAID), "abc jj de fgh")
    assert [word.word for word in found.unlikely] == ["jj"]
    [doubt] = found.doubts()
    assert doubt.startswith("words that were hardly said: jj (0:0")


def test_a_recording_that_is_too_short_for_its_text() -> None:
    with pytest.raises(UserError, match="a text of 17 labels, expected at least 17 frames"):
        align(heard(10), "abcdefghij jabcde")
    with pytest.raises(UserError, match="and there are 0"):
        align(np.zeros((0, TOKENIZER.size)), "abc")

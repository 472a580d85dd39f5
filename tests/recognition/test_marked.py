"""Transcripts with their errors in brackets, and which clips are shown."""

import pytest

from flax_wavlm.recognition.evaluate import Prediction
from flax_wavlm.recognition.marked import marked, samples


@pytest.mark.parametrize(
    ("reference", "hypothesis", "by_characters", "said", "heard"),
    [
        ("a dark suit in it", "a duck suit it", False, "a [dark] suit [in] it", "a [duck] suit []   it"),
        ("go on", "go on", False, "go on", "go on"),
        ("go", "so let go", False, "[]       go", "[so let] go"),
        ("", "what", False, "[]", "[what]"),
        ("on", "", False, "[on]", "[]"),
        ("", "", False, "", ""),
        ("語音識別", "語者識", True, "語[音]識[別]", "語[者]識[]"),
        ("a\x1b b", "a\x1b b", False, r"a\x1b b", r"a\x1b b"),  # no terminal obeys it
    ],
)
def test_errors_are_in_brackets(
    reference: str, hypothesis: str, by_characters: bool, said: str, heard: str
) -> None:
    found = marked(Prediction("x", reference, hypothesis), by_characters=by_characters)
    assert (found.reference, found.hypothesis) == (said, heard)


def test_long_texts_are_cut_at_the_same_place() -> None:
    found = marked(Prediction("x", "one two " * 100, "one too " * 100))
    assert len(found.reference) == len(found.hypothesis) == 203
    assert found.reference.endswith("...")


def test_the_same_clips_are_shown_each_time() -> None:
    predictions = [Prediction(f"{i:02}", "a b", "a") for i in range(10)]
    assert [sample.id for sample in samples(predictions)] == ["00", "04", "09"]
    assert samples(predictions[::-1]) == samples(predictions)
    assert [sample.id for sample in samples(predictions[:2])] == ["00", "01"]
    assert [sample.id for sample in samples(predictions[:1])] == ["00"]
    assert samples([]) == []


def test_single_words_are_compared_by_characters() -> None:
    [first, *_] = samples([Prediction(str(i), "left", "lift") for i in range(3)])
    assert str(first) == "0\n  reference   l[e]ft\n  hypothesis  l[i]ft"

"""What holds for all paths of labels and all pairs of sentences, and not for examples alone."""

from collections.abc import Callable

import numpy as np
import pytest
from helpers.properties import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

from flax_wavlm.data.clips import min_ctc_frames
from flax_wavlm.data.tokenizer import normalise
from flax_wavlm.recognition.decoding import collapse
from flax_wavlm.recognition.metrics import error_rates


def plain_collapse(path: list[int], blank_id: int) -> list[int]:
    labels, before = [], None
    for label in path:
        if label not in (before, blank_id):
            labels.append(label)
        before = label
    return labels


@PROPERTY
@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 4))
def test_collapse_is_the_plain_one(path: list[int], blank_id: int) -> None:
    assert collapse(np.array(path, np.int32), blank_id).tolist() == plain_collapse(path, blank_id)


@PROPERTY
@given(st.lists(st.integers(1, 4), max_size=12), st.data())
def test_collapse_undoes_every_alignment(labels: list[int], data: st.DataObject) -> None:
    """Labels said for any number of frames, with blanks wherever they may and must be."""
    path = [0] * data.draw(st.integers(0, 2))
    for label, following in zip(labels, [*labels, None][1:], strict=True):
        path += [label] * data.draw(st.integers(1, 3)) + [0] * data.draw(st.integers(label == following, 2))
    assert collapse(np.array(path, np.int32), 0).tolist() == labels
    assert min_ctc_frames(np.array(labels, np.int32)) <= len(path)


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's distance, by his own table."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        before, row = row, [i]
        for j, found in enumerate(hypothesis, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (expected != found)))
    return row[-1]


sentences = st.text("abc ", max_size=12).map(normalise)


@PROPERTY
@given(
    st.lists(st.tuples(sentences, sentences), min_size=1, max_size=5).filter(lambda p: any(r for r, _ in p))
)
def test_error_rates_are_the_plain_ones(pairs: list[tuple[str, str]]) -> None:
    rates = error_rates([r for r, _ in pairs], [h for _, h in pairs])
    units: dict[str, Callable[[str], list[str]]] = {"wer": str.split, "cer": list}
    for name, unit in units.items():
        total = sum(len(unit(reference)) for reference, _ in pairs)
        wrong = sum(edits(unit(reference), unit(hypothesis)) for reference, hypothesis in pairs)
        assert rates[name] == pytest.approx(wrong / total)

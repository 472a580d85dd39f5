"""The best texts of a whole recording, from the hypotheses for each of its stretches of speech."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.recognition.decoding import Hypothesis
from flax_wavlm.recognition.transcript import Alternative


class _Choice(NamedTuple):
    """Of a hypothesis for each stretch up to one: the last of them, and how those before it were chosen."""

    score: float
    before: int  # which of the choices for the stretches before
    hypothesis: int


def alternatives(
    tokenizer: CTCTokenizer, stretches: Sequence[Sequence[Hypothesis]], most: int
) -> tuple[Alternative, ...]:
    """The texts of the highest scores, the best first; a recording's score is the sum of its stretches'.

    Texts that the text rule makes equal are given once, with the scores of the better one. So there may be
    fewer than `most`.

    Args:
        stretches: the hypotheses of each in the order of time, the best first.
        most: of the alternatives.
    """
    found: dict[str, Alternative] = {}
    for chosen in _best(stretches, most):
        text = _text(tokenizer, [hypothesis.ids for hypothesis in chosen])
        found.setdefault(
            text,
            Alternative(
                text,
                sum(hypothesis.score for hypothesis in chosen),
                _sum([hypothesis.ctc_score for hypothesis in chosen]),
                _sum([hypothesis.lm_score for hypothesis in chosen]),
            ),
        )
    return tuple(found.values())


def _best(stretches: Sequence[Sequence[Hypothesis]], most: int) -> list[list[Hypothesis]]:
    """A hypothesis for each stretch, in the `most` ways of the highest sums; among equal ones the first."""
    columns: list[list[_Choice]] = [[_Choice(0.0, 0, 0)]]
    for hypotheses in stretches:
        sums = [
            _Choice(choice.score + hypothesis.score, before, place)
            for before, choice in enumerate(columns[-1])
            for place, hypothesis in enumerate(hypotheses)
        ]
        columns.append(heapq.nlargest(most, sums, key=lambda choice: choice.score))
    ways = []
    for choice in columns[-1]:
        way: list[Hypothesis] = []
        for hypotheses, column in zip(reversed(stretches), reversed(columns[:-1]), strict=True):
            way.append(hypotheses[choice.hypothesis])
            choice = column[choice.before]
        ways.append(way[::-1])
    return ways


def _text(tokenizer: CTCTokenizer, stretches: Sequence[np.ndarray]) -> str:
    """As `spell` writes the labels of stretches: words end where a stretch ends."""
    delimiter = [] if tokenizer.delimiter_id is None else [tokenizer.delimiter_id]
    labels: list[int] = []
    for ids in stretches:
        if len(ids):
            labels += [*(delimiter if labels else ()), *ids.tolist()]
    return tokenizer.normalise_hypothesis(tokenizer.decode(labels, collapsed=True))


def _sum(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) if len(known) == len(scores) and known else None

"""How a beam search is done: plain values, which are read without numba."""

from __future__ import annotations

from dataclasses import dataclass

BEAM = 100
ALPHA, BETA = 0.5, 1.5  # pyctcdecode's, where nobody has tuned them
UNKNOWN_OFFSET = -10.0  # log10, pyctcdecode's `unk_score_offset`


@dataclass(frozen=True)
class BeamSettings:
    """The score of a hypothesis is that of pyctcdecode (natural logarithms, but for `unknown_offset`):

        log P_CTC(labels) + alpha log P_LM(words) + beta |words| + the hot words' weights

    Attributes:
        beam: hypotheses kept after each frame.
        alpha: the language model's weight.
        beta: added for each word.
        unknown_offset: log10, added to the language model's log-probability of a word that it does not know.
        boundaries: the first word follows `<s>`, and `</s>` follows the last one.
        hotword_weight: added for each hot word that is said.
        token_threshold: labels of a frame that are less probable than this (natural logarithm) are not
            tried, the frame's best label excepted; -inf: each is.
        beam_threshold: hypotheses that are this much worse than the best one are dropped; inf: none is.
        alternatives: how many hypotheses are given, at most.
    """

    beam: int = BEAM
    alpha: float = ALPHA
    beta: float = BETA
    unknown_offset: float = UNKNOWN_OFFSET
    boundaries: bool = True
    hotword_weight: float = 10.0
    # pyctcdecode's -5 and 10 cost an early checkpoint of the demo a tenth of what a language model gains on
    # dev. Below 20, alternatives are lost that it finds (benchmarks/beam_search.py).
    token_threshold: float = -10.0
    beam_threshold: float = 20.0
    alternatives: int = 5

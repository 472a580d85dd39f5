"""What a prefix is worth beside its CTC probability: language model, words, hot words.

A prefix is a begin of a text, as labels. Prefixes are kept in a tree: each one but the first is another one
with a label more. All is compiled by numba; natural logarithms.

    C  prefixes that there is room for
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flax_wavlm.language_model.compiled import compiled, hash_table
from flax_wavlm.language_model.model import EMPTY, Automaton, NGramModel, advance
from flax_wavlm.language_model.tables import END, UNKNOWN
from flax_wavlm.recognition.beam_search.hotwords import NO_HOTWORDS, HotWords, heard
from flax_wavlm.recognition.beam_search.lexicon import DELIMITER, LETTER, WORD, Lexicon
from flax_wavlm.recognition.beam_search.settings import BeamSettings
from flax_wavlm.recognition.beam_search.trie import NONE, ROOT, child

FIRST = 0  # the prefix that has no label


class Fusion(NamedTuple):
    """What prefixes are judged by; a search's own and constant."""

    kinds: np.ndarray  # int8 [V], see `lexicon`
    delimiter: int  # the label of the blank between words; NONE: there is none
    with_lm: bool
    lm: Automaton
    lexicon: Lexicon
    unknown: int  # the language model's unknown word
    end: int  # its end of a sentence; NONE: speech ends anywhere
    begin: int  # its state before the first word
    unknown_offset: float  # natural logarithm
    alpha: float
    beta: float
    with_hotwords: bool
    hotwords: HotWords
    hotword_weight: float
    most_gain: float  # no label adds more than this to the worth of a prefix


def unweighted(
    kinds: np.ndarray,
    delimiter: int | None,
    model: NGramModel | None,
    lexicon: Lexicon,
    hotwords: HotWords | None,
) -> Fusion:
    """A fusion that `weighted` completes."""
    return Fusion(
        kinds=kinds,
        delimiter=NONE if delimiter is None else delimiter,
        with_lm=model is not None,
        lm=_NO_LM if model is None else model.automaton,
        lexicon=lexicon,
        unknown=0 if model is None else model.ids[UNKNOWN],
        end=NONE,
        begin=EMPTY,
        unknown_offset=0.0,
        alpha=0.0,
        beta=0.0,
        with_hotwords=hotwords is not None,
        hotwords=NO_HOTWORDS if hotwords is None else hotwords,
        hotword_weight=0.0,
        most_gain=0.0,
    )


def weighted(fusion: Fusion, model: NGramModel | None, settings: BeamSettings) -> Fusion:
    """The fusion with the weights of settings."""
    if model is not None:
        offset = float(settings.unknown_offset * np.log(10))
        fusion = fusion._replace(
            end=model.ids[END] if settings.boundaries else NONE,
            begin=model.begin if settings.boundaries else EMPTY,
            unknown_offset=offset,
            alpha=float(settings.alpha),
            beta=float(settings.beta),
        )
    hot = fusion.hotwords
    # A label ends two words at most, and two blanks may then be read of hot words.
    words = max(0.0, fusion.beta) + max(0.0, fusion.alpha * fusion.unknown_offset)
    hotwords = settings.hotword_weight * (2 * hot.complete.max() + hot.begun.max())
    return fusion._replace(
        hotword_weight=float(settings.hotword_weight), most_gain=float(2 * words + hotwords)
    )


_NO_LM = Automaton(
    np.zeros(2, np.float32),
    np.zeros(2, np.int32),
    np.zeros(1, np.float32),
    np.zeros(1, np.int32),
    *hash_table(0),
    words=1,
)

# A prefix, as the search keeps it.
PREFIX = np.dtype(
    [
        ("parent", np.int32),  # the prefix without the last label; NONE: it is the first one
        ("label", np.int32),  # its last label; the first one's is the delimiter
        ("state", np.int32),  # the language model's, after the words that have ended
        ("node", np.int32),  # the lexicon's, of the word that has not ended; ROOT: no word has begun
        ("hot", np.int32),  # the state of the hot words
        ("ended", np.int32),  # 1: `end_lm` and `end_state` are known
        ("end_state", np.int32),  # the language model's state after the word that has not ended
        ("place", np.int32),  # where it is in the beam; NONE: it is not
        ("end_lm", np.float64),  # the log-probability of that word, as a whole word
        ("lm", np.float64),  # the log-probability of the words that have ended
        ("worth", np.float64),  # what counts for good: words and hot words that have ended
        ("outlook", np.float64),  # what counts for now: those that have begun
    ],
    align=True,
)


@compiled
def begin(found: np.ndarray, fusion: Fusion) -> None:
    """Enters the first prefix."""
    first = found[FIRST]
    first.parent, first.label = NONE, fusion.delimiter
    first.state, first.node, first.hot = fusion.begin, ROOT, ROOT
    if fusion.with_hotwords and fusion.delimiter != NONE:
        first.hot = heard(fusion.hotwords, ROOT, fusion.delimiter)


@compiled
def _said(fusion: Fusion, state: int, node: int) -> tuple[float, int]:
    """The log-probability of the word that ends at a node of the lexicon, and the state after it."""
    word = fusion.lexicon.words[node] if node != NONE else NONE
    offset = 0.0 if word != NONE else fusion.unknown_offset
    log_prob, following = advance(fusion.lm, state, word if word != NONE else fusion.unknown)
    return log_prob + offset, following


@compiled
def word_end(found: np.ndarray, fusion: Fusion, prefix: int) -> tuple[float, int]:
    """The same of the word in which a prefix ends."""
    if found[prefix].ended == 0:
        found[prefix].end_lm, found[prefix].end_state = _said(fusion, found[prefix].state, found[prefix].node)
        found[prefix].ended = 1
    return found[prefix].end_lm, found[prefix].end_state


@compiled
def followed(
    found: np.ndarray, fusion: Fusion, prefix: int, label: int
) -> tuple[int, int, int, float, float, float]:
    """A prefix with a label more: its state, node, hot, lm, worth and outlook, as in `PREFIX`."""
    state, node, hot = found[prefix].state, found[prefix].node, found[prefix].hot
    lm, worth, outlook = found[prefix].lm, found[prefix].worth, 0.0
    kind = fusion.kinds[label]
    if fusion.with_lm:
        if kind == LETTER:
            node = child(fusion.lexicon.trie, node, label) if node != NONE else NONE
        elif kind in (DELIMITER, WORD):
            if node != ROOT:
                log_prob, state = word_end(found, fusion, prefix)
                lm, worth, node = lm + log_prob, worth + fusion.alpha * log_prob + fusion.beta, ROOT
            if kind == WORD:
                log_prob, state = _said(fusion, state, child(fusion.lexicon.trie, ROOT, label))
                lm, worth = lm + log_prob, worth + fusion.alpha * log_prob + fusion.beta
        if node != ROOT:
            # As much as the likeliest word that begins so, without what was said before it.
            likeliest = (
                fusion.lexicon.best[node]
                if node != NONE
                else fusion.unknown_offset + (fusion.lm.log_probs[1 + fusion.unknown])
            )
            outlook = fusion.alpha * likeliest + fusion.beta
    if fusion.with_hotwords:
        hot, count = _hot_after(found, fusion, prefix, label)
        worth += fusion.hotword_weight * count
        outlook += fusion.hotword_weight * fusion.hotwords.begun[hot]
    return state, node, hot, lm, worth, outlook


@compiled
def _hot_after(found: np.ndarray, fusion: Fusion, prefix: int, label: int) -> tuple[int, float]:
    """The state of the hot words after a further label, and how many of them it ends."""
    hot, count = found[prefix].hot, 0.0
    kind, last = fusion.kinds[label], found[prefix].label
    between = fusion.delimiter != NONE and last != fusion.delimiter and kind != DELIMITER
    if between and (kind == WORD or fusion.kinds[last] == WORD):  # a word ends, and no blank is written
        hot = heard(fusion.hotwords, hot, fusion.delimiter)
        count += fusion.hotwords.complete[hot]
    hot = heard(fusion.hotwords, hot, label)
    return hot, count + fusion.hotwords.complete[hot]


@compiled
def whole(found: np.ndarray, fusion: Fusion, prefix: int) -> tuple[float, float]:
    """The log-probability of a prefix's words where the speech ends with it, and its worth."""
    lm, worth, state = found[prefix].lm, found[prefix].worth, found[prefix].state
    if fusion.with_lm:
        if found[prefix].node != ROOT:
            log_prob, state = word_end(found, fusion, prefix)
            lm, worth = lm + log_prob, worth + fusion.alpha * log_prob + fusion.beta
        if fusion.end != NONE:
            log_prob, state = advance(fusion.lm, state, fusion.end)
            lm, worth = lm + log_prob, worth + fusion.alpha * log_prob
    if fusion.with_hotwords and fusion.delimiter != NONE and found[prefix].label != fusion.delimiter:
        hot = heard(fusion.hotwords, found[prefix].hot, fusion.delimiter)
        worth += fusion.hotword_weight * fusion.hotwords.complete[hot]
    return lm, worth

"""Prefix beam search over the outputs of a CTC model (Graves & Jaitly 2014; Hannun et al. 2014).

The probability of a text is the sum over all label paths that read as it. It is kept for each prefix, in two
parts: of the paths that end in a blank, and of those that end in its last label. Delimiters that follow each
other read as one, and those at the begin and the end as nothing, so they are summed up as well. Beside it
stands what `fusion` makes of the prefix, by which hypotheses are compared.

    T  frames      V  labels of the model      B  prefixes of the beam      F  hypotheses that are found
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from flax_wavlm.language_model.compiled import VACANT, compiled, slot
from flax_wavlm.recognition.beam_search.fusion import (
    FIRST,
    PREFIX,
    Fusion,
    begin,
    followed,
    whole,
)
from flax_wavlm.recognition.beam_search.trie import NONE

NEVER = -np.inf


class Found(NamedTuple):
    """Hypotheses, the best one first."""

    scores: np.ndarray  # float64 [F]
    ctc: np.ndarray  # float64 [F], log-probability of the text's labels
    lm: np.ndarray  # float64 [F], log-probability of its words
    labels: np.ndarray  # int32, the labels of all, one after another
    ends: np.ndarray  # int64 [F], where those of each end
    live: float  # the mean number of prefixes after a frame


class Last(NamedTuple):
    """The beam after the last frame."""

    prefixes: np.ndarray  # all that are known
    beam: np.ndarray  # int64 [B], which of them are in the beam
    ctc: np.ndarray  # float64 [B], log-probability of the labels
    lm: np.ndarray  # float64 [B], log-probability of the words
    scores: np.ndarray  # float64 [B]; -inf: the text stands elsewhere in the beam too
    live: float  # the mean number of prefixes after a frame


class Beam(NamedTuple):
    """Prefixes, and the log-probabilities of their paths."""

    prefixes: np.ndarray  # int64 [B]
    by_blank: np.ndarray  # float64 [B], of paths that end in a blank
    by_label: np.ndarray  # float64 [B], of paths that end in the prefix's last label


class Candidates(NamedTuple):
    """For the next beam, [N]: first the B prefixes of the one before, then those with a label more."""

    scores: np.ndarray  # float64
    parents: np.ndarray  # int64, places in the beam
    labels: np.ndarray  # int64, the label more
    by_blank: np.ndarray  # float64, as in a beam
    by_label: np.ndarray  # float64


@compiled
def _log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))


# NumPy's functions on whole arrays would take numba three times as long to compile.


@compiled
def _nevers(count: int) -> np.ndarray:
    """The log-probability of what cannot be, float64 [count]."""
    array = np.empty(count)
    for i in range(count):
        array[i] = NEVER
    return array


@compiled
def _tried(frame: np.ndarray, threshold: float, blank: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame's log-probabilities [V], -inf where a label is not tried; and those that are, but the blank.

    The frame's best label is always tried.
    """
    row, tried = np.empty(len(frame)), np.empty(len(frame), np.int64)
    best, count = 0, 0
    for label in range(1, len(frame)):
        if frame[label] > frame[best]:
            best = label
    for label in range(len(frame)):
        row[label] = frame[label] if frame[label] >= threshold or label == best else NEVER
        if row[label] != NEVER and label != blank:
            tried[count] = label
            count += 1
    return row, tried[:count]


@compiled
def _chosen(scores: np.ndarray, lowest: float, width: int) -> np.ndarray:
    """The places of the best scores from `lowest` on, `width` at most; the first of equal ones."""
    chosen, found, count = np.empty(len(scores), np.int64), np.empty(len(scores)), 0
    for i in range(len(scores)):
        if scores[i] >= lowest and scores[i] != NEVER:
            chosen[count], found[count] = i, scores[i]
            count += 1
    if count <= width:
        return chosen[:count]
    found = np.sort(found[:count])
    last, equals, kept = found[count - width], 0, 0  # how many of those that are equal to the last one fit
    for i in range(count - width, count):
        equals += found[i] == last
    for i in chosen[:count]:
        if scores[i] > last or (scores[i] == last and equals > 0):
            equals -= scores[i] == last
            chosen[kept] = i
            kept += 1
    return chosen[:kept]


@compiled
def _compacted(found: np.ndarray, count: int, beam: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """Prefixes [C] without those from which none of the beam's come, and their number.

    `beam` is renumbered. There is room for `room` more, and for twice their number at least.
    """
    numbers = np.empty(count, np.int64)
    for prefix in range(count):
        numbers[prefix] = NONE
    for prefix in beam:
        at = prefix
        while at != NONE and numbers[at] == NONE:
            numbers[at] = FIRST
            at = found[at].parent
    kept = 0
    for prefix in range(count):
        kept += numbers[prefix] != NONE
    new = np.zeros(max(len(found), 2 * kept + room), PREFIX)
    kept = 0
    for prefix in range(count):
        if numbers[prefix] == NONE:
            continue
        numbers[prefix], new[kept] = kept, found[prefix]
        if new[kept].parent != NONE:  # which has a lower number
            new[kept].parent = numbers[new[kept].parent]
        kept += 1
    for i in range(len(beam)):
        beam[i] = numbers[beam[i]]
    return new, kept


@compiled
def _entered(found: np.ndarray, count: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash table of prefixes: a prefix and a label lead to the prefix with that label more."""
    size = 1
    while size < 4 * len(found):
        size *= 2
    keys, values = np.empty(size, np.int64), np.zeros(size, np.int64)
    for i in range(size):
        keys[i] = VACANT
    for prefix in range(1, count):
        key = found[prefix].parent * labels + found[prefix].label
        at = slot(keys, key)
        keys[at], values[at] = key, prefix
    return keys, values


@compiled
def _enter(found: np.ndarray, fusion: Fusion, prefix: int, parent: int, label: int) -> None:
    """Enters a prefix that is another one with a label more."""
    state, node, hot, lm, worth, outlook = followed(found, fusion, parent, label)
    new = found[prefix]
    new.parent, new.label, new.place, new.ended = parent, label, NONE, 0
    new.state, new.node, new.hot = state, node, hot
    new.lm, new.worth, new.outlook = lm, worth, outlook


@compiled
def _kept(
    found: np.ndarray, fusion: Fusion, beam: Beam, row: np.ndarray, blank: int, new: Candidates
) -> None:
    """Paths that say the blank, or the last label again: their prefixes stay what they are.

    `row` [V] has -inf for labels that are not tried.
    """
    for i in range(len(beam.prefixes)):
        label = found[beam.prefixes[i]].label
        total = _log_add(beam.by_blank[i], beam.by_label[i])
        new.by_blank[i] = total + row[blank]
        if label != NONE:
            new.by_label[i] = (total if label == fusion.delimiter else beam.by_label[i]) + row[label]


@compiled
def _families(found: np.ndarray, beam: Beam) -> tuple[np.ndarray, np.ndarray]:
    """Places [B] of each prefix's first child in the beam, and of its next sibling there; NONE: no other."""
    count = len(beam.prefixes)
    children, siblings = np.empty(count, np.int64), np.empty(count, np.int64)
    for i in range(count):
        children[i], siblings[i] = NONE, NONE
        found[beam.prefixes[i]].place = i
    for i in range(count):
        parent = found[beam.prefixes[i]].parent
        if parent != NONE and found[parent].place != NONE:
            place = found[parent].place
            children[place], siblings[i] = i, children[place]
    for i in range(count):
        found[beam.prefixes[i]].place = NONE
    return children, siblings


@compiled
def _score(found: np.ndarray, beam: Beam, new: Candidates) -> float:
    """Scores the beam's own prefixes; the best score is returned."""
    best = NEVER
    for i in range(len(beam.prefixes)):
        prefix = found[beam.prefixes[i]]
        new.scores[i] = _log_add(new.by_blank[i], new.by_label[i]) + prefix.worth + prefix.outlook
        best = max(best, new.scores[i])
    return best


@compiled
def _grown(
    found: np.ndarray,
    fusion: Fusion,
    beam: Beam,
    row: np.ndarray,
    tried: np.ndarray,
    threshold: float,
    new: Candidates,
) -> tuple[int, float]:
    """Paths that say a label more. Returns the number of candidates, and the best score so far.

    Where the beam has the prefix with that label, they are added to its own paths. Others that are hopeless
    by the threshold are left out at once.
    """
    count, best = len(beam.prefixes), _score(found, beam, new)
    children, siblings = _families(found, beam)
    child_of = np.empty(len(row), np.int64)  # by the label more
    for label in range(len(row)):
        child_of[label] = NONE
    for i in range(len(beam.prefixes)):
        prefix, total = found[beam.prefixes[i]], _log_add(beam.by_blank[i], beam.by_label[i])
        child = children[i]
        while child != NONE:
            child_of[found[beam.prefixes[child]].label] = child
            child = siblings[child]
        for label in tried:
            again = label == prefix.label
            if again and label == fusion.delimiter:
                continue  # `_kept` has it
            log_prob = (beam.by_blank[i] if again else total) + row[label]
            child = child_of[label]
            if child != NONE:
                new.by_label[child] = _log_add(new.by_label[child], log_prob)
            elif log_prob != NEVER and log_prob + prefix.worth + fusion.most_gain >= best - threshold:
                _, _, _, _, worth, outlook = followed(found, fusion, beam.prefixes[i], label)
                new.scores[count] = log_prob + worth + outlook
                new.parents[count], new.labels[count], new.by_label[count] = i, label, log_prob
                best = max(best, new.scores[count])
                count += 1
        child = children[i]
        while child != NONE:
            child_of[found[beam.prefixes[child]].label] = NONE
            child = siblings[child]
    return count, best


@compiled
def _search(
    log_probs: np.ndarray,
    blank: int,
    fusion: Fusion,
    width: int,
    token_threshold: float,
    beam_threshold: float,
) -> Last:
    """The last beam; arguments as `search`."""
    labels = log_probs.shape[1]
    found = np.zeros(8 * min(width, 4096) + 64, PREFIX)
    begin(found, fusion)
    known = 1
    keys, values = _entered(found, known, labels)
    beam = Beam(np.zeros(1, np.int64), np.zeros(1), _nevers(1))
    live = 0.0
    for frame in log_probs:
        row, tried = _tried(frame, token_threshold, blank)
        most = len(beam.prefixes) * (len(tried) + 1)
        new = Candidates(
            _nevers(most),
            np.zeros(most, np.int64),
            np.zeros(most, np.int64),
            _nevers(most),
            _nevers(most),
        )
        _kept(found, fusion, beam, row, blank, new)
        count, best = _grown(found, fusion, beam, row, tried, beam_threshold, new)
        best = max(best, _score(found, beam, new))  # again: paths were added
        chosen = _chosen(new.scores[:count], best - beam_threshold, width)
        if known + len(chosen) > len(found):
            found, known = _compacted(found, known, beam.prefixes, len(chosen))
            keys, values = _entered(found, known, labels)
        following = Beam(np.empty(len(chosen), np.int64), np.empty(len(chosen)), np.empty(len(chosen)))
        for j in range(len(chosen)):
            i = chosen[j]
            following.by_blank[j], following.by_label[j] = new.by_blank[i], new.by_label[i]
            if i < len(beam.prefixes):
                following.prefixes[j] = beam.prefixes[i]
                continue
            parent, label = beam.prefixes[new.parents[i]], new.labels[i]
            at = slot(keys, parent * labels + label)
            if keys[at] == VACANT:
                _enter(found, fusion, known, parent, label)
                keys[at], values[at] = parent * labels + label, known
                known += 1
            following.prefixes[j] = values[at]
        beam = following
        live += len(chosen)
    ctc, lm, scores = _judged(found, fusion, beam)
    return Last(found, beam.prefixes, ctc, lm, scores, live / max(1, len(log_probs)))


@compiled
def _judged(found: np.ndarray, fusion: Fusion, beam: Beam) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of labels and of words, and scores, of the last beam [B].

    A text with a delimiter behind it, and the one without, are one: the former's score is then -inf.
    """
    count = len(beam.prefixes)
    ctc, lm, scores = np.empty(count), np.empty(count), np.empty(count)
    for i in range(count):
        found[beam.prefixes[i]].place = i
        ctc[i] = _log_add(beam.by_blank[i], beam.by_label[i])
    for i in range(count):
        parent = _without_delimiter(found, fusion, beam.prefixes[i])
        if parent != beam.prefixes[i] and found[parent].place != NONE:
            place = found[parent].place
            ctc[place], ctc[i] = _log_add(ctc[place], ctc[i]), NEVER
    for i in range(count):
        lm[i], worth = whole(found, fusion, beam.prefixes[i])
        scores[i] = ctc[i] + worth
    return ctc, lm, scores


@compiled
def _without_delimiter(found: np.ndarray, fusion: Fusion, prefix: int) -> int:
    """The prefix, or the one before it where its last label is a delimiter."""
    at = found[prefix]
    if at.parent != NONE and at.label == fusion.delimiter:
        return int(at.parent)
    return prefix


@compiled
def _spelt(found: np.ndarray, fusion: Fusion, prefixes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The labels of prefixes one after another, without delimiters behind them; `ends` [F] is written to."""
    total = 0
    for j in range(len(prefixes)):
        at = _without_delimiter(found, fusion, prefixes[j])
        while found[at].parent != NONE:
            total, at = total + 1, found[at].parent
        ends[j] = total
    labels = np.empty(total, np.int32)
    for j in range(len(prefixes)):
        at, place = _without_delimiter(found, fusion, prefixes[j]), ends[j]
        while found[at].parent != NONE:
            place -= 1
            labels[place] = found[at].label
            at = found[at].parent
    return labels


def search(
    log_probs: np.ndarray,
    blank: int,
    fusion: Fusion,
    width: int,
    token_threshold: float,
    beam_threshold: float,
    wanted: int,
) -> Found:
    """The best hypotheses.

    Args:
        log_probs: float32 [T, V], natural logarithms.
        blank: the label of the CTC blank.
        fusion: judges prefixes.
        width: B at most.
        token_threshold, beam_threshold: see `BeamSettings`.
        wanted: F at most.
    """
    last = _search(log_probs, blank, fusion, width, token_threshold, beam_threshold)
    order = np.argsort(-last.scores, kind="stable")[:wanted]
    order = order[last.scores[order] > NEVER]
    ends = np.empty(len(order), np.int64)
    labels = _spelt(last.prefixes, fusion, last.beam[order], ends)
    return Found(last.scores[order], last.ctc[order], last.lm[order], labels, ends, last.live)

"""Prefix beam search over the outputs of a CTC model (Graves & Jaitly 2014; Hannun et al. 2014).

The probability of a text is the sum over all label paths that read as it. It is kept for each prefix, in two
parts: of the paths that end in a blank, and of those that end in its last label. Delimiters that follow each
other read as one, and those at the begin and the end as nothing, so they are summed up as well. Beside it
stands what `fusion` makes of the prefix, by which hypotheses are compared.

    T  frames      V  labels of the model      B  prefixes of the beam      F  hypotheses that are found
"""

from __future__ import annotations

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


@compiled
def _log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == NEVER else high + np.log1p(np.exp(low - high))  # type: ignore[no-any-return]


@compiled
def _tried(row: np.ndarray, threshold: float, tried: np.ndarray) -> int:
    """Writes the labels that a frame may have, and returns their number."""
    count, best = 0, np.argmax(row)
    for label in range(len(row)):
        if (row[label] >= threshold and row[label] != NEVER) or label == best:
            tried[count] = label
            count += 1
    return count


@compiled
def _chosen(scores: np.ndarray, lowest: float, beam: int, chosen: np.ndarray) -> int:
    """Writes the places of the best `beam` scores that are not below `lowest`; returns their number."""
    count = 0
    for i in range(len(scores)):
        if scores[i] >= lowest and scores[i] != NEVER:
            chosen[count] = i
            count += 1
    if count <= beam:
        return count
    last = np.partition(scores[chosen[:count]], count - beam)[count - beam]
    equals = beam  # of those that are equal to the last one, so many are kept: the first
    for i in chosen[:count]:
        equals -= scores[i] > last
    kept = 0
    for i in chosen[:count]:
        if scores[i] > last or (scores[i] == last and equals > 0):
            equals -= scores[i] == last
            chosen[kept] = i
            kept += 1
    return kept


@compiled
def _compacted(found: np.ndarray, count: int, beam: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """Prefixes [C] without those from which none of the beam's come, and their number.

    `beam` is renumbered. There is room for `room` more, and for twice their number at least.
    """
    numbers = np.full(count, NONE, np.int32)
    for prefix in beam:
        at = prefix
        while at != NONE and numbers[at] == NONE:
            numbers[at] = FIRST
            at = found[at].parent
    order = np.flatnonzero(numbers != NONE)
    kept = len(order)
    new = np.zeros(max(len(found), 2 * kept + room), PREFIX)
    for i in range(kept):
        numbers[order[i]] = i
        new[i] = found[order[i]]
        if new[i].parent != NONE:  # which has a lower number
            new[i].parent = numbers[new[i].parent]
    for i in range(len(beam)):
        beam[i] = numbers[beam[i]]
    return new, kept


@compiled
def _entered(found: np.ndarray, count: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash table of prefixes: a prefix and a label lead to the prefix with that label more."""
    size = 1
    while size < 4 * len(found):
        size *= 2
    keys, values = np.full(size, VACANT, np.int64), np.zeros(size, np.int32)
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
    labels = log_probs.shape[1]
    found = np.zeros(8 * min(width, 4096) + 64, PREFIX)
    begin(found, fusion)
    known = 1
    keys, values = _entered(found, known, labels)
    beam = np.zeros(1, np.int64)  # [B], prefixes
    # [B], log-probabilities of each one's paths, which end in a blank, or in its last label
    by_blank, by_label = np.zeros(1), np.full(1, NEVER)
    tried = np.zeros(labels, np.int64)
    sibling_at = np.full(labels, NONE, np.int64)
    live = 0.0
    for row in log_probs:
        tries = _tried(row, token_threshold, tried)
        count, most = len(beam), len(beam) * (tries + 1)
        # Candidates: first the prefixes of the beam, then those with a label more that are not in it.
        scores, from_, added = np.full(most, NEVER), np.zeros(most, np.int64), np.zeros(most, np.int64)
        new_blank, new_label = np.full(most, NEVER), np.full(most, NEVER)
        heads, nexts = np.full(count, NONE, np.int64), np.full(count, NONE, np.int64)
        totals = np.empty(count)
        for i in range(count):
            found[beam[i]].place = i
            totals[i] = _log_add(by_blank[i], by_label[i])
        best = NEVER
        for i in range(count):
            prefix = found[beam[i]]
            if prefix.parent != NONE and found[prefix.parent].place != NONE:
                parent = found[prefix.parent].place
                heads[parent], nexts[i] = i, heads[parent]
            for label in tried[:tries]:
                if label == blank:
                    new_blank[i] = totals[i] + row[label]
                elif label == prefix.label:
                    again = totals[i] if label == fusion.delimiter else by_label[i]
                    new_label[i] = again + row[label]
            best = max(best, _log_add(new_blank[i], new_label[i]) + prefix.worth + prefix.outlook)
        candidates = count
        for i in range(count):
            prefix = found[beam[i]]
            child = heads[i]
            while child != NONE:
                sibling_at[found[beam[child]].label] = child
                child = nexts[child]
            for label in tried[:tries]:
                if label == blank or (label == prefix.label and label == fusion.delimiter):
                    continue
                log_prob = (by_blank[i] if label == prefix.label else totals[i]) + row[label]
                child = sibling_at[label]
                if child != NONE:
                    new_label[child] = _log_add(new_label[child], log_prob)
                    continue
                if log_prob + prefix.worth + fusion.most_gain < best - beam_threshold or log_prob == NEVER:
                    continue
                _, _, _, _, worth, outlook = followed(found, fusion, beam[i], label)
                scores[candidates] = log_prob + worth + outlook
                best = max(best, scores[candidates])
                from_[candidates], added[candidates], new_label[candidates] = i, label, log_prob
                candidates += 1
            child = heads[i]
            while child != NONE:
                sibling_at[found[beam[child]].label] = NONE
                child = nexts[child]
        for i in range(count):
            prefix = found[beam[i]]
            prefix.place = NONE
            scores[i] = _log_add(new_blank[i], new_label[i]) + prefix.worth + prefix.outlook
            best = max(best, scores[i])
        chosen = np.empty(candidates, np.int64)
        kept = _chosen(scores[:candidates], best - beam_threshold, width, chosen)
        if known + kept > len(found):
            found, known = _compacted(found, known, beam, kept)
            keys, values = _entered(found, known, labels)
        following = np.empty(kept, np.int64)
        for j in range(kept):
            i = chosen[j]
            if i < count:
                following[j] = beam[i]
                continue
            key = beam[from_[i]] * labels + added[i]
            at = slot(keys, key)
            if keys[at] == VACANT:
                _enter(found, fusion, known, beam[from_[i]], added[i])
                keys[at], values[at] = key, known
                known += 1
            following[j] = values[at]
        by_blank, by_label = new_blank[chosen[:kept]], new_label[chosen[:kept]]
        beam = following
        live += kept
    return _hypotheses(found, fusion, beam, by_blank, by_label, wanted, live / max(1, len(log_probs)))


@compiled
def _hypotheses(
    found: np.ndarray,
    fusion: Fusion,
    beam: np.ndarray,
    by_blank: np.ndarray,
    by_label: np.ndarray,
    wanted: int,
    live: float,
) -> Found:
    """The texts of the last beam. A text with a blank behind it, and the one without, are one."""
    count = len(beam)
    ctc, lm, scores = np.empty(count), np.empty(count), np.full(count, NEVER)
    for i in range(count):
        found[beam[i]].place = i
        ctc[i] = _log_add(by_blank[i], by_label[i])
    for i in range(count):
        prefix = found[beam[i]]
        if prefix.parent != NONE and prefix.label == fusion.delimiter:
            parent = found[prefix.parent].place
            if parent != NONE:
                ctc[parent] = _log_add(ctc[parent], ctc[i])
                ctc[i] = NEVER
    for i in range(count):
        lm[i], worth = whole(found, fusion, beam[i])
        scores[i] = ctc[i] + worth
    order = np.argsort(-scores, kind="mergesort")[:wanted]
    order = order[scores[order] != NEVER]
    ends = np.empty(len(order), np.int64)
    total = 0
    for pass_ in range(2):
        labels = np.empty(total, np.int32)
        total = 0
        for j in range(len(order)):
            at, begun = beam[order[j]], total
            if found[at].parent != NONE and found[at].label == fusion.delimiter:
                at = found[at].parent
            while found[at].parent != NONE:
                if pass_:
                    labels[total] = found[at].label
                total += 1
                at = found[at].parent
            if pass_:
                labels[begun:total] = labels[begun:total][::-1].copy()
            ends[j] = total
    return Found(scores[order], ctc[order], lm[order], labels, ends, live)

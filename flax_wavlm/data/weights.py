"""Corpora of different weights: which clips an epoch has, and how often.

A clip of weight w is in an epoch floor(w) times. For the fraction that is left, that share of the clips with
this weight is drawn anew in each epoch. So an epoch has the same number of clips every time, and over many
epochs each clip is there w times an epoch on average.

    n  clips                                                     S  batches
    m  clips of an epoch, repeated ones counted each time        B  rows of a batch
"""

from __future__ import annotations

import numpy as np

FILLER = -1  # stands where a clip's index would


def clips_per_epoch(weights: np.ndarray) -> int:
    """m, for the weights [n] of the clips, each above 0."""
    return sum(whole * len(members) + drawn for members, whole, drawn in _groups(weights))


def draw_epoch(weights: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """The clips of an epoch: indices [m], ascending. A pure function of its arguments."""
    # The counter sets these numbers apart from those that shuffle the epoch, which have the same key.
    random = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, 1])
    chosen = []
    for members, whole, drawn in _groups(weights):
        order = np.argsort(random.random_raw(len(members)), kind="stable")
        chosen += [np.repeat(members, whole), members[order[:drawn]]]
    return np.sort(np.concatenate(chosen))


def spread_copies(rows: np.ndarray, samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The rows [S, B] with the copies of a clip in different batches, as far as swaps of two clips can.

    Args:
        rows: indices of clips, or FILLER, which stays where it is.
        samples: the padded length of each batch [S]. No clip is put where it is too long.
        lengths: of the clips [n].
    """
    rows = rows.copy()
    inside = [set(batch[batch != FILLER].tolist()) for batch in rows]
    for batch, row in _second_copies(rows):
        clip = int(rows[batch, row])
        for other in np.roll(np.arange(len(rows)), -batch - 1)[:-1]:
            if clip in inside[other] or lengths[clip] > samples[other]:
                continue
            swappable = [
                place
                for place, candidate in enumerate(rows[other].tolist())
                if candidate != FILLER
                and candidate not in inside[batch]
                and lengths[candidate] <= samples[batch]
                and rows[other].tolist().count(candidate) == 1
            ]
            if swappable:
                place = swappable[row % len(swappable)]
                candidate = int(rows[other, place])
                rows[batch, row], rows[other, place] = candidate, clip
                inside[batch].add(candidate)
                inside[other].remove(candidate)
                inside[other].add(clip)
                break
    return rows


def _groups(weights: np.ndarray) -> list[tuple[np.ndarray, int, int]]:
    """For each weight: the clips that have it, how often each is there, and how many are drawn besides."""
    groups = []
    for weight in np.unique(weights):
        members = np.flatnonzero(weights == weight)
        whole = int(weight)
        drawn = round((float(weight) - whole) * len(members))
        # A small weight must not leave a corpus out altogether.
        groups.append((members, whole, drawn if whole else max(1, drawn)))
    return groups


def _second_copies(rows: np.ndarray) -> list[tuple[int, int]]:
    """Batch and row of each clip that stands before it in the same batch."""
    order = np.argsort(rows, axis=1, kind="stable")
    ascending = np.take_along_axis(rows, order, axis=1)
    repeated = np.argwhere((ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] != FILLER))
    return sorted((int(batch), int(order[batch, place + 1])) for batch, place in repeated)

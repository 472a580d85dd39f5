"""Forced alignment: when each label of a known text was said, by the best path of CTC (Viterbi).

A path of T frames goes through the states blank, label, blank, ..., label, blank, of which it may leave out
the blanks, except between two equal labels (Graves et al. 2006, section 4.1, with the maximum in place of the
sum). The best path is found exactly, on the host, with NumPy: half an hour of speech takes some
seconds on one core (benchmarks/alignment.py), and nothing is compiled for each length. The trellis of a long
recording does not fit into memory, so it is kept at few frames. Between two of them it is computed again, for
those states alone that can lead to the path's own.

    T  frames      V  labels of the model      L  labels of the text      P  pairs of a blank and a label
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flax_wavlm.errors import UserError

STAR_PENALTY = 1.0  # nats a frame, see `align_labels`
STAR_ENTRY = 15.0  # nats; a word that is said costs the text about 30, where no star takes it
_LEAST = np.float32(-1e4)  # a log-probability of -inf counts as this, so that every text has a path
_WHOLE = 1024  # frames of which the whole trellis is kept
_BLOCKS = 64  # of the frames of a longer trellis, which is kept where they begin
_BLANK, _STAR, _LABEL = range(3)  # a state's kind: states are numbered 3 * pair + kind


class Alignment(NamedTuple):
    """Where the labels of a text are in a recording."""

    frames: np.ndarray  # int [L, 2]: each label's first frame, and the one after its last
    confidences: np.ndarray  # float [L]: the mean posterior of each label over its frames, 0 to 1
    # int [N, 2]: stretches that stars took, from the first frame that is no blank to the one after the last
    absent: np.ndarray
    score: float  # log-probability of the path, less what its stars cost


def align_labels(
    log_probs: np.ndarray,
    labels: np.ndarray,
    blank_id: int,
    *,
    stars: np.ndarray | None = None,
    star_penalty: float = STAR_PENALTY,
    star_entry: float = STAR_ENTRY,
) -> Alignment:
    """The best of all paths that spell the labels.

    A star stands for speech that the text lacks. In Pratap et al. 2023 its log-probability is 0 in every
    frame, so that it takes every frame that it can get, and leaves one to each label. Here it is that of the
    blank, or of the frame's best label less a penalty, whichever is higher. That is less than the text's own
    where the text fits. To begin a star costs once more, or else the words of a text that is much shorter
    than the recording would be picked from all over it. A star takes the place of a blank, may last any
    number of frames, and may be left out.

    Of paths with equal scores it is the one that is further on in the text in the last frame in which they
    differ.

    Args:
        log_probs: [T, V], natural logarithms of each frame's posteriors.
        labels: int [L], without blanks.
        blank_id: the label of the CTC blank.
        stars: bool [L + 1], True where the blank before a label may be a star; the last one is behind the
            last label. None: there are no stars.
        star_penalty: nats a frame.
        star_entry: nats for each star.
    Raises:
        UserError: there are fewer frames than labels and blanks between equal ones, or the model's outputs
            are not numbers.
    """
    log_probs, labels = np.asarray(log_probs, np.float32), np.asarray(labels, np.intp)
    if (needed := frames_needed(labels)) > len(log_probs):
        raise UserError(
            f"a text of {len(labels)} labels",
            expected=f"at least {needed} frames to say it in, and there are {len(log_probs)}",
            do="give the text of this recording",
        )
    if not len(log_probs):
        return Alignment(np.zeros((0, 2), int), np.zeros(0), np.zeros((0, 2), int), 0.0)
    least, most = log_probs.min(), log_probs.max()  # NaN, where one is
    if not (least <= 0 and most < np.inf):
        raise UserError("the model's outputs are not numbers", do="give weights that were not damaged")
    if least < _LEAST:
        log_probs = np.maximum(log_probs, _LEAST)
    enter = None if stars is None else np.where(stars, np.float32(-star_entry), np.float32(-np.inf))
    trellis = _Trellis.of(log_probs, labels, blank_id, enter, star_penalty)
    start = _Column.unreached(len(labels) + 1, starred=stars is not None)
    start.blanks[0] = 0.0  # before its first frame, a path is in the first blank
    last = 3 * len(labels)
    ends = [last + _STAR, last, last - 1] if stars is not None and stars[-1] else [last, last - 1]
    states = np.empty(len(log_probs), np.intp)
    _walk(trellis, range(len(log_probs)), 0, start, ends if len(labels) else ends[:-1], states)
    return _described(trellis, states)


def frames_needed(labels: np.ndarray) -> int:
    """The fewest frames that labels [L] can be said in: between two equal ones there must be a blank."""
    return len(labels) + int(np.count_nonzero(labels[1:] == labels[:-1]))


class _Column(NamedTuple):
    """The scores of the best paths to the states of some pairs, in one frame."""

    blanks: np.ndarray  # [P]
    labels: np.ndarray  # [P + 1]; the first is the label of the pair before
    stars: np.ndarray  # [P]; [0] where there are none

    @classmethod
    def unreached(cls, pairs: int, *, starred: bool) -> _Column:
        sizes = (pairs, pairs + 1, pairs if starred else 0)
        return cls(*(np.full(size, -np.inf, np.float32) for size in sizes))

    def part(self, low: int, high: int) -> _Column:
        """Pairs [low, high), as a view."""
        return _Column(self.blanks[low:high], self.labels[low : high + 1], self.stars[low:high])

    def copy(self) -> _Column:
        return _Column(*(scores.copy() for scores in self))


@dataclass(frozen=True)
class _Pairs:
    """What leads from one frame to the next, of some pairs."""

    ids: np.ndarray  # int [P], the labels
    skip: np.ndarray  # [P]: 0 where the label may follow the label before, else -inf
    enter: np.ndarray | None  # [P]: what a star there costs to begin, -inf where none may be; None: nowhere
    space: np.ndarray  # [2, P]

    def advance(self, old: _Column, new: _Column, scores: np.ndarray, blank: float, star: float) -> None:
        """One frame of the recursion; `new` may be `old`. The log-probabilities are those of the new frame.

        Args:
            scores: [P], of the labels.
            blank, star: of the blank and of a star.
        """
        before, (to_label, to_star) = old.labels[:-1], self.space
        np.add(before, self.skip, out=to_label)
        np.maximum(to_label, old.blanks, out=to_label)
        np.maximum(to_label, old.labels[1:], out=to_label)
        np.maximum(old.blanks, before, out=new.blanks)
        if self.enter is not None:
            np.maximum(to_label, old.stars, out=to_label)
            np.add(new.blanks, self.enter, out=to_star)
            np.maximum(to_star, old.stars, out=to_star)
            np.add(to_star, star, out=new.stars)
        np.add(new.blanks, blank, out=new.blanks)
        np.add(to_label, scores, out=new.labels[1:])


@dataclass(frozen=True)
class _Trellis:
    """What a path's score is made of."""

    log_probs: np.ndarray  # [T, V]
    labels: np.ndarray  # int [L + 1]; the last pair has no label: its place holds the blank
    blank: np.ndarray  # [T], the log-probability of the blank
    star: np.ndarray  # [T], that of a star
    enter: np.ndarray | None  # [L + 1], as `_Pairs` has it
    skip: np.ndarray  # [L + 1], as `_Pairs` has it

    @classmethod
    def of(
        cls,
        log_probs: np.ndarray,
        labels: np.ndarray,
        blank_id: int,
        enter: np.ndarray | None,
        star_penalty: float,
    ) -> _Trellis:
        blank = np.ascontiguousarray(log_probs[:, blank_id])
        star = blank if enter is None else np.maximum(blank, log_probs.max(axis=1) - np.float32(star_penalty))
        before, at = np.concatenate([[blank_id], labels]), np.concatenate([labels, [blank_id]])
        skip = np.where(before == at, np.float32(-np.inf), np.float32(0))
        return cls(log_probs, at.astype(np.intp), blank, star, enter, skip)

    def pairs(self, low: int, high: int) -> _Pairs:
        part = slice(low, high)
        enter = None if self.enter is None else self.enter[part]
        return _Pairs(self.labels[part], self.skip[part], enter, np.empty((2, high - low), np.float32))


def _walk(
    trellis: _Trellis, frames: range, first: int, start: _Column, ends: list[int], states: np.ndarray
) -> int:
    """Finds the best path through some frames, and writes its states there.

    Args:
        first: the first pair of `start`.
        start: the scores before the first of the frames. From states that it lacks there is no way to `ends`.
        ends: states in the last of the frames, the highest first.
        states: int [T], to be filled.
    Returns:
        the state before the first of the frames.
    """
    if len(frames) <= _WHOLE:
        return _walk_whole(trellis, frames, first, start, ends, states)
    size = -(-len(frames) // _BLOCKS)
    blocks = [frames[i : i + size] for i in range(0, len(frames), size)]
    kept = _kept(trellis, blocks, first, start, ends)
    for block in reversed(blocks):
        low = max(first, ends[-1] // 3 - len(block))  # a frame leads to the next pair at most
        column = kept.pop().part(low - first, ends[0] // 3 + 1 - first)
        ends = [_walk(trellis, block, low, column, ends, states)]
    return ends[0]


def _kept(
    trellis: _Trellis, blocks: list[range], first: int, start: _Column, ends: list[int]
) -> list[_Column]:
    """The trellis before each block of frames; other arguments as for `_walk`.

    States that no path can have reached, and those from which no path reaches an end in time, are -inf.
    """
    column, scores = start.copy(), np.empty_like(start.blanks)
    reached = max(int(np.flatnonzero(np.isfinite(part))[-1]) for part in start if np.isfinite(part).any())
    kept = [start]
    for block in blocks[:-1]:
        low = max(0, ends[-1] // 3 - (blocks[-1].stop - block.start) - first)
        high = min(len(scores), reached + 1 + block.stop - blocks[0].start)
        for old in (column.blanks[:low], column.labels[: low + 1], column.stars[:low]):
            old.fill(-np.inf)
        part, score = column.part(low, high), scores[low:high]
        pairs = trellis.pairs(first + low, first + high)
        highest = max(kind.max() for kind in part if len(kind))
        for kind in part:
            np.subtract(kind, highest, out=kind)  # a sum over hours has few digits in float32
        for frame in block:
            np.take(trellis.log_probs[frame], pairs.ids, out=score, mode="clip")
            pairs.advance(part, part, score, trellis.blank[frame], trellis.star[frame])
        kept.append(column.copy())
    return kept


def _walk_whole(
    trellis: _Trellis, frames: range, first: int, start: _Column, ends: list[int], states: np.ndarray
) -> int:
    """As `_walk`, with the trellis of all the frames at once."""
    count = len(start.blanks)
    blanks, labels, stars = (np.empty((len(frames) + 1, len(kind)), np.float32) for kind in start)
    blanks[0], labels[0], stars[0] = start
    labels[:, 0] = -np.inf
    pairs = trellis.pairs(first, first + count)
    scores = trellis.log_probs[frames.start : frames.stop, pairs.ids]
    columns = [_Column(*kinds) for kinds in zip(blanks, labels, stars, strict=True)]
    for i, frame in enumerate(frames):
        pairs.advance(columns[i], columns[i + 1], scores[i], trellis.blank[frame], trellis.star[frame])
    # Of equals, `max` takes the first: states further on are listed before others.
    state = max(ends, key=lambda end: _score(columns[-1], end // 3 - first, end % 3))
    for i in range(len(frames), 0, -1):
        states[frames.start + i - 1] = state
        state = _before(columns[i - 1], pairs, first, state)
    return state


def _score(column: _Column, pair: int, kind: int) -> float:
    if kind == _LABEL:
        return column.labels[pair + 1]
    return column.stars[pair] if kind == _STAR else column.blanks[pair]


def _before(column: _Column, pairs: _Pairs, first: int, state: int) -> int:
    """The state before a state, by the scores of the frame before; of equals the one that is further on."""
    pair, kind = state // 3 - first, state % 3
    label_before = column.labels[pair]
    if kind == _BLANK:
        return state if column.blanks[pair] >= label_before else state - 1
    if kind == _STAR:
        assert pairs.enter is not None
        if column.stars[pair] >= max(column.blanks[pair], label_before) + pairs.enter[pair]:
            return state
        return state - 1 if column.blanks[pair] >= label_before else state - 2
    best, found = column.labels[pair + 1], state
    if pairs.enter is not None and column.stars[pair] > best:
        best, found = column.stars[pair], state - 1
    if column.blanks[pair] > best:
        best, found = column.blanks[pair], state - 2
    if label_before + pairs.skip[pair] > best:
        found = state - 3
    return found


def _described(trellis: _Trellis, states: np.ndarray) -> Alignment:
    """What a path of states [T] says of the labels."""
    kinds = states % 3
    wanted = 3 * np.arange(len(trellis.labels) - 1) + _LABEL
    frames = np.stack([np.searchsorted(states, wanted, side) for side in ("left", "right")], axis=1)
    said = trellis.log_probs[np.arange(len(states)), trellis.labels[states // 3]]
    posterior = np.concatenate([[0.0], np.cumsum(np.exp(said, dtype=np.float64))])
    means = (posterior[frames[:, 1]] - posterior[frames[:, 0]]) / (frames[:, 1] - frames[:, 0])
    score = np.choose(kinds, [trellis.blank, trellis.star, said]).sum(dtype=np.float64)
    if trellis.enter is not None:
        score += trellis.enter[np.unique(states[kinds == _STAR]) // 3].sum(dtype=np.float64)
    taken = np.flatnonzero((kinds == _STAR) & (trellis.star > trellis.blank))
    new = np.flatnonzero(np.diff(states[taken], prepend=-1))  # a star's frames are of one state
    absent = np.stack([taken[new], np.append(taken[new[1:] - 1], taken[-1:]) + 1], axis=1)
    return Alignment(frames, np.clip(means, 0.0, 1.0), absent, float(score))

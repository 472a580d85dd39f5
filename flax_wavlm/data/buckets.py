"""Which shapes a data set's batches get: the few padded lengths that pad least, and the rows of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError


class BatchShape(NamedTuple):
    """The clips of a batch: so many rows, each padded to so many samples."""

    samples: int
    rows: int


def choose_buckets(
    lengths: Sequence[int] | np.ndarray,
    n_buckets: int,
    *,
    batch_size: int = 1,
    min_batches: int = 1,
    multiple: int = 320,
    frame_count: Callable[[Any], Any] | None = None,
) -> tuple[int, ...]:
    """The padded lengths, at most `n_buckets`, that pad clips of these lengths [n] least. Ascending.

    "Least" is over all ways to put the clips into full batches. Sort the clips, longest first. In any
    batching, k of the batches must be long enough for clip number (k - 1) batch_size + 1, because that many
    clips do not fit into k - 1 batches. Cutting the sorted clips into batches needs no more than that. So
    only the longest clip of each such batch counts, and dynamic programming over the m distinct lengths of
    those is exact. It takes O(n log n + n_buckets m^2) operations.

    Args:
        lengths: samples of each clip.
        batch_size: clips in a batch; every batch is full, except one.
        min_batches: batches in a bucket, at least: clips that share a bucket of one batch would meet in every
            epoch. Lower where there are not enough batches for all buckets.
        multiple: every bucket is a multiple of this number of samples: a frame of WavLM's conv stem.
        frame_count: the model's, for arrays. Where given, every bucket has an even number of frames, as
            GPUs want it (cuDNN's attention needs it). That adds a frame to every other bucket.
    Raises:
        UserError: no clips, or no buckets.
    """
    longest = _descending(lengths, n_buckets)[::batch_size]  # of each batch, [S]
    sizes, batches = np.unique(_rounded(longest, multiple, frame_count), return_counts=True)  # [m]
    min_batches = max(1, min(min_batches, len(longest) // n_buckets))
    return _least_padding(sizes, batches, n_buckets, min_batches)


def _descending(lengths: Sequence[int] | np.ndarray, n_buckets: int) -> np.ndarray:
    if len(lengths) == 0:
        raise UserError("there are no clips to choose bucket lengths for")
    if n_buckets < 1:
        raise UserError(field="data.buckets", found=n_buckets, expected="1 or more")
    return np.sort(np.asarray(lengths, np.int64))[::-1]


def _rounded(lengths: np.ndarray, multiple: int, frame_count: Callable[[Any], Any] | None) -> np.ndarray:
    """The lengths that buckets may have, see `choose_buckets`."""
    rounded = -(-lengths // multiple) * multiple
    return rounded if frame_count is None else rounded + multiple * (frame_count(rounded) % 2)


def _least_padding(
    sizes: np.ndarray, batches: np.ndarray, n_buckets: int, min_batches: int
) -> tuple[int, ...]:
    """The buckets among `sizes` [m], ascending, that pad `batches` [m] of these sizes least."""
    m = len(sizes)
    below = np.concatenate([[0], np.cumsum(batches)])  # [m + 1], batches in the first i sizes
    # cost[j]: fewest padded samples, over the batch size, that hold the first j sizes in the buckets so far.
    # Doubles are exact here: 2**53 samples are 18,000 years.
    cost = np.full(m + 1, np.inf)
    cost[0] = 0
    splits = []
    for _ in range(min(n_buckets, m)):
        lower, split = cost.copy(), np.arange(m + 1)  # an empty bucket
        for j in range(1, m + 1):  # the new bucket holds sizes i ... j - 1, padded to the last of them
            held = below[j] - below[:j]
            totals = np.where(held >= min_batches, cost[:j] + sizes[j - 1] * held, np.inf)
            if totals.min() < lower[j]:
                split[j] = np.argmin(totals)
                lower[j] = totals[split[j]]
        cost = lower
        splits.append(split)

    buckets, j = set(), m
    for split in reversed(splits):
        if split[j] < j:
            buckets.add(int(sizes[j - 1]))
            j = split[j]
    return tuple(sorted(buckets))


def choose_shapes(
    lengths: Sequence[int] | np.ndarray,
    n_buckets: int,
    *,
    batch_samples: int,
    rows_multiple: int = 1,
    min_batches: int = 1,
    multiple: int = 320,
    frame_count: Callable[[Any], Any] | None = None,
) -> tuple[BatchShape, ...]:
    """The batch shapes, at most `n_buckets`, that pad clips of these lengths [n] least. Shortest first.

    A shape has as many rows as `batch_samples` allow, so batches of short clips have more of them; or fewer,
    where a bucket's clips fill as many batches with less. The clips are cut into batches as
    `plans.plan_epoch` does: longest first, each batch full, the rows that a bucket's own clips leave over
    filled with the next shorter ones.

    Dynamic programming over the m distinct lengths at which a bucket can begin, O(n_buckets m^2). For each
    number of buckets and each length it keeps the plan that has padded least until there. Two such plans may
    have used up one batch more or less, so this is not exact, but close: tests/data/test_plans.py compares it
    with the bound that no plan reaches, that of every clip in the smallest bucket which holds it.

    Args:
        lengths: samples of each clip.
        batch_samples: padded samples of a batch, at most.
        rows_multiple: every batch has a multiple of so many rows: one for each device, say.
        min_batches, multiple, frame_count: as for `choose_buckets`.
    Raises:
        UserError: no clips, no buckets, or `batch_samples` too few for the longest clip.
    """
    clips = _descending(lengths, n_buckets)  # [n]
    ascending, counts = np.unique(_rounded(clips, multiple, frame_count), return_counts=True)
    sizes, first = ascending[::-1], np.cumsum(counts[::-1]) - counts[::-1]  # [m]; its first clip's place
    rows = batch_samples // sizes // rows_multiple * rows_multiple  # [m]
    if rows[0] == 0:
        raise UserError(
            field="train.batch_seconds",
            found=batch_samples / SAMPLE_RATE,
            expected=f"{rows_multiple * sizes[0] / SAMPLE_RATE:.2f} or more: the longest clip, padded, has "
            f"{sizes[0] / SAMPLE_RATE:.2f} s, and a batch has at least {rows_multiple} rows",
            do="raise it, or leave the longest clips out with data.train_max_seconds",
        )
    full = -(-int(clips.sum()) // batch_samples)
    plans = _Plans(sizes, rows, rows_multiple, first, np.concatenate([[0], np.cumsum(clips)]))
    return plans.least_padding(n_buckets, max(1, min(min_batches, full // n_buckets)))


class _Next(NamedTuple):
    """What can follow a bucket, each an array of the same length."""

    size: np.ndarray  # the index of the next bucket's size; m at the end
    rows: np.ndarray  # of the bucket's own batches
    held: np.ndarray  # clips in batches until then
    padded: np.ndarray  # samples of the bucket that belong to no clip


class _Plans:
    """Plans of the clips in order of length: after a bucket of the size i comes one of a size j > i."""

    def __init__(
        self,
        sizes: np.ndarray,
        rows: np.ndarray,
        rows_multiple: int,
        first: np.ndarray,
        samples: np.ndarray,
    ):
        self.sizes, self.rows = sizes, rows  # [m], descending, and the most rows of a batch
        self.rows_multiple = rows_multiple
        self.ends = np.append(first, len(samples) - 1)  # [m + 1]: where the clips of the next size begin
        self.samples = samples  # [n + 1]: of the first clips together

    def least_padding(self, n_buckets: int, min_batches: int) -> tuple[BatchShape, ...]:
        m = len(self.sizes)
        # Of the plans whose next bucket has size j: the least padding so far, and how many clips they hold.
        # Doubles are exact here, as above.
        padding, place = np.full(m + 1, np.inf), np.zeros(m + 1, np.int64)
        padding[0] = 0
        whole: list[float] = []  # the padding of all clips, by the number of buckets
        last: list[tuple[np.ndarray, np.ndarray]] = []  # the size and rows of the bucket before j
        for _ in range(min(n_buckets, m)):
            least, moved = np.full(m + 1, np.inf), place.copy()
            source, rows = np.full(m + 1, -1), np.zeros(m + 1, np.int64)
            for i in np.flatnonzero(np.isfinite(padding[:m])).tolist():
                following = self._next(i, int(place[i]), min_batches)
                better = padding[i] + following.padded < least[following.size]
                j = following.size[better]
                least[j], moved[j] = padding[i] + following.padded[better], following.held[better]
                source[j], rows[j] = i, following.rows[better]
            padding, place = least, moved
            last.append((source, rows))
            whole.append(float(padding[m]))
        shapes, j = [], m
        for source, rows in reversed(last[: int(np.argmin(whole)) + 1]):
            shapes.append(BatchShape(int(self.sizes[source[j]]), int(rows[j])))
            j = int(source[j])
        return tuple(shapes)

    def _next(self, i: int, place: int, min_batches: int) -> _Next:
        """All that can follow a bucket of size i that begins at the clip `place`. Each size once."""
        clips = self.ends[i + 1 :] - place  # in the bucket, at least
        batches = -(-clips // self.rows[i])
        possible = batches >= min_batches
        clips, batches = clips[possible], batches[possible]
        rows = -(-clips // (batches * self.rows_multiple)) * self.rows_multiple
        held = np.minimum(place + batches * rows, self.ends[-1])
        padded = batches * rows * self.sizes[i] - (self.samples[held] - self.samples[place])
        size = np.searchsorted(self.ends, held, side="right") - 1
        order = np.lexsort((padded, size))
        least = order[np.unique(size[order], return_index=True)[1]]
        return _Next(size[least], rows[least], held[least], padded[least])

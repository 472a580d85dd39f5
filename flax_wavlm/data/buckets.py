"""Which padded lengths a data set's batches get: the few that pad least."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flax_wavlm.errors import UserError


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
    if len(lengths) == 0:
        raise UserError("there are no clips to choose bucket lengths for")
    if n_buckets < 1:
        raise UserError(field="data.buckets", found=n_buckets, expected="1 or more")
    longest = np.sort(np.asarray(lengths, np.int64))[::-1][::batch_size]  # of each batch, [S]
    rounded = -(-longest // multiple) * multiple
    if frame_count is not None:
        rounded += multiple * (frame_count(rounded) % 2)
    sizes, batches = np.unique(rounded, return_counts=True)  # [m]
    min_batches = max(1, min(min_batches, len(longest) // n_buckets))
    return _least_padding(sizes, batches, n_buckets, min_batches)


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

"""TODO."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flax_wavlm.errors import UserError

# -------------------------------------------------------------------------------------------- buckets


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

    Least over all ways to put the clips into full batches. Of those k must have an N that holds clip number
    (k - 1) batch_size + 1 of the longest, since so many clips do not fit fewer; clips sorted and cut have no
    more than that. So only those lengths count, and dynamic programming over the m distinct ones is exact, in
    O(n log n + n_buckets m^2).

    Args:
        batch_size: of the batches, all full but for one.
        min_batches: in a bucket; clips that share a bucket of one batch would meet in every epoch. Fewer
            where else there would not be enough batches for all buckets.
        multiple: of which every bucket is one, in samples: a frame of WavLM's conv stem.
        frame_count: the model's, for arrays; where given, every bucket has an even number of frames, as
            GPUs want it (cuDNN's attention needs it). That adds a frame to every other bucket.
    """
    if len(lengths) == 0:
        raise UserError("no clips to choose bucket lengths for")
    if n_buckets < 1:
        raise UserError(f"at least one bucket is needed, got {n_buckets}")
    longest = np.sort(np.asarray(lengths, np.int64))[::-1][::batch_size]  # of each batch, [S]
    rounded = -(-longest // multiple) * multiple
    if frame_count is not None:
        rounded += multiple * (frame_count(rounded) % 2)
    sizes, batches = np.unique(rounded, return_counts=True)  # [m]
    below = np.concatenate([[0], np.cumsum(batches)])  # [m + 1], batches in the first i sizes
    m = len(sizes)
    min_batches = max(1, min(min_batches, len(longest) // n_buckets))

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

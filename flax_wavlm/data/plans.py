"""Which clips make which training batch: a pure function of their lengths, the seed and the epoch.

n  clips      S  batches of an epoch      B  rows of a batch
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.weights import FILLER
from flax_wavlm.errors import UserError


class Plan(NamedTuple):
    """Which clips make which batch, over all processes."""

    rows: np.ndarray  # int32 [S, B of the largest], indices of clips, FILLER in the rows that are left over
    samples: np.ndarray  # int64 [S], each batch's N
    sizes: np.ndarray  # int64 [S], each batch's B; what `rows` has beyond it is no part of the batch

    def padding(self, lengths: np.ndarray) -> float:
        """The share of the plan's samples that belong to no clip, filler rows included. `lengths`: [n]."""
        real = lengths[self.rows[self.rows != FILLER]].sum()
        return 1 - float(real / (self.samples * self.sizes).sum())


def plan_epoch(
    lengths: np.ndarray,
    batch_size: int | Sequence[int],
    buckets: Sequence[int],
    *,
    seed: int,
    epoch: int,
) -> Plan:
    """Every clip once, in batches of clips [n] of one bucket, drawn at random.

    The clips are sorted by length and cut into batches, which gives each batch its bucket. Then the clips
    within each bucket are shuffled, and then the batches. So a clip has the same N in every epoch, and the
    padding is the least that these buckets allow, if they were chosen for the same batch size.

    Args:
        lengths: samples of each clip [n].
        batch_size: B of every batch, or that of each bucket's.
        buckets: padded lengths in samples, see `choose_buckets` and `choose_shapes`.
        seed, epoch: 0 or more; each pair gives another order.
    """
    # Sorting random words makes a permutation that no NumPy version changes: bit streams are promised to
    # stay, Generator.permutation is not (NEP 19). Philox is counter-based: any two keys are independent.
    random = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    rows, samples, sizes = cut(np.argsort(-lengths, kind="stable"), lengths, batch_size, buckets)
    real = rows != FILLER
    bucket = np.broadcast_to(samples[:, None], rows.shape)[real]  # [n], descending
    rows[real] = rows[real][np.lexsort((random.random_raw(len(lengths)), -bucket))]
    order = np.argsort(random.random_raw(len(rows)), kind="stable")
    return Plan(rows[order], samples[order], sizes[order])


def cut(
    order: np.ndarray, lengths: np.ndarray, batch_size: int | Sequence[int], buckets: Sequence[int]
) -> Plan:
    """Consecutive batches of the clips in `order` [n], the longest first, as full as they can be.

    Each batch is padded to the smallest bucket that holds its first clip. Arguments as for `plan_epoch`.
    """
    samples, batches, sizes = [], [], []
    place = 0
    for size, longest, shorter in _by_length(batch_size, buckets):
        until = int(np.searchsorted(-lengths[order], -shorter, side="left"))  # of the longer clips
        count = max(0, -(-(until - place) // size))
        samples.append(longest)
        batches.append(count)
        sizes.append(size)
        place += count * size
    if (clip := lengths.max()) > samples[0]:
        raise UserError(
            f"a clip of {clip} samples does not fit the longest bucket",
            field="buckets",
            expected=f"at most {samples[0]} samples",
        )
    plan_sizes = np.repeat(np.array(sizes, np.int64), batches)
    rows = np.full((len(plan_sizes), max(sizes)), FILLER, np.int32)
    slots = np.flatnonzero(np.arange(rows.shape[1]) < plan_sizes[:, None])
    rows.flat[slots[: len(order)]] = order
    return Plan(rows, np.repeat(np.array(samples, np.int64), batches), plan_sizes)


def _by_length(batch_size: int | Sequence[int], buckets: Sequence[int]) -> list[tuple[int, int, int]]:
    """B and N of each bucket, and the N of the next shorter one, longest first."""
    sizes = [batch_size] * len(buckets) if isinstance(batch_size, int) else list(batch_size)
    longest_first = sorted(zip(buckets, sizes, strict=True), reverse=True)
    shorter = [*(samples for samples, _ in longest_first[1:]), 0]
    return [(size, samples, below) for (samples, size), below in zip(longest_first, shorter, strict=True)]

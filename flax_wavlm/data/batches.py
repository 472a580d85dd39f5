"""Clips to arrays of a few fixed shapes: which clips make which batch, padding, prefetching.

A training batch is a pure function of the clips, the seed and the step. Nothing here holds a random state. So
a resumed run, a run on other hosts, and somebody who wants to look at the batch of step 7,312 all compute the
same batch, and the only state to checkpoint is the number of the next step.

    n  clips          B  rows of the batch over all processes      N  padded samples of a batch
    S  batches        b  rows of this process, B / processes       L  padded labels of a data set

A batch is a dict of NumPy arrays:

    samples         [b, N]           int16 where all clips of the set are, else float32; padded with zeros
    mean            float32 [b]      subtracted from each row at full scale on the device, and
    scale           float32 [b]      multiplied with the rest: `flax_wavlm.data.preprocessor.input_values`
    lengths         int32 [b]        real samples of each row
    labels          int32 [b, L]     character ids, padded with zeros
    label_lengths   int32 [b]        real labels of each row
    valid           bool [b]         False on filler rows
    clip            int32 [b]        index into the list of clips, -1 on filler rows

Where the feature encoder's output was computed before (`Features`), a training batch has in place of the
first three:

    features        [b, T, C]        in the model's dtype, padded with zeros

Filler rows complete the last batch of an epoch. They are silence as long as the batch and have no
labels: every computation on them is finite, and `valid` keeps them out of every sum.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from flax_wavlm.data.clips import Clip
from flax_wavlm.data.preprocessor import full_scale
from flax_wavlm.data.weights import FILLER, clips_per_epoch, draw_epoch, spread_copies
from flax_wavlm.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


class Plan(NamedTuple):
    """Which clips make which batch, over all processes."""

    rows: np.ndarray  # int32 [S, B], indices of clips, FILLER in the rows that are left over
    samples: np.ndarray  # int64 [S], each batch's N

    def padding(self, lengths: np.ndarray) -> float:
        """The share of the plan's samples that belong to no clip, filler rows included."""
        real = lengths[self.rows[self.rows != FILLER]].sum()
        return 1 - float(real / (self.samples.sum() * self.rows.shape[1]))


def plan_epoch(
    lengths: np.ndarray, batch_size: int, buckets: Sequence[int], *, seed: int, epoch: int
) -> Plan:
    """Every clip once, in ceil(n / batch_size) batches of clips [n] of one bucket, drawn at random.

    The clips are sorted by length and cut into batches, which gives each batch its bucket. Then the clips
    within each bucket are shuffled, and then the batches. So a clip has the same N in every epoch, and the
    padding is the least that these buckets allow, if `choose_buckets` was given the same batch size.
    """
    # Sorting random words makes a permutation that no NumPy version changes: bit streams are promised to
    # stay, Generator.permutation is not (NEP 19). Philox is counter-based: any two keys are independent.
    random = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    rows, samples = _cut(np.argsort(-lengths, kind="stable"), lengths, batch_size, buckets)
    real = rows != FILLER
    bucket = np.broadcast_to(samples[:, None], rows.shape)[real]  # [n], descending
    rows[real] = rows[real][np.lexsort((random.random_raw(len(lengths)), -bucket))]
    order = np.argsort(random.random_raw(len(rows)), kind="stable")
    return Plan(rows[order], samples[order])


def _cut(order: np.ndarray, lengths: np.ndarray, batch_size: int, buckets: Sequence[int]) -> Plan:
    """Consecutive batches of the clips in `order` [n], each padded to the smallest bucket that holds it."""
    sizes = np.sort(np.asarray(buckets, np.int64))
    if lengths.max() > sizes[-1]:
        raise UserError(
            f"a clip of {lengths.max()} samples does not fit the longest bucket",
            field="buckets",
            expected=f"at most {sizes[-1]} samples",
        )
    steps = -(-len(order) // batch_size)
    rows = np.full((steps, batch_size), FILLER, np.int32)
    rows.flat[: len(order)] = order
    longest = np.where(rows == FILLER, 0, lengths[rows]).max(axis=1)
    return Plan(rows, sizes[np.searchsorted(sizes, longest)])


def _own_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """This process's share of a batch's rows."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            field="batch_size",
            found=batch_size,
            expected=f"1 or more, and a multiple of the number of processes, {process_count}",
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _lengths(clips: Sequence[Clip]) -> np.ndarray:
    if not clips:
        raise UserError("there are no usable clips")
    return np.array([len(clip.samples) for clip in clips], np.int64)


def _label_width(clips: Sequence[Clip]) -> int:
    """One L for the whole data set, so that labels never cause another shape to compile."""
    return -(-max(1, *(len(clip.labels) for clip in clips)) // 8) * 8


def _sample_type(clips: Sequence[Clip]) -> type[np.generic]:
    """One type for the whole data set, for the same reason: int16 where all clips are, else float32."""
    return np.int16 if all(clip.samples.dtype == np.int16 for clip in clips) else np.float32


def _checked_weights(weights: Sequence[float], clips: int) -> np.ndarray:
    checked = np.asarray(weights, np.float64)
    if checked.shape != (clips,) or not np.all((checked > 0) & np.isfinite(checked)):
        raise UserError(
            field="data.weights", found=list(weights), expected="numbers above 0, one for each of the clips"
        )
    return checked


class _Shape(NamedTuple):
    """Properties that all batches of a data set share."""

    labels: int
    sample_type: type[np.generic]
    do_normalize: bool


def _collate(clips: Sequence[Clip], rows: np.ndarray, samples: int, shape: _Shape) -> Batch:
    """The arrays of `rows` [b], padded to N = samples."""
    batch = {
        "samples": np.zeros((len(rows), samples), shape.sample_type),
        "mean": np.zeros(len(rows), np.float32),
        "scale": np.ones(len(rows), np.float32),
        "lengths": np.full(len(rows), samples, np.int32),
        "labels": np.zeros((len(rows), shape.labels), np.int32),
        "label_lengths": np.zeros(len(rows), np.int32),
        "valid": rows != FILLER,
        "clip": rows.astype(np.int32),
    }
    for row in np.flatnonzero(batch["valid"]):
        clip = clips[rows[row]]
        heard = clip.samples if shape.sample_type is np.int16 else full_scale(clip.samples)
        batch["samples"][row, : len(heard)] = heard
        if shape.do_normalize:
            batch["mean"][row], batch["scale"][row] = clip.mean_and_scale
        batch["lengths"][row] = len(heard)
        batch["labels"][row, : len(clip.labels)] = clip.labels
        batch["label_lengths"][row] = len(clip.labels)
    return batch


class Features(NamedTuple):
    """The feature encoder's output for every clip of a data set."""

    arrays: Sequence[np.ndarray]  # [n] of [T, C]
    frame_count: Callable[[int], int]

    def put_into(self, batch: Batch) -> Batch:
        """The batch with features in place of samples."""
        b, samples = batch["samples"].shape
        first = self.arrays[0]
        features = np.zeros((b, self.frame_count(samples), first.shape[1]), first.dtype)
        for row in np.flatnonzero(batch["valid"]):
            own = self.arrays[batch["clip"][row]]
            features[row, : len(own)] = own
        replaced = ("samples", "mean", "scale")
        return {"features": features, **{name: batch[name] for name in batch if name not in replaced}}


class Batches:
    """The training batches of one process, addressed by step: `batches[step]`, 0 <= step < steps.

    Every process must be given the same clips in the same order, buckets and seed: each makes the same
    plan, so all agree on every step's N, and takes its own rows of it.

    Args:
        clips: the training set.
        batch_size: B, over all processes; must be divisible by their number.
        buckets: padded lengths in samples, see `choose_buckets`.
        steps: length of the run, any number of epochs.
        seed: 0 or more.
        do_normalize: the model's `Preprocessor.do_normalize`.
        process_index, process_count: which process this is, of how many.
        weights: how often an epoch has each clip [n], see `flax_wavlm.data.weights`; None: once.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        buckets: Sequence[int],
        *,
        steps: int,
        seed: int,
        do_normalize: bool,
        process_index: int = 0,
        process_count: int = 1,
        weights: Sequence[float] | None = None,
    ):
        if seed < 0:
            raise UserError(field="seed", found=seed, expected="0 or more")
        self.clips = clips
        self.lengths = _lengths(clips)  # [n]
        self.buckets = tuple(buckets)
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.do_normalize = do_normalize
        self.weights = None if weights is None else _checked_weights(weights, len(clips))
        self.features: Features | None = None  # where set, batches have these and no samples
        self._own_rows = _own_rows(batch_size, process_index, process_count)
        self._shape = _Shape(_label_width(clips), _sample_type(clips), do_normalize)
        # Two epochs, because prefetching looks over the end of one.
        self.plan = functools.lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> Plan:
        if self.weights is None:
            return plan_epoch(self.lengths, self.batch_size, self.buckets, seed=self.seed, epoch=epoch)
        drawn = draw_epoch(self.weights, seed=self.seed, epoch=epoch)
        plan = plan_epoch(self.lengths[drawn], self.batch_size, self.buckets, seed=self.seed, epoch=epoch)
        rows = np.where(plan.rows == FILLER, FILLER, drawn[plan.rows]).astype(np.int32)
        return plan._replace(rows=spread_copies(rows, plan.samples, self.lengths))

    @property
    def steps_per_epoch(self) -> int:
        clips = len(self.clips) if self.weights is None else clips_per_epoch(self.weights)
        return -(-clips // self.batch_size)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        epoch, position = divmod(step, self.steps_per_epoch)
        rows, samples = self.plan(epoch)
        own = rows[position, self._own_rows]
        batch = _collate(self.clips, own, int(samples[position]), self._shape)
        return batch if self.features is None else self.features.put_into(batch)

    def samples(self, step: int) -> int:
        """N of `step`'s batch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return int(self.plan(epoch).samples[position])

    def clip_ids(self, step: int) -> list[str]:
        """Names of the clips in `step`'s batch, over all processes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = self.plan(epoch).rows[position]
        return [self.clips[row].id for row in rows if row != FILLER]


def train_iterator(
    batches: Batches, *, start_step: int = 0, threads: int = 2, prefetch: int = 8
) -> grain.DatasetIterator[Batch]:
    """Iterates over `batches` from `start_step`; `threads` threads make up to `prefetch` batches ahead.

    `get_state()` and `set_state(state)` name the next step in a small JSON-able dict, which is what orbax
    checkpoints. Prefetched batches are not part of the state.
    """
    if not 0 <= start_step <= len(batches):
        raise UserError(
            field="start_step", found=start_step, expected=f"0 to {len(batches)}, the run's steps"
        )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    iterator.set_state({**iterator.get_state(), "next_index": start_step})
    return iterator


def eval_batches(
    clips: Sequence[Clip],
    batch_size: int,
    buckets: Sequence[int],
    *,
    do_normalize: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every clip once, longest first: if the memory does not suffice, the first batch shows it.

    Arguments as for `Batches`. Filler rows are the last ones of the last batch.
    """
    lengths, own_rows = _lengths(clips), _own_rows(batch_size, process_index, process_count)
    plan = _cut(np.argsort(-lengths, kind="stable"), lengths, batch_size, buckets)
    shape = _Shape(_label_width(clips), _sample_type(clips), do_normalize)
    return (_collate(clips, rows[own_rows], int(samples), shape) for rows, samples in zip(*plan, strict=True))

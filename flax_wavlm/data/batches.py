"""Clips to arrays of a few fixed shapes: padding, prefetching, and the batch of any step.

A training batch is a pure function of the clips, the seed and the step. Nothing here holds a random state. So
a resumed run, a run on other hosts, and somebody who wants to look at the batch of step 7,312 all compute the
same batch, and the only state to checkpoint is the number of the next step.

    n  clips     B  rows of the batch over all processes      N  padded samples of a batch
                 b  rows of this process, B / processes       L  padded labels of a data set

A batch is a dict of NumPy arrays:

    samples         [b, N]           int16 where all clips of the set are, and nothing is done to them, else
                                     float32; padded with zeros
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

import bisect
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from flax_wavlm.data.augment import Augmentation, at_speed
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.plans import Plan, cut, plan_epoch
from flax_wavlm.data.preprocessor import full_scale
from flax_wavlm.data.weights import FILLER, draw_epoch, spread_copies
from flax_wavlm.errors import UserError

Batch = dict[str, np.ndarray]


class _Process(NamedTuple):
    """One process of a run, and how many there are."""

    number: int
    processes: int

    def check(self, batch_size: int | Sequence[int]) -> None:
        """UserError where the rows of a batch cannot be shared out."""
        for size in [batch_size] if isinstance(batch_size, int) else batch_size:
            if size < 1 or size % self.processes:
                raise UserError(
                    field="batch_size",
                    found=size,
                    expected=f"1 or more, and a multiple of the number of processes, {self.processes}",
                )

    def own(self, plan: Plan, position: int) -> np.ndarray:
        """This process's rows [b] of a plan's batch."""
        share = int(plan.sizes[position]) // self.processes
        return plan.rows[position, self.number * share : (self.number + 1) * share]


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


def _collate(clips: Sequence[Clip | None], rows: np.ndarray, samples: int, shape: _Shape) -> Batch:
    """The arrays of the clips in `rows` [b], None on filler rows, padded to N = samples."""
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
    for row, clip in enumerate(clips):
        if clip is None:
            continue
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
        batch_size: B, over all processes, of every batch or of each bucket's; divisible by their number.
        buckets: padded lengths in samples, see `choose_buckets` and `choose_shapes`.
        steps: length of the run, any number of epochs; 0: `epochs` says it.
        epochs: length of the run where `steps` is 0.
        seed: 0 or more.
        do_normalize: the model's `Preprocessor.do_normalize`.
        process_index, process_count: which process this is, of how many.
        weights: how often an epoch has each clip [n], see `flax_wavlm.data.weights`; None: once.
        augmentation: what is done to the clips anew in each epoch; None: nothing.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        batch_size: int | Sequence[int],
        buckets: Sequence[int],
        *,
        steps: int = 0,
        epochs: int = 0,
        seed: int,
        do_normalize: bool,
        process_index: int = 0,
        process_count: int = 1,
        weights: Sequence[float] | None = None,
        augmentation: Augmentation | None = None,
    ):
        if seed < 0:
            raise UserError(field="seed", found=seed, expected="0 or more")
        self.clips = clips
        self.lengths = _lengths(clips)  # [n]
        self.buckets = tuple(buckets)
        self.batch_size = batch_size if isinstance(batch_size, int) else tuple(batch_size)
        self.seed = seed
        self.do_normalize = do_normalize
        self.weights = None if weights is None else _checked_weights(weights, len(clips))
        self.augmentation = augmentation
        self.features: Features | None = None  # where set, batches have these and no samples
        self._process = _Process(process_index, process_count)
        self._process.check(self.batch_size)
        sample_type = _sample_type(clips) if augmentation is None else np.float32
        self._shape = _Shape(_label_width(clips), sample_type, do_normalize)
        # Two epochs, because prefetching looks over the end of one.
        self.plan = functools.lru_cache(maxsize=2)(self._plan)
        self._speeds = functools.lru_cache(maxsize=2)(self._speeds_in)
        # Where each batch may hold another number of clips, an epoch of other clips or other lengths may
        # have another number of batches.
        self._alike = isinstance(self.batch_size, int) or (weights is None and augmentation is None)
        self._first_steps, self._counting = [0], threading.Lock()  # of the epochs so far
        self.steps = steps or self._first_step(epochs)

    def _plan(self, epoch: int) -> Plan:
        lengths = self._lengths_in(epoch)
        if self.weights is None:
            return plan_epoch(lengths, self.batch_size, self.buckets, seed=self.seed, epoch=epoch)
        drawn = draw_epoch(self.weights, seed=self.seed, epoch=epoch)
        plan = plan_epoch(lengths[drawn], self.batch_size, self.buckets, seed=self.seed, epoch=epoch)
        rows = np.where(plan.rows == FILLER, FILLER, drawn[plan.rows]).astype(np.int32)
        return plan._replace(rows=spread_copies(rows, plan.samples, lengths))

    def _speeds_in(self, epoch: int) -> np.ndarray | None:
        if self.augmentation is None:
            return None
        return self.augmentation.speeds_in(len(self.clips), seed=self.seed, epoch=epoch)

    def _lengths_in(self, epoch: int) -> np.ndarray:
        """Samples of each clip [n] as it is in an epoch."""
        speeds = self._speeds(epoch)
        return self.lengths if speeds is None else at_speed(self.lengths, speeds)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Batches of the first epoch. Where `_place` says so, later epochs may have some more or less."""
        return len(self.plan(0).samples)

    def _first_step(self, epoch: int) -> int:
        """The step that an epoch begins with, counted from 0."""
        if self._alike:
            return epoch * self.steps_per_epoch
        with self._counting:
            while len(self._first_steps) <= epoch:
                batches = len(self.plan(len(self._first_steps) - 1).samples)
                self._first_steps.append(self._first_steps[-1] + batches)
            return self._first_steps[epoch]

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the place of its batch in the epoch's plan."""
        if self._alike:
            return divmod(step, self.steps_per_epoch)
        while self._first_steps[-1] <= step:
            self._first_step(len(self._first_steps))
        epoch = bisect.bisect_right(self._first_steps, step) - 1
        return epoch, step - self._first_steps[epoch]

    def epochs(self, steps: int) -> float:
        """The number of epochs that the first `steps` steps make, with its fraction."""
        if self._alike:
            return steps / self.steps_per_epoch
        epoch, position = self._place(steps)
        return epoch + position / len(self.plan(epoch).samples)

    def padding(self, epoch: int = 0) -> float:
        """The share of an epoch's samples that belong to no clip."""
        return self.plan(epoch).padding(self._lengths_in(epoch))

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        epoch, position = self._place(step)
        plan = self.plan(epoch)
        rows = self._process.own(plan, position)
        clips = _taken(self.clips, rows)
        if self.augmentation is not None and (speeds := self._speeds(epoch)) is not None:
            first = self._process.number * len(rows)  # a row has the same noise, whichever process makes it
            clips = [
                clip and self.augmentation(clip, float(speeds[i]), seed=self.seed, step=step, row=row)
                for row, (clip, i) in enumerate(zip(clips, rows.tolist(), strict=True), first)
            ]
        batch = _collate(clips, rows, int(plan.samples[position]), self._shape)
        return batch if self.features is None else self.features.put_into(batch)

    def samples(self, step: int) -> int:
        """N of `step`'s batch."""
        epoch, position = self._place(step)
        return int(self.plan(epoch).samples[position])

    def rows(self, samples: int) -> int:
        """B of the batches that are padded to so many samples, one of `buckets`."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        return self.batch_size[self.buckets.index(samples)]

    def clip_ids(self, step: int) -> list[str]:
        """Names of the clips in `step`'s batch, over all processes."""
        epoch, position = self._place(step)
        rows = self.plan(epoch).rows[position]
        return [self.clips[row].id for row in rows if row != FILLER]


def _taken(clips: Sequence[Clip], rows: np.ndarray) -> list[Clip | None]:
    """The clips in `rows`, None on filler rows."""
    return [None if row == FILLER else clips[row] for row in rows.tolist()]


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
    batch_size: int | Sequence[int],
    buckets: Sequence[int],
    *,
    do_normalize: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every clip once, longest first: if the memory does not suffice, the first batch shows it.

    Arguments as for `Batches`. Filler rows are the last ones of the last batch.
    """
    lengths, process = _lengths(clips), _Process(process_index, process_count)
    process.check(batch_size)
    plan = cut(np.argsort(-lengths, kind="stable"), lengths, batch_size, buckets)
    shape = _Shape(_label_width(clips), _sample_type(clips), do_normalize)
    own = (process.own(plan, position) for position in range(len(plan.samples)))
    return (
        _collate(_taken(clips, rows), rows, samples, shape)
        for rows, samples in zip(own, plan.samples.tolist(), strict=True)
    )

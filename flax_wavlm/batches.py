"""From utterances to arrays of a few fixed shapes: decode once, group by length, pad, prefetch.

A training batch is a pure function of the clips, the seed and the step. Nothing here holds a random
state, so a resumed run, a run on other hosts and somebody who wants to look at the batch of step 7,312
all compute the same one; the only state to checkpoint is the number of the next step.

    n  clips          B  rows of the batch over all processes      N  padded samples of a batch
    S  batches        b  rows of this process, B / processes       L  padded labels of a data set

A batch is a dict of NumPy arrays:

    samples         [b, N]           int16 where all clips of the set are, else float32; padded with zeros
    mean            float32 [b]      what the device takes off each row at full scale, and
    scale           float32 [b]      what it multiplies the rest by: `text.input_values`
    lengths         int32 [b]        real samples of each row
    labels          int32 [b, L]     character ids, padded with zeros
    label_lengths   int32 [b]        real labels of each row
    valid           bool [b]         False on filler rows
    clip            int32 [b]        index into the list of clips, -1 on filler rows

Where the feature encoder's output is kept (`features.py`), a training batch has in place of the first three:

    features        [b, T, C]        in the model's dtype, padded with zeros

Filler rows complete the last batch of an epoch. They are silence as long as the batch and have no
labels: every computation on them is finite, and `valid` keeps them out of every sum.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import soundfile

from flax_wavlm.audio import SAMPLE_RATE, read_audio
from flax_wavlm.cache import cached, file_identity
from flax_wavlm.corpora import Skipped, Utterance
from flax_wavlm.errors import UserError
from flax_wavlm.text import CTCTokenizer, full_scale, mean_and_scale

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

LONG_SECONDS = 60  # longer clips are announced
FILLER = -1  # stands where a clip's index would


# ---------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True, eq=False)
class Clip:
    """One decoded utterance that can be trained on or evaluated."""

    id: str
    samples: np.ndarray  # int16 or float32 [N], mono, 16 kHz
    labels: np.ndarray  # int32 [L], no blanks
    text: str  # the normalised reference
    speaker: str

    @functools.cached_property
    def mean_and_scale(self) -> tuple[np.float32, np.float32]:
        return mean_and_scale(self.samples)


def min_ctc_frames(labels: np.ndarray) -> int:
    """Fewest frames in which CTC can say `labels` [L]: equal neighbours need a blank between them."""
    return len(labels) + int(np.count_nonzero(labels[1:] == labels[:-1]))


def decode_clips(
    utterances: Sequence[Utterance],
    tokenizer: CTCTokenizer,
    *,
    frame_count: Callable[[int], int],
    max_seconds: float | None = None,
    drop_infeasible: bool = True,
    threads: int | None = None,
    cache: Path | None = None,
    name: str = "clips",
) -> tuple[list[Clip], list[Skipped]]:
    """Decode every utterance once, in parallel; keep the order.

    Args:
        frame_count: the model's frames for a number of samples.
        max_seconds: skip clips of this length *and longer* (the seed's recipe: shorter than 4.0 s).
        drop_infeasible: skip clips that nothing can be learnt from: labels that do not fit their frames,
            silence (all zeros, or no more than dither), a text of which most is outside the vocabulary. For
            training. An evaluation keeps them, for it must not choose its test set: their text is scored
            like any other, and the loss masks those that do not fit.
        threads: None = what `ThreadPoolExecutor` chooses.
        cache: the folder to keep decoded audio in, see `decode_audio`; None = in memory.
        name: what messages call the utterances.

    Returns the clips, and each clip that cannot be used with its reason, "kind: details".
    """
    max_samples = math.inf if max_seconds is None else max_seconds * SAMPLE_RATE

    def judge(utterance: Utterance, samples: np.ndarray | UserError) -> Clip | Skipped:
        text = tokenizer.normalise(utterance.text)
        if not text:
            return Skipped(utterance.id, f"no text after normalisation: {utterance.text!r}")
        try:
            labels = np.asarray(tokenizer.encode(text), np.int32)
        except UserError as error:
            return Skipped(utterance.id, f"unusable text: {error}")
        if isinstance(samples, UserError):
            return Skipped(utterance.id, f"unreadable audio: {samples}")
        if len(samples) >= max_samples:
            seconds = len(samples) / SAMPLE_RATE
            return Skipped(utterance.id, f"too long: {seconds:.2f} s, must be under {max_seconds:g} s")
        frames = frame_count(len(samples))
        if frames < 1:
            return Skipped(utterance.id, f"too short: {len(samples)} samples make no frame")
        clip = Clip(utterance.id, samples, labels, text, utterance.speaker)
        if drop_infeasible and (reason := _unlearnable(clip, tokenizer, frames)):
            return Skipped(utterance.id, reason)
        return clip

    audio = decode_audio(utterances, threads=threads, cache=cache, name=name)
    judged = [judge(utterance, samples) for utterance, samples in zip(utterances, audio, strict=True)]
    clips = [clip for clip in judged if isinstance(clip, Clip)]
    skipped = [clip for clip in judged if isinstance(clip, Skipped)]
    return clips, skipped


def _unlearnable(clip: Clip, tokenizer: CTCTokenizer, frames: int) -> str:
    """Why nothing can be learnt from a clip, "kind: details"; "" where something can."""
    needed = min_ctc_frames(clip.labels)
    if needed > frames:
        return f"labels longer than frames: {needed} frames needed, {frames} there"
    step = 1 if clip.samples.dtype == np.int16 else 1 / 32768
    if float(clip.samples.max()) - float(clip.samples.min()) <= 2 * step:
        return f"silent: {len(clip.samples)} samples, all but equal"
    if (share := tokenizer.unknown_share(clip.text)) > 0.5:
        return f"text outside the vocabulary: {share:.0%} of {clip.text[:60]!r}"
    return ""


def decode_audio(
    utterances: Sequence[Utterance], *, threads: int | None, cache: Path | None, name: str
) -> Iterable[np.ndarray | UserError]:
    """Each utterance's samples as `read_audio` gives them, or the reason why there are none, in order.

    With a `cache`, samples are kept there in the type that they have (int16, or float32 where the file is not
    16-bit PCM at 16 kHz), under a name that changes with any file's name, size or time of change. Whatever
    could not be read is tried again every time. Utterances whose audio is not a file (a data set of the hub)
    are not cached: nothing tells reliably that they are the same ones.
    """

    def decode(utterance: Utterance) -> np.ndarray | UserError:
        try:
            if isinstance(utterance.audio, Path):
                return read_audio(utterance.audio)
            return read_audio(utterance.audio(), utterance.id)
        except UserError as error:
            return error

    def decode_all() -> Iterator[np.ndarray | UserError]:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(decode, utterances)

    if cache is None:
        return decode_all()
    files = [utterance.audio for utterance in utterances if isinstance(utterance.audio, Path)]
    if len(files) < len(utterances):
        log.info("%s: decoded in memory, since its audio is not in files of its own", name)
        return decode_all()
    kept = cached(
        cache,
        name,
        ["read_audio", SAMPLE_RATE, soundfile.__libsndfile_version__, *map(file_identity, files)],
        lambda: (None if isinstance(samples, UserError) else samples for samples in decode_all()),
    )
    return (
        decode(utterance) if samples is None else samples
        for utterance, samples in zip(utterances, kept, strict=True)
    )


def usable_clips(
    utterances: Sequence[Utterance],
    tokenizer: CTCTokenizer,
    *,
    name: str,
    frame_count: Callable[[int], int],
    max_seconds: float | None = None,
    drop_infeasible: bool = True,
    cache: Path | None = None,
) -> tuple[list[Clip], list[Skipped]]:
    """`decode_clips` of a split called `name`, with what was skipped and why in the log.

    Named there too: clips that only an evaluation keeps, and clips so long that memory may not suffice.
    Raises UserError where no clip is left.
    """
    clips, skipped = decode_clips(
        utterances,
        tokenizer,
        frame_count=frame_count,
        max_seconds=max_seconds,
        drop_infeasible=drop_infeasible,
        cache=cache,
        name=name,
    )
    hours = sum(len(clip.samples) for clip in clips) / SAMPLE_RATE / 3600
    log.info("%s: %d clips, %.2f hours", name, len(clips), hours)
    if skipped:
        log.warning("%s: %s", name, describe_skipped(skipped))
    doubtful = [
        Skipped(clip.id, reason)
        for clip in clips
        if (reason := _unlearnable(clip, tokenizer, frame_count(len(clip.samples))))
    ]
    if doubtful:
        log.warning("%s: %s", name, describe_skipped(doubtful, verb="kept in the evaluation"))
    if long := [clip for clip in clips if len(clip.samples) > LONG_SECONDS * SAMPLE_RATE]:
        log.warning(
            "%s: %d clips of more than %d s, such as %s: memory grows with the square of the longest",
            name,
            len(long),
            LONG_SECONDS,
            long[0].id,
        )
    if unknown := set().union(*(tokenizer.unknown_characters(clip.text) for clip in clips)):
        log.warning("%s: characters outside the vocabulary, read as unknown: %s", name, sorted(unknown))
    if not clips:
        raise UserError(f"{name}: none of the {len(utterances)} clips can be used (see the reasons above)")
    return clips, skipped


def describe_skipped(skipped: Sequence[Skipped], examples: int = 3, verb: str = "skipped") -> str:
    """One line for each kind of reason, the most frequent first; "" if nothing was skipped.

    The kind is what stands before the reason's first colon.
    """
    kinds: dict[str, list[Skipped]] = {}
    for clip in skipped:
        kinds.setdefault(clip.reason.partition(":")[0], []).append(clip)
    lines = []
    for kind, clips in sorted(kinds.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(clip.id for clip in clips[:examples])
        more = ", ..." if len(clips) > examples else ""
        details = clips[0].reason.partition(":")[2]
        first = f" (the first:{details})" if details else ""
        lines.append(f"{verb} {len(clips):,} - {kind}: {shown}{more}{first}")
    return "\n".join(lines)


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


# --------------------------------------------------------------------------------------------- plans


class Plan(NamedTuple):
    """Which clips make which batch, over all processes."""

    rows: np.ndarray  # int32 [S, B], indices of clips, FILLER in the rows that are left over
    samples: np.ndarray  # int64 [S], each batch's N

    def padding(self, lengths: np.ndarray) -> float:
        """Share of the plan's samples that are not a clip's, filler rows included."""
        real = lengths[self.rows[self.rows != FILLER]].sum()
        return 1 - float(real / (self.samples.sum() * self.rows.shape[1]))


def plan_epoch(
    lengths: np.ndarray, batch_size: int, buckets: Sequence[int], *, seed: int, epoch: int
) -> Plan:
    """Every clip once, in ceil(n / batch_size) batches of clips [n] of one bucket, drawn at random.

    Sorted by length and cut, the clips give each batch its bucket; then those of each bucket change places,
    and then the batches. So a clip has the same N in every epoch, and the padding is the least that these
    buckets allow: `choose_buckets` with the same batch size.
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
        raise UserError(f"a clip of {lengths.max()} samples does not fit the longest bucket, {sizes[-1]}")
    steps = -(-len(order) // batch_size)
    rows = np.full((steps, batch_size), FILLER, np.int32)
    rows.flat[: len(order)] = order
    longest = np.where(rows == FILLER, 0, lengths[rows]).max(axis=1)
    return Plan(rows, sizes[np.searchsorted(sizes, longest)])


def _own_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """This process's share of a batch's rows."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch size {batch_size} cannot be shared equally by {process_count} process(es)")
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
    """One type for the whole data set, for the same reason."""
    return np.int16 if all(clip.samples.dtype == np.int16 for clip in clips) else np.float32


class _Shape(NamedTuple):
    """What every batch of a data set has in common."""

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


# -------------------------------------------------------------------------------------------- batches


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
        do_normalize: of the model's `text.Preprocessor`.
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
    ):
        if seed < 0:
            raise UserError(f"the seed must be 0 or more, got {seed}")
        self.clips = clips
        self.lengths = _lengths(clips)  # [n]
        self.buckets = tuple(buckets)
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.do_normalize = do_normalize
        self.features: Features | None = None  # where set, batches have these and no samples
        self._own_rows = _own_rows(batch_size, process_index, process_count)
        self._shape = _Shape(_label_width(clips), _sample_type(clips), do_normalize)
        # Two epochs, because prefetching looks over the end of one.
        self.plan = functools.lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> Plan:
        return plan_epoch(self.lengths, self.batch_size, self.buckets, seed=self.seed, epoch=epoch)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.clips) // self.batch_size)

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
    """Iterate over `batches` from `start_step`, made by `threads` threads up to `prefetch` batches ahead.

    `get_state()` and `set_state(state)` name the next step in a small JSON-able dict; they are what
    orbax checkpoints. Prefetched batches are not part of the state.
    """
    if not 0 <= start_step <= len(batches):
        raise UserError(f"cannot start at step {start_step} of a run of {len(batches)} steps")
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
    """Every clip once, longest first: if the memory does not suffice, the first batch tells.

    Arguments as for `Batches`. Filler rows are the last ones of the last batch.
    """
    lengths, own_rows = _lengths(clips), _own_rows(batch_size, process_index, process_count)
    plan = _cut(np.argsort(-lengths, kind="stable"), lengths, batch_size, buckets)
    shape = _Shape(_label_width(clips), _sample_type(clips), do_normalize)
    return (_collate(clips, rows[own_rows], int(samples), shape) for rows, samples in zip(*plan, strict=True))

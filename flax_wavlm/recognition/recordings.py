"""Recordings of any length to the windows that a model hears, in batches, and back to stretches of speech.

Recordings are read a few minutes ahead of the device, several short ones side by side. Their windows share
batches of a few shapes. So memory does not grow with their length or number.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from flax_wavlm.data.audio import FEW, duration_seconds
from flax_wavlm.data.batches import FILLER, Batch, eval_batches
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.corpora.utterance import Samples
from flax_wavlm.data.preprocessor import full_scale
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.streams import Stream, open_stream
from flax_wavlm.errors import UserError
from flax_wavlm.progress import Bar
from flax_wavlm.recognition.windows import Window, Windowing, windows

T = TypeVar("T")
Evidence = Mapping[str, np.ndarray]  # arrays [T, ...], see `flax_wavlm.recognition.decoding`

BUCKETS = 4  # padded lengths, each of which compiles once
POOL_SECONDS = 600.0  # of windows that are sorted by length together
FIRST_SECONDS = 60.0  # of a recording that are read before its turn
READ_AHEAD = 8  # recordings that are opened before their turn


@dataclass(frozen=True)
class Source:
    """A recording: what it is called, and where its audio is."""

    name: Path | str
    audio: Path | Samples


class Ended(NamedTuple):
    """The end of a recording.

    Attributes:
        seconds: its length.
        note: what was decided about its channels; "" where nothing was.
        error: why it cannot be used; then what was read of it before counts for nothing.
    """

    seconds: float
    note: str = ""
    error: UserError | None = None


class Heard(NamedTuple, Generic[T]):
    """What became of a recording.

    Attributes:
        source: the recording.
        stretches: what was made of each of its stretches of speech, in the order of time.
        ended: its length, or why it cannot be used.
    """

    source: Source
    stretches: list[T]
    ended: Ended


Piece = Window | Ended


def read_windows(
    source: Source, windowing: Windowing, *, channel: str, max_seconds: float
) -> Iterator[Piece]:
    """A recording's windows, and what is known at its end. It raises no UserError: the end has it."""
    samples = 0
    try:
        with open_stream(source.audio, str(source.name), missing_ok=FEW, channel=channel) as stream:
            _check_length(stream.seconds or 0.0, max_seconds, source)

            def read(count: int) -> np.ndarray:
                nonlocal samples
                block = stream.read(count)
                samples += len(block)
                _check_length(samples / SAMPLE_RATE, max_seconds, source)
                return block

            yield from windows(read, windowing)
            _check_whole(stream, samples, windowing, source)
            yield Ended(samples / SAMPLE_RATE, stream.note)
    except UserError as error:
        yield Ended(samples / SAMPLE_RATE, error=error)


def _check_length(seconds: float, most: float, source: Source) -> None:
    if seconds > most:
        raise UserError(
            f"{seconds:.1f} s or more",
            where=source.name,
            expected=f"at most {most:g} s",
            do="raise max_seconds",
        )


def _check_whole(stream: Stream, samples: int, windowing: Windowing, source: Source) -> None:
    if not samples:
        raise UserError(
            "the audio file has 0 samples", where=source.name, expected="speech", do="leave it out"
        )
    if samples < windowing.receptive_field:
        raise UserError(
            f"{samples} samples at 16 kHz",
            where=source.name,
            expected=f"at least {windowing.receptive_field}, one frame of the model",
            do="leave it out",
        )


@dataclass
class WindowBatches:
    """The windows of recordings in padded batches of a few shapes, and their order.

    It is iterated over once. `clip` of a batch holds windows' numbers, counted from 0.

    Attributes:
        sources: the recordings.
        pieces: reads one, see `read_windows`.
        batch_size: over all devices.
        do_normalize: of the model's preprocessor.
        windowing: how the recordings are cut.
        order: of what was batched and not taken out yet: (recording, a window with its number, or its end).
    """

    sources: Sequence[Source]
    pieces: Callable[[Source], Iterator[Piece]]
    batch_size: int
    do_normalize: bool
    windowing: Windowing
    order: deque[tuple[int, int, Piece]] = field(default_factory=deque)
    buckets: tuple[int, ...] = ()
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _floats: bool = False

    def __iter__(self) -> Iterator[Batch]:
        with contextlib.closing(self._pools()) as pools, ThreadPoolExecutor(1) as thread:
            following: Future[list[tuple[int, Piece]] | None] = thread.submit(next, pools, None)
            while pool := following.result():
                following = thread.submit(next, pools, None)
                yield from self._batches(pool)

    def longest(self) -> Batch:
        """A batch of the largest shape that there may be."""
        samples = self._longest_bucket()
        clips = [_unlabelled("", np.zeros(samples, np.float32))] * self.batch_size
        return next(eval_batches(clips, self.batch_size, [samples], do_normalize=False))

    def _longest_bucket(self) -> int:
        return choose_buckets([self.windowing.samples(self.windowing.longest)], 1)[0]

    def _pools(self) -> Generator[list[tuple[int, Piece]], None, None]:
        """Pieces in their order, with windows of about `POOL_SECONDS`, for whole batches."""
        pool: list[tuple[int, Piece]] = []
        count = samples = 0
        for recording, piece in self._read_ahead():
            pool.append((recording, piece))
            if isinstance(piece, Window):
                count, samples = count + 1, samples + len(piece.samples)
            if samples >= POOL_SECONDS * SAMPLE_RATE and count % self.batch_size == 0:
                yield pool
                pool, count, samples = [], 0, 0
        if pool:
            yield pool

    def _read_ahead(self) -> Iterator[tuple[int, Piece]]:
        """Pieces in the order of recordings; the first ones of the next recordings are read meanwhile."""
        with ThreadPoolExecutor() as threads:
            waiting: deque[Future[tuple[list[Piece], Iterator[Piece]]]] = deque()
            coming = iter(self.sources)
            for recording in range(len(self.sources)):
                for source in itertools.islice(coming, READ_AHEAD + 1 - len(waiting)):
                    waiting.append(threads.submit(self._begun, source))
                begun, rest = waiting.popleft().result()
                yield from ((recording, piece) for piece in itertools.chain(begun, rest))

    def _begun(self, source: Source) -> tuple[list[Piece], Iterator[Piece]]:
        pieces, begun, samples = self.pieces(source), [], 0
        for piece in pieces:
            begun.append(piece)
            samples += len(piece.samples) if isinstance(piece, Window) else 0
            if samples >= FIRST_SECONDS * SAMPLE_RATE:
                break
        return begun, pieces

    def _batches(self, pool: list[tuple[int, Piece]]) -> Iterator[Batch]:
        first = 0
        clips: list[Clip] = []
        for recording, piece in pool:
            number = next(self._numbers) if isinstance(piece, Window) else -1
            if isinstance(piece, Window):
                first = first if clips else number
                clips.append(_unlabelled(str(number), piece.samples))
                piece = piece._replace(samples=piece.samples[:0])
            self.order.append((recording, number, piece))
        if not clips:
            return
        # A second type of samples would compile every shape again.
        self._floats |= any(clip.samples.dtype != np.int16 for clip in clips)
        if self._floats:
            clips = [_unlabelled(clip.id, full_scale(clip.samples)) for clip in clips]
        lengths = [len(clip.samples) for clip in clips]
        if not self.buckets:
            self.buckets = choose_buckets(lengths, BUCKETS)
        elif max(lengths) > self.buckets[-1]:
            self.buckets += (self._longest_bucket(),)
        for batch in eval_batches(clips, self.batch_size, self.buckets, do_normalize=self.do_normalize):
            yield batch | {"clip": np.where(batch["clip"] == FILLER, FILLER, batch["clip"] + first)}


def joined(
    batches: WindowBatches,
    results: Iterator[tuple[np.ndarray, Evidence]],
    of_stretch: Callable[[int, Evidence], T],
    shown: Bar,
) -> Iterator[Heard[T]]:
    """Recordings in their order, each as soon as all of it is there.

    Args:
        batches: what the results are of.
        results: for each batch the numbers of its windows [B], and what the device found, arrays [B, T, ...].
        of_stretch: makes what is wanted of (the recording's frame that is the stretch's first, the evidence
            of its frames). Windows that overlap are joined there already.
        shown: goes on with the seconds of audio that are done, see `stated_seconds`.
    """
    frame_seconds = batches.windowing.hop / SAMPLE_RATE
    found: dict[int, Evidence] = {}
    done = 0  # seconds of this recording
    stretches: list[T] = []
    open_windows: list[tuple[Window, Evidence]] = []
    while True:
        result = next(results, None)
        if result is not None:
            numbers, arrays = result
            for row in np.flatnonzero(numbers != FILLER):
                found[int(numbers[row])] = {name: array[row] for name, array in arrays.items()}
        order = batches.order
        while order and (isinstance(order[0][2], Ended) or order[0][1] in found):
            recording, number, piece = order.popleft()
            if isinstance(piece, Window):
                open_windows.append((piece, found.pop(number)))
            ended = isinstance(piece, Ended)
            at = int(piece.seconds if isinstance(piece, Ended) else (piece.first + piece.end) * frame_seconds)
            shown.advance(at - done)
            done = 0 if ended else at
            if open_windows and (ended or open_windows[-1][0].closes):
                stretches.append(of_stretch(*_joined(open_windows)))
                open_windows = []
            if isinstance(piece, Ended):
                yield Heard(batches.sources[recording], stretches, piece)
                stretches = []
        if result is None:
            return


def stated_seconds(sources: Sequence[Source]) -> int:
    """How long recordings are by their headers, as far as these say it. Nothing is decoded."""
    total = 0
    for source in sources:
        if isinstance(source.audio, Samples):
            total += len(source.audio.samples) // source.audio.rate
        else:
            with contextlib.suppress(UserError):  # it is said when the recording is read
                total += int(duration_seconds(source.audio) or 0)
    return total


def _joined(parts: Sequence[tuple[Window, Evidence]]) -> tuple[int, Evidence]:
    """The first frame of a stretch, and the evidence of its frames."""
    arrays = {
        name: np.concatenate([evidence[name][window.begin : window.end] for window, evidence in parts])
        for name in parts[0][1]
    }
    return parts[0][0].first + parts[0][0].begin, arrays


def _unlabelled(id: str, samples: np.ndarray) -> Clip:
    return Clip(id, samples, labels=np.zeros(0, np.int32), text="", speaker="")

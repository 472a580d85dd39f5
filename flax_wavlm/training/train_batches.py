"""The training batches of a run: their shapes, and what augmentation does to the clips in them."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from flax_wavlm.data.augment import Augmentation, Noise, at_speed
from flax_wavlm.data.batches import Batches
from flax_wavlm.data.buckets import choose_buckets, choose_shapes
from flax_wavlm.data.clips import Clip, min_ctc_frames
from flax_wavlm.data.noise import read_noise
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import printable
from flax_wavlm.training.config import WHITE_NOISE, AugmentSettings, DataSettings, LoopSettings
from flax_wavlm.training.start import StartingPoint

log = logging.getLogger(__name__)


def noise_recordings(settings: AugmentSettings, cache: Path | None) -> Sequence[np.ndarray]:
    """The recordings of noise that the settings name; none where it is white, or there is none.

    Raises UserError as `read_noise` does.
    """
    if settings.noise in ("", WHITE_NOISE):
        return []
    return read_noise(Path(settings.noise), cache=cache)


def fingerprint_of_noise(recordings: Sequence[np.ndarray]) -> str:
    """The number of recordings, and a checksum of their lengths."""
    crc = zlib.crc32(np.array([len(recording) for recording in recordings], np.int64).tobytes())
    return f"{len(recordings)} recordings, {crc:08x}"


def train_batches(
    clips: Sequence[Clip],
    origin: StartingPoint,
    data: DataSettings,
    loop: LoopSettings,
    seed: int,
    weights: Mapping[str, float] | None,
    noise: Sequence[np.ndarray],
    rows_multiple: int,
) -> Batches:
    """The training batches of a run.

    Args:
        clips: of train.
        origin: knows frames and normalisation.
        data: buckets, and what augmentation does.
        loop: batch sizes, and the length of the run.
        seed: of the order of clips, and of what augmentation does to them.
        weights: by a clip's id, how often an epoch has it; None: once.
        noise: recordings, from `noise_recordings`.
        rows_multiple: where `train.batch_seconds` says the rows of a batch, they are a multiple of this.
    Raises:
        UserError: a batch of `train.batch_seconds` cannot hold the longest clip.
    """
    augmentation = _augmentation(data.augment, clips, origin, noise)
    lengths = np.array([len(clip.samples) for clip in clips])
    if augmentation is not None:
        lengths = augmentation.every_length(lengths)
    batch_size, buckets = _shapes(lengths, origin, data, loop, rows_multiple, len(lengths) // len(clips))
    return Batches(
        clips,
        batch_size,
        buckets,
        steps=loop.steps,
        epochs=loop.epochs,
        seed=seed,
        weights=None if weights is None else [weights[clip.id] for clip in clips],
        augmentation=augmentation,
        do_normalize=origin.preprocessor.do_normalize,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _shapes(
    lengths: np.ndarray,
    origin: StartingPoint,
    data: DataSettings,
    loop: LoopSettings,
    rows_multiple: int,
    epochs: int,
) -> tuple[int | tuple[int, ...], tuple[int, ...]]:
    """The batch size, or that of each bucket, and the buckets, for clips of these lengths of some epochs."""
    frame_count = origin.config.frame_count
    if not loop.batch_seconds:
        return loop.batch_size, choose_buckets(
            lengths,
            data.buckets,
            batch_size=loop.batch_size,
            min_batches=4 * epochs,
            frame_count=frame_count,
        )
    shapes = choose_shapes(
        lengths,
        data.buckets,
        batch_samples=int(loop.batch_seconds * SAMPLE_RATE),
        rows_multiple=rows_multiple,
        min_batches=3 * epochs,
        frame_count=frame_count,
    )
    log.info(
        "batches of up to %g s: %s",
        loop.batch_seconds,
        ", ".join(f"{shape.rows} clips of {shape.samples / SAMPLE_RATE:.2f} s" for shape in shapes),
    )
    return tuple(shape.rows for shape in shapes), tuple(shape.samples for shape in shapes)


def _augmentation(
    settings: AugmentSettings, clips: Sequence[Clip], origin: StartingPoint, recordings: Sequence[np.ndarray]
) -> Augmentation | None:
    """What is done to the clips of train; None where nothing is."""
    if not settings.changes_clips():
        return None
    noise = None
    if settings.noise:
        noise = Noise(recordings, settings.noise_share, (settings.snr_min, settings.snr_max))
    if not settings.speeds:
        return Augmentation(noise=noise)
    lengths = np.array([len(clip.samples) for clip in clips])
    frames = origin.config.frame_count(at_speed(lengths[:, None], np.array(settings.speeds)))
    possible = frames >= np.array([min_ctc_frames(clip.labels) for clip in clips])[:, None]
    if kept := np.count_nonzero(~possible.all(axis=1)):
        log.warning(
            "%d clips of train keep their own speed in place of one at which their labels would not fit: "
            "the first is %s",
            kept,
            printable(clips[int(np.argmin(possible.all(axis=1)))].id),
        )
    return Augmentation(settings.speeds, possible, noise)

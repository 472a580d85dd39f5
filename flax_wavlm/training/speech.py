"""The speech of a run: its corpus read, decoded, and put into batches."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.clips import Clip, describe_skipped, usable_clips
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.parallel import processes
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.training.config import DataSettings, LoopSettings
from flax_wavlm.training.start import StartingPoint

log = logging.getLogger(__name__)


class Utterances(NamedTuple):
    """A corpus's splits, as its reader gives them."""

    train: list[Utterance]
    test: list[Utterance]


class Speech(NamedTuple):
    """What a run trains on and what it is evaluated on."""

    train: Batches
    test: ClipBatches

    def fingerprints(self) -> dict[str, str]:
        """Tells these clips from any others: a run resumes on the clips that it was begun with."""
        return {"train": fingerprint(self.train.clips), "test": fingerprint(self.test.clips)}


def load_utterances(data: DataSettings) -> Utterances:
    """Reads both splits of the corpus; makes the synthetic one where it is missing.

    Raises UserError as `load_corpus` does. What a reader cannot use is counted and named in the log.
    """
    if data.corpus == "synthetic" and jax.process_index() == 0:
        from flax_wavlm.data.corpora.synthetic import make_corpus

        settings = data.synthetic
        make_corpus(
            Path(data.path),
            seed=settings.seed,
            train_clips=settings.train_clips,
            test_clips=settings.test_clips,
            dev_clips=settings.dev_clips,
            language=settings.language,
        )
    multihost_utils.sync_global_devices("corpus")
    return Utterances(_load_split(data, "train"), _load_split(data, "test"))


def _load_split(data: DataSettings, split: str) -> list[Utterance]:
    utterances, skipped = load_corpus(
        data.corpus,
        data.path,
        split,
        held_out_speakers=data.held_out_speakers,
        audio_column=data.audio_column,
        text_column=data.text_column,
        hub_config=data.hub_config or None,
    )
    if skipped:
        log.warning("%s: %s", split, describe_skipped(skipped))
    return utterances


def prepare_speech(
    utterances: Utterances,
    origin: StartingPoint,
    data: DataSettings,
    loop: LoopSettings,
    *,
    cache: Path | None,
    seed: int,
) -> Speech:
    """Decodes both splits and plans their batches.

    Args:
        utterances: from `load_utterances`.
        origin: knows labels, frames and normalisation.
        data: lengths, buckets.
        loop: batch sizes, and the length of the run.
        cache: the folder of decoded audio; None: decode every time.
        seed: of the order of clips.
    Raises:
        UserError: no clip of a split can be used.
    """
    targets, frame_count = origin.task.targets, origin.config.frame_count
    with processes.first_process_first("cache"):  # it fills the cache, and the others read it
        train_clips, _ = usable_clips(
            utterances.train,
            targets,
            name="train",
            frame_count=frame_count,
            max_seconds=data.train_max_seconds or None,
            cache=cache,
        )
        test_clips, _ = usable_clips(
            utterances.test,
            targets,
            name="test",
            frame_count=frame_count,
            drop_infeasible=False,
            cache=cache,
        )
    test = ClipBatches(
        test_clips,
        loop.eval_batch_size,
        data.buckets,
        do_normalize=origin.preprocessor.do_normalize,
        frame_count=frame_count,
    )
    return Speech(_train_batches(train_clips, origin, data, loop, seed), test)


def _train_batches(
    clips: Sequence[Clip], origin: StartingPoint, data: DataSettings, loop: LoopSettings, seed: int
) -> Batches:
    buckets = choose_buckets(
        [len(clip.samples) for clip in clips],
        data.buckets,
        batch_size=loop.batch_size,
        min_batches=4,
        frame_count=origin.config.frame_count,
    )
    return Batches(
        clips,
        loop.batch_size,
        buckets,
        steps=loop.steps or loop.epochs * -(-len(clips) // loop.batch_size),
        seed=seed,
        do_normalize=origin.preprocessor.do_normalize,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def fingerprint(clips: Sequence[Clip]) -> str:
    """The number of clips, and a checksum of their ids, lengths and labels."""
    crc = 0
    for clip in clips:
        crc = zlib.crc32(f"{clip.id} {len(clip.samples)}".encode() + clip.labels.tobytes(), crc)
    return f"{len(clips)} clips, {crc:08x}"

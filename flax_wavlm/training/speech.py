"""The speech of a run: its corpus read, decoded, and put into batches."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.clips import Clip, usable_clips
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.data.leaks import EXAMPLES, same_audio, shared
from flax_wavlm.data.splits import cut_dev
from flax_wavlm.data.targets import Targets
from flax_wavlm.errors import some
from flax_wavlm.parallel import processes
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.recognition.task import DEV, TEST
from flax_wavlm.training.config import DataSettings, LoopSettings
from flax_wavlm.training.splits import Splits
from flax_wavlm.training.start import StartingPoint
from flax_wavlm.training.train_batches import fingerprint_of_noise, noise_recordings, train_batches

log = logging.getLogger(__name__)


class Speech(NamedTuple):
    """What a run trains on, what chooses its best checkpoint, and what that is tested on at the end."""

    train: Batches
    dev: ClipBatches
    test: ClipBatches | None
    chooser: str  # what metrics.jsonl calls `dev`: "dev", or "test" where data.dev = "test"
    skipped: Mapping[str, Sequence[Skipped]]  # by split: what the corpus holds and the run cannot use
    leaks: Sequence[str]  # sentences about what train shares with the others

    def clips(self) -> dict[str, Sequence[Clip]]:
        """The clips of each split."""
        clips = {"train": self.train.clips, self.chooser: self.dev.clips}
        return clips if self.test is None else clips | {TEST: self.test.clips}

    def fingerprints(self) -> dict[str, str]:
        """Tells these clips from any others: a run resumes on the clips that it was begun with."""
        prints = {split: fingerprint(clips) for split, clips in self.clips().items()}
        if (augmentation := self.train.augmentation) and augmentation.noise:
            prints["noise"] = fingerprint_of_noise(augmentation.noise.recordings)
        return prints


class _Judges(NamedTuple):
    """The clips that a model is judged by."""

    name: str  # of their split
    clips: list[Clip]
    utterances: list[Utterance]  # that the clips are among


def prepare_speech(
    splits: Splits,
    origin: StartingPoint,
    data: DataSettings,
    loop: LoopSettings,
    *,
    cache: Path | None,
    seed: int,
    rows_multiple: int = 1,
) -> Speech:
    """Decodes all splits and plans their batches.

    Args:
        splits: from `load_splits`.
        origin: knows labels, frames and normalisation.
        data: lengths, buckets.
        loop: batch sizes, and the length of the run.
        cache: the folder of decoded audio; None: decode every time.
        seed: of the order of clips, and of what augmentation does to them.
        rows_multiple: where `train.batch_seconds` says the rows of a batch, they are a multiple of this.
    Raises:
        UserError: no clip of a split can be used; no noise can; or a batch of `train.batch_seconds` cannot
            hold the longest clip.
    """

    skipped = {name: list(clips) for name, clips in splits.skipped.items()}

    def decoded(utterances: Sequence[Utterance], name: str) -> list[Clip]:
        training = name == "train"
        clips, unusable = usable_clips(
            utterances,
            origin.task.targets,
            name=name,
            frame_count=origin.config.frame_count,
            max_seconds=(data.train_max_seconds or None) if training else None,
            drop_infeasible=training,
            cache=cache,
            channel=data.channel,
        )
        skipped.setdefault(name, []).extend(unusable)
        return clips

    def batched(clips: Sequence[Clip]) -> ClipBatches:
        return ClipBatches(
            clips,
            loop.eval_batch_size,
            data.buckets,
            do_normalize=origin.preprocessor.do_normalize,
            frame_count=origin.config.frame_count,
        )

    with processes.first_process_first("cache"):  # it fills the cache, and the others read it
        train = decoded(splits.train, "train")
        dev = decoded(splits.dev, splits.chooser) if splits.dev else []
        test = decoded(splits.test, "test") if splits.test else []
        noise = noise_recordings(data.augment, cache)
    chooser = splits.chooser
    if not dev:
        train, dev, test, chooser = _choose_dev(train, test, splits.share, data.dev_seed)
    judges = _Judges(chooser, dev, splits.dev or (splits.test if chooser == TEST else splits.train))
    leaks = [
        leak
        for split in (judges, _Judges(TEST, test, splits.test))
        for leak in _find_leaks(train, splits.train, split, origin.task.targets)
    ]
    for leak in leaks:
        log.warning("%s", leak)
    return Speech(
        train_batches(train, origin, data, loop, seed, splits.weights, noise, rows_multiple),
        batched(dev),
        batched(test) if test else None,
        chooser,
        skipped,
        leaks,
    )


def _choose_dev(
    train: list[Clip], test: list[Clip], share: float, seed: int
) -> tuple[list[Clip], list[Clip], list[Clip], str]:
    """Train, dev and test, with dev cut from train, and what `dev` is called."""
    if len(train) < 2 and test:
        log.warning(
            "train has %d clip, from which no dev split can be cut: test chooses the best checkpoint, so its "
            "figures are better than those on new speech would be",
            len(train),
        )
        return train, test, [], TEST
    cut = cut_dev(train, share, seed)
    kept = {"speaker": "whole speakers", "text": "whole texts", "clip": "single clips"}[cut.by]
    log.warning(
        "dev: the corpus has no such split, so %d of the %d clips of train are it (%s; data.dev, "
        "data.dev_share and data.dev_seed say which)",
        len(cut.dev),
        len(train),
        kept,
    )
    return cut.train, cut.dev, test, DEV


def _find_leaks(
    train: Sequence[Clip], train_utterances: Sequence[Utterance], judges: _Judges, targets: Targets
) -> Iterator[str]:
    """Sentences about what train shares with the clips that a model is judged by."""
    trained = _utterances_of(train, train_utterances)
    for leak in shared(trained, _utterances_of(judges.clips, judges.utterances), targets.normalise):
        yield f"{judges.name}: {leak}"
    if heard := same_audio(train, judges.clips):
        ids = some(heard, EXAMPLES)
        yield f"{judges.name}: {len(heard)} clips have the same audio as a clip of train: {ids}"


def _utterances_of(clips: Sequence[Clip], utterances: Sequence[Utterance]) -> list[Utterance]:
    of_id = {utterance.id: utterance for utterance in utterances}
    return [of_id[clip.id] for clip in clips]


def fingerprint(clips: Sequence[Clip]) -> str:
    """The number of clips, and a checksum of their ids, lengths and labels."""
    crc = 0
    for clip in clips:
        crc = zlib.crc32(f"{clip.id} {len(clip.samples)}".encode() + clip.labels.tobytes(), crc)
    return f"{len(clips)} clips, {crc:08x}"

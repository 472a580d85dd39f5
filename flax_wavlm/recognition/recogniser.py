"""Speech to text with a fine-tuned checkpoint, and its figures on a corpus."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flax_wavlm.data.audio import FEW, Part, read_parts
from flax_wavlm.data.batches import FILLER
from flax_wavlm.data.channels import Mono
from flax_wavlm.data.clips import Clip, describe_skipped, usable_clips
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import Params, split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.extras import read_extras
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.mistaken import missing_vocabulary
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.progress import bar, tracked
from flax_wavlm.recognition.ctc_task import character_ctc
from flax_wavlm.recognition.evaluate import Evaluation, evaluate, make_eval_step
from flax_wavlm.recognition.forward import ClipBatches, forward_pass, jit_over_batches, run_over
from flax_wavlm.recognition.task import Batch, Task

log = logging.getLogger(__name__)

Array = jax.Array

LANGUAGE_MODEL = ("alphabet.json", "language_model")  # files of pyctcdecode beside a tokenizer
BUCKETS = 4  # padded lengths, each of which compiles once


class Transcript(NamedTuple):
    """What became of one file: its text, or the reason why there is none."""

    file: Path
    text: str
    error: UserError | None = None


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A model with a trained CTC head, and the tokenizer and preprocessor that it was trained with.

    Every device of the mesh holds all parameters. Batches are split over the devices.
    """

    source: str
    config: WavLMConfig
    params: Params
    tokenizer: CTCTokenizer
    preprocessor: Preprocessor
    mesh: Mesh

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: str = "float32",
        text: Mapping[str, str | None] = MappingProxyType({}),
    ) -> Recogniser:
        """Loads a folder, file or hub id, in any format that `porting.pretrained.open_weights` reads.

        Args:
            source: tokenizer and preprocessor files lie in the folder, or beside the file.
            dtype: the type of matrix products, "float32" or "bfloat16".
            text: fields of `TextRule` in place of the model's own; None, or absent: its own.
        Raises:
            UserError: the checkpoint has no CTC head, a file is missing or damaged, or head and tokenizer
                are of different widths.
        """
        weights = open_weights(source)
        if not weights.has_head:
            raise UserError(
                "has no CTC head",
                where=weights.source,
                expected="a model that gives text",
                do="fine-tune it first (model.checkpoint of a run), and give the run's export folder",
            )
        folder, width = weights.folder, weights.config.vocab_size
        if not exists(folder / "vocab.json"):
            raise UserError(
                "has no vocab.json",
                where=folder,
                expected=f"one that says what the {width} outputs of the CTC head mean",
                do=missing_vocabulary(folder),
            )
        extras = read_extras(folder).with_text(text)
        tokenizer = CTCTokenizer.from_pretrained(
            folder, rule=extras.text, follows=extras.follows_vocabulary
        ).for_head(
            width,
            head=weights.source,
            do="restore the tokenizer's files that the model was trained with",
        )
        log.info("text rule: %s", tokenizer.describe_rule())
        preprocessor = Preprocessor.from_pretrained(folder)
        if beside := [name for name in LANGUAGE_MODEL if exists(folder / name)]:
            log.info("%s: its n-gram decoder (%s) is not used: decoding is greedy", folder, ", ".join(beside))
        if tokenizer.blank_id != weights.config.pad_token_id:
            log.warning(
                "%s: config.json's pad_token_id is %d, the tokenizer's %d: the latter is taken as the blank",
                folder,
                weights.config.pad_token_id,
                tokenizer.blank_id,
            )
        mesh = sharding.make_mesh()
        model = load_model(
            weights,
            overrides={"dtype": dtype},
            placement=lambda path, shape: sharding.replicated(mesh),
        )
        return cls(weights.source, model.config, split(model)[1], tokenizer, preprocessor, mesh)

    @functools.cached_property
    def task(self) -> Task:
        """What the model was trained for: character CTC."""
        return character_ctc(self.tokenizer, reduction=self.config.ctc_loss_reduction)

    def transcribe(self, clips: Sequence[np.ndarray], *, batch_size: int = 8) -> list[str]:
        """The greedy text of each clip, as transformers' ASR pipeline gives it for the clip alone.

        Args:
            clips: samples [N] of each, mono at 16 kHz: float32, or int16 of full scale 32768.
            batch_size: clips worked on at a time; a multiple of the number of devices.
        Raises:
            UserError: a clip is shorter than one frame, or the batch size does not suit the devices or
                their memory.
        """
        sharding.check_batch_size("batch_size", batch_size, self.mesh)
        for i, samples in enumerate(clips):
            self._check_length(samples, f"clip {i}")
        if not clips:
            return []
        batches = self._batches([_unlabelled(i, samples) for i, samples in enumerate(clips)], batch_size)
        texts = [""] * len(clips)
        with bar("transcribing", len(clips)) as shown:
            for rows, predictions in run_over(
                self._predict, self.params, batches, self.mesh, field="batch_size"
            ):
                for clip, prediction in zip(rows, predictions, strict=True):
                    if clip != FILLER:
                        texts[clip] = self.task.decode(prediction)
                shown.advance(int(np.count_nonzero(rows != FILLER)))
        return texts

    def transcribe_files(
        self,
        files: Sequence[str | Path],
        *,
        batch_size: int = 8,
        max_seconds: float = 60.0,
        channel: str = "auto",
    ) -> list[Transcript]:
        """`transcribe` for audio files, in their order; one that cannot be used does not lose the others.

        Args:
            files: paths of audio files, see `flax_wavlm.data.audio.read_audio`.
            batch_size: as in `transcribe`.
            max_seconds: a longer file is an error. Memory grows with the square of the longest clip in a
                batch.
            channel: of recordings with several, see `read_audio`.
        Raises:
            UserError: `batch_size` or `max_seconds` cannot be used. An error of one file is in its
                transcript.
        """
        sharding.check_batch_size("batch_size", batch_size, self.mesh)  # before much is read
        if not max_seconds > 0:  # or NaN, which no clip would be longer than
            raise UserError(field="max_seconds", found=max_seconds, expected="above 0")

        def read(file: Path) -> Mono | UserError:
            [read] = read_parts(file, [Part()], missing_ok=FEW, channel=channel)
            if isinstance(read, UserError):
                return read
            samples = read.samples
            try:
                self._check_length(samples, str(file))
            except UserError as error:
                return error
            if len(samples) > max_seconds * SAMPLE_RATE:
                return UserError(
                    f"{len(samples) / SAMPLE_RATE:.1f} s",
                    where=file,
                    expected=f"at most {max_seconds:g} s",
                    do="cut it up at pauses, or raise max_seconds (and lower batch_size if memory runs out)",
                )
            return read

        paths = [Path(file) for file in files]
        with ThreadPoolExecutor() as pool:
            found = list(tracked(pool.map(read, paths), "decoding", len(paths)))
        clips = [read.samples for read in found if isinstance(read, Mono)]
        if notes := [
            Skipped(str(path), read.note)
            for path, read in zip(paths, found, strict=True)
            if isinstance(read, Mono) and read.note
        ]:
            log.warning("%s", describe_skipped(notes, verb="decided for"))
        texts = iter(self.transcribe(clips, batch_size=batch_size))
        return [
            Transcript(path, "", read) if isinstance(read, UserError) else Transcript(path, next(texts))
            for path, read in zip(paths, found, strict=True)
        ]

    def evaluate(
        self,
        utterances: Sequence[Utterance],
        unusable: Sequence[Skipped] = (),
        *,
        name: str,
        batch_size: int = 8,
        channel: str = "auto",
    ) -> Evaluation:
        """Loss and error rates over a corpus's split, which `load_corpus` gave.

        Args:
            utterances: each is used, or else counted and named in the log.
            unusable: what the corpus's reader could not use; counted and named with them.
            name: what messages call the split.
            batch_size: as in `transcribe`.
            channel: of recordings with several, see `read_audio`.
        Returns:
            the figures of `evaluate.evaluate` and `skipped`, a count; and the predictions.
        Raises:
            UserError: no utterance can be used, or the batch size does not suit the devices or their memory.
        """
        sharding.check_batch_size("batch_size", batch_size, self.mesh)
        if unusable:
            log.warning("%s: %s", name, describe_skipped(unusable))
        clips, skipped = usable_clips(
            utterances,
            self.tokenizer,
            name=name,
            frame_count=self.config.frame_count,
            drop_infeasible=False,  # their text counts; the loss masks them
            channel=channel,
        )
        hours = sum(len(clip.samples) for clip in clips) / SAMPLE_RATE / 3600
        log.info("%s: %d clips, %.2f hours", name, len(clips), hours)
        eval_step = make_eval_step(self.task, self.config, self.mesh)
        batches = self._batches(clips, batch_size)
        result = evaluate(self.task, eval_step, self.params, batches, self.mesh)
        return result._replace(figures={**result.figures, "skipped": len(unusable) + len(skipped)})

    def _batches(self, clips: Sequence[Clip], batch_size: int) -> ClipBatches:
        return ClipBatches(clips, batch_size, BUCKETS, do_normalize=self.preprocessor.do_normalize)

    def _check_length(self, samples: np.ndarray, name: str) -> None:
        if len(samples) < self.config.min_samples:
            raise UserError(
                f"{len(samples)} samples at 16 kHz",
                where=name,
                expected=f"at least {self.config.min_samples}, one frame of the model",
                do="leave it out",
            )

    @functools.cached_property
    def _predict(self) -> Callable[[Params, Batch], tuple[Array, Array]]:
        """The jitted function (params, batch) -> clip [B], what the task predicts of each [B, ...]."""
        forward = forward_pass(self.task, self.config)

        def predict(params: Params, batch: Batch) -> tuple[Array, Array]:
            return batch["clip"], self.task.predict(*forward(params, batch))

        return jit_over_batches(predict, self.mesh)


def _unlabelled(number: int, samples: np.ndarray) -> Clip:
    return Clip(str(number), samples, labels=np.zeros(0, np.int32), text="", speaker="")

"""Speech to text with a fine-tuned checkpoint, and its figures on a corpus."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flax_wavlm.data.audio import FEW, SAMPLE_RATE, read_audio
from flax_wavlm.data.batches import FILLER, eval_batches
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.clips import Clip, describe_skipped, usable_clips
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.data.preprocessor import INPUTS, Preprocessor, input_values
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import Params, merge, split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.recognition.decoding import greedy
from flax_wavlm.recognition.evaluate import Evaluation, evaluate, make_eval_step, prefetch

log = logging.getLogger(__name__)

Array = jax.Array

BUCKETS = 4  # padded lengths, each of which compiles once


class Transcript(NamedTuple):
    """What became of one file: its text, or the reason why there is none."""

    file: Path
    text: str
    error: UserError | None = None


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A model with a trained CTC head, and the tokenizer and preprocessor that it was trained with.

    The parameters are whole on every device of the mesh, and batches are split over its devices.
    """

    source: str
    config: WavLMConfig
    params: Params
    tokenizer: CTCTokenizer
    preprocessor: Preprocessor
    mesh: Mesh

    @classmethod
    def from_pretrained(cls, source: str | Path, *, dtype: str = "float32") -> Recogniser:
        """Loads a folder, file or hub id, in any format of `port.open_weights`.

        Tokenizer and preprocessor files lie in the folder, or beside the file. `dtype` is that of matrix
        products: "float32" or "bfloat16".

        Raises UserError where the checkpoint has no CTC head, where a file is missing or damaged, and where
        head and tokenizer are of different widths.
        """
        checkpoint = open_weights(source)
        if not checkpoint.has_head:
            raise UserError(
                f"{checkpoint.source}: has no CTC head, expected a checkpoint that gives text. Fine-tune it "
                "first (scripts/train_flax.py --config.model.checkpoint=...) and give the run's export folder"
            )
        folder = checkpoint.folder
        if not exists(folder / "vocab.json"):
            raise UserError(
                f"{folder}: has no vocab.json, expected one that says what the "
                f"{checkpoint.config.vocab_size} outputs of the CTC head mean. Copy the tokenizer's files of "
                "the fine-tuned model into it"
            )
        tokenizer = CTCTokenizer.from_pretrained(folder)
        preprocessor = Preprocessor.from_pretrained(folder)
        if tokenizer.size != checkpoint.config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.size} tokens, expected the "
                f"{checkpoint.config.vocab_size} of the CTC head; restore the tokenizer's files that the "
                "model was trained with"
            )
        if tokenizer.blank_id != checkpoint.config.pad_token_id:
            log.warning(
                "%s: config.json's pad_token_id is %d, the tokenizer's %d: the latter is taken as the blank",
                folder,
                checkpoint.config.pad_token_id,
                tokenizer.blank_id,
            )
        mesh = sharding.make_mesh()
        model = load_model(
            checkpoint,
            overrides={"dtype": dtype},
            placement=lambda path, shape: sharding.replicated(mesh),
        )
        return cls(checkpoint.source, model.config, split(model)[1], tokenizer, preprocessor, mesh)

    def transcribe(self, clips: Sequence[np.ndarray], *, batch_size: int = 8) -> list[str]:
        """The greedy text of each clip, as transformers' ASR pipeline gives it for the clip alone.

        Args:
            clips: samples [N] of each, mono at 16 kHz: float32, or int16 of full scale 32768.
            batch_size: clips worked on at a time; a multiple of the number of devices.
        Raises:
            UserError: a clip is shorter than one frame, or the batch size does not suit the devices.
        """
        sharding.check_batch_size("batch_size", batch_size, self.mesh)
        for i, samples in enumerate(clips):
            self._check_length(samples, f"clip {i}")
        if not clips:
            return []
        unlabelled = [
            Clip(str(i), samples, labels=np.zeros(0, np.int32), text="", speaker="")
            for i, samples in enumerate(clips)
        ]
        batches = eval_batches(
            unlabelled,
            batch_size,
            choose_buckets([len(samples) for samples in clips], BUCKETS),
            do_normalize=self.preprocessor.do_normalize,
        )
        texts = [""] * len(clips)
        inputs = ({name: batch[name] for name in (*INPUTS, "clip")} for batch in batches)
        outputs = (self._greedy(self.params, sharding.put_batch(self.mesh, batch)) for batch in inputs)
        for labels, rows in map(jax.device_get, prefetch(outputs, 2)):
            for row, clip in zip(labels, rows, strict=True):
                if clip != FILLER:
                    texts[clip] = self.tokenizer.decode(row[row >= 0], collapsed=True)
        return texts

    def transcribe_files(
        self, files: Sequence[str | Path], *, batch_size: int = 8, max_seconds: float = 60.0
    ) -> list[Transcript]:
        """`transcribe` for audio files, in their order; one that cannot be used does not lose the others.

        `max_seconds`: a longer file is an error. Memory grows with the square of the longest clip in a batch.
        """
        sharding.check_batch_size("batch_size", batch_size, self.mesh)  # before much is read
        if not max_seconds > 0:  # or NaN, which no clip would be longer than
            raise UserError(f"max_seconds is {max_seconds}, expected above 0")

        def read(file: Path) -> np.ndarray | UserError:
            try:
                samples = read_audio(file, missing_ok=FEW)
                self._check_length(samples, str(file))
            except UserError as error:
                return error
            if len(samples) > max_seconds * SAMPLE_RATE:
                return UserError(
                    f"{file}: {len(samples) / SAMPLE_RATE:.1f} s, expected at most {max_seconds:g} s. Cut it "
                    "up at pauses, or raise --max_seconds (and lower --batch_size if memory runs out)"
                )
            return samples

        paths = [Path(file) for file in files]
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(read, paths))
        clips = [samples for samples in found if not isinstance(samples, UserError)]
        texts = iter(self.transcribe(clips, batch_size=batch_size))
        return [
            Transcript(path, "", samples) if isinstance(samples, UserError) else Transcript(path, next(texts))
            for path, samples in zip(paths, found, strict=True)
        ]

    def evaluate(
        self,
        utterances: Sequence[Utterance],
        unusable: Sequence[Skipped] = (),
        *,
        name: str,
        batch_size: int = 8,
    ) -> Evaluation:
        """Loss and error rates over a corpus's split, which `corpora.load_corpus` gave.

        Args:
            utterances: each is used, or else counted and named in the log.
            unusable: what the corpus's reader could not use; counted and named with them.
            name: what messages call the split.
            batch_size: as in `transcribe`.
        Returns:
            the figures of `evaluate.evaluate` and `skipped`, a count; and the predictions.
        Raises:
            UserError: no utterance can be used, or the batch size does not suit the devices.
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
        )
        eval_step = make_eval_step(
            self.config,
            self.mesh,
            blank_id=self.tokenizer.blank_id,
            reduction=self.config.ctc_loss_reduction,
        )
        buckets = choose_buckets([len(clip.samples) for clip in clips], BUCKETS)
        batches = eval_batches(clips, batch_size, buckets, do_normalize=self.preprocessor.do_normalize)
        result = evaluate(eval_step, self.params, batches, clips, self.tokenizer, self.mesh)
        return result._replace(figures={**result.figures, "skipped": len(unusable) + len(skipped)})

    def _check_length(self, samples: np.ndarray, name: str) -> None:
        if len(samples) < self.config.min_samples:
            raise UserError(
                f"{name}: {len(samples)} samples at 16 kHz, expected at least {self.config.min_samples}, one "
                "frame of the model; leave it out"
            )

    @functools.cached_property
    def _greedy(self) -> Callable[[Params, dict[str, Array]], tuple[Array, Array]]:
        """The jitted function (params, batch) -> labels [B, T] as `ctc.greedy` gives them, clip [B].

        GroupNorm runs over each clip's own frames: a base model's text must not depend on the batch.
        """
        graphdef, _ = structure(dataclasses.replace(self.config, masked_group_norm=True))

        def transcribe(params: Params, batch: dict[str, Array]) -> tuple[Array, Array]:
            logits, frames = merge(graphdef, params)(input_values(batch), batch["lengths"])
            return greedy(logits, frames, blank_id=self.tokenizer.blank_id), batch["clip"]

        return jax.jit(
            transcribe,
            in_shardings=(None, sharding.batch_sharding(self.mesh)),
            out_shardings=sharding.replicated(self.mesh),
        )

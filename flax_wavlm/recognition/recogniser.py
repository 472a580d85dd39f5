"""Speech to text with a fine-tuned checkpoint, and its figures on a corpus."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from flax_wavlm.data.batches import FILLER
from flax_wavlm.data.clips import Clip, describe_skipped, usable_clips
from flax_wavlm.data.corpora.utterance import Samples, Skipped, Utterance
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import Params, split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.extras import TrainingSeconds, read_extras
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.mistaken import missing_vocabulary
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.progress import bar, drawing
from flax_wavlm.recognition.align import align_recording, report
from flax_wavlm.recognition.aligner import (
    ALIGNER,
    ALIGNER_FILE,
    aligner_log_probs,
    encoder_checksum,
    load_aligner,
)
from flax_wavlm.recognition.beam_search.choice import Asked, choose_decoder
from flax_wavlm.recognition.ctc_task import character_ctc, decoded_by
from flax_wavlm.recognition.decoding import Decoder, GreedyDecoder, every_posterior
from flax_wavlm.recognition.emissions import Emissions, whole
from flax_wavlm.recognition.evaluate import Evaluation, evaluate, make_eval_step
from flax_wavlm.recognition.forward import ClipBatches, forward_with_features, jit_over_batches, run_over
from flax_wavlm.recognition.memory import check_memory
from flax_wavlm.recognition.recordings import (
    BUCKETS,
    Evidence,
    Heard,
    Source,
    WindowBatches,
    joined,
    read_windows,
    stated_seconds,
)
from flax_wavlm.recognition.stretches import Decoded, StretchDecoder, transcript_of
from flax_wavlm.recognition.task import Batch, Task
from flax_wavlm.recognition.threads import Decoding, in_order
from flax_wavlm.recognition.transcript import Transcript
from flax_wavlm.recognition.windows import UNKNOWN, Windowing

log = logging.getLogger(__name__)

Array = jax.Array
T = TypeVar("T")
Evidences = Callable[..., tuple[Array, dict[str, Array]]]


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
    training_seconds: TrainingSeconds | None = None  # of the clips that it was trained on, where known
    temperature: float = 1.0  # logits are divided by it before posteriors are taken as confidences
    aligner: Params | None = None  # tells when labels were said, see `recognition.aligner`
    chosen_decoder: Decoder | None = None  # None: greedy

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: str = "float32",
        text: Mapping[str, str | None] = MappingProxyType({}),
        lm: str | Path | None = None,
        beam: int | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        hotwords: Sequence[str] = (),
    ) -> Recogniser:
        """Loads a folder, file or hub id, in any format that `porting.pretrained.open_weights` reads.

        Decoding is greedy where there is neither a language model nor a beam nor a hot word.

        Args:
            source: tokenizer and preprocessor files lie in the folder, or beside the file.
            dtype: the type of matrix products, "float32" or "bfloat16".
            text: fields of `TextRule` in place of the model's own; None, or absent: its own.
            lm: the ARPA file of a language model; "none": none; None: the one in the model's folder, if any.
            beam: hypotheses that a beam search keeps; None: 100 where there is a search.
            alpha, beta: weights of the language model and of a word, see `BeamSettings`; None: those in the
                model's folder for its own language model, else the defaults.
            hotwords: words and phrases that are expected.
        Raises:
            UserError: the checkpoint has no CTC head, a file is missing or damaged, head and tokenizer are of
                different widths, or the language model or a hot word cannot be used.
        """
        asked = Asked(lm, beam, alpha, beta, hotwords)
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
        if tokenizer.blank_id != weights.config.pad_token_id:
            log.warning(
                "%s: config.json's pad_token_id is %d, the tokenizer's %d: the latter is taken as the blank",
                folder,
                weights.config.pad_token_id,
                tokenizer.blank_id,
            )
        decoder = choose_decoder(asked, folder, tokenizer, temperature=extras.temperature)
        mesh = sharding.make_mesh()
        model = load_model(
            weights,
            overrides={"dtype": dtype},
            placement=lambda path, shape: sharding.replicated(mesh),
        )
        params = split(model)[1]
        aligner = load_aligner(folder, model.config, encoder=encoder_checksum(params))
        return cls(
            weights.source,
            model.config,
            params,
            tokenizer,
            preprocessor,
            mesh,
            extras.training_seconds,
            extras.temperature,
            None if aligner is None else jax.device_put(aligner, sharding.replicated(mesh)),
            decoder,
        )

    @functools.cached_property
    def task(self) -> Task:
        """What the model was trained for: character CTC."""
        return character_ctc(self.tokenizer, reduction=self.config.ctc_loss_reduction)

    def transcribe(
        self, clips: Sequence[np.ndarray], *, batch_size: int = 8, window: float = 0.0
    ) -> list[Transcript]:
        """What each clip says, and when.

        By greedy decoding, a clip that is not longer than a window has the text that transformers' ASR
        pipeline gives for it alone.

        Args:
            clips: samples [N] of each, mono at 16 kHz: float32, or int16 of full scale 32768.
            batch_size: clips worked on at a time; a multiple of the number of devices.
            window: as in `transcripts`.
        Raises:
            UserError: a clip is shorter than one frame, or the batch size does not suit the devices or
                their memory.
        """
        sources = [
            Source(f"clip {i}", Samples(np.asarray(samples), SAMPLE_RATE)) for i, samples in enumerate(clips)
        ]
        found = list(self._transcripts(sources, batch_size=batch_size, window=window))
        for transcript in found:
            if transcript.error is not None:
                raise transcript.error
        return found

    def transcribe_files(self, files: Sequence[str | Path | Source], **settings: Any) -> list[Transcript]:
        """`transcripts` as a list."""
        return list(self.transcripts(files, **settings))

    def transcripts(
        self,
        files: Sequence[str | Path | Source],
        *,
        batch_size: int = 8,
        window: float = 0.0,
        at_pauses: bool = True,
        max_seconds: float = math.inf,
        channel: str = "auto",
        times: bool = True,
    ) -> Iterator[Transcript]:
        """What each audio file says, in their order, each as soon as it is known.

        Files may be of any length: they are read, and heard, window by window (`recognition.windows`). One
        that cannot be used does not lose the others.

        Args:
            files: paths of audio files, see `flax_wavlm.data.audio.read_audio`; or files under other names.
            batch_size: windows worked on at a time; a multiple of the number of devices.
            window: seconds of a window; 0: as long as most clips were that the model was trained on, where
                its folder says so, else 20 s. Memory grows with its square.
            at_pauses: windows end at pauses where there are any; False: each has the same length.
            max_seconds: a longer file is an error.
            channel: of recordings with several, see `read_audio`.
            times: False: nobody wants to know when words were said, so they are where the model says them.
        Raises:
            UserError: `batch_size`, `window` or `max_seconds` cannot be used, or the memory does not suffice.
                An error of one file is in its transcript.
        """
        return self._transcripts(
            [file if isinstance(file, Source) else Source(Path(file), Path(file)) for file in files],
            batch_size=batch_size,
            window=window,
            at_pauses=at_pauses,
            max_seconds=max_seconds,
            channel=channel,
            times=times,
        )

    def _transcripts(
        self, sources: Sequence[Source], *, times: bool = True, **settings: Any
    ) -> Iterator[Transcript]:
        """`transcripts` of any sources; the arguments are checked at once."""
        if times and self.aligner is None:
            log.info(
                "%s: has no %s: words are where the model's own outputs are, which may be early or late; "
                "fit_aligner.py makes one",
                self.source,
                ALIGNER_FILE,
            )
        if self.chosen_decoder is not None:
            log.info("decoding: %s", self.decoder.describe())
        windowing = self.windowing(settings.pop("window", 0.0), at_pauses=settings.pop("at_pauses", True))
        decode = StretchDecoder(self.decoder, self.tokenizer, windowing.hop / SAMPLE_RATE)
        decoding: Decoding[Decoded] = Decoding(decode, in_threads=self.decoder.takes_long)
        heard = self._heard(sources, windowing, self._for_decoder, decoding, times=times, **settings)

        def spelled() -> Iterator[Transcript]:
            notes = []
            with decoding:
                for source, stretches, ended in in_order(heard, _is_decoded):
                    if ended.error is not None:
                        yield Transcript(source.name, error=ended.error)
                        continue
                    if ended.note:
                        notes.append(Skipped(str(source.name), ended.note))
                    decoded = [stretch.result() for stretch in stretches]
                    most = self.decoder.alternatives
                    yield transcript_of(self.tokenizer, source, decoded, ended, most)
            if notes:
                log.warning("%s", describe_skipped(notes, verb="decided for"))

        return spelled()

    def emissions(self, source: str | Path | Samples, **settings: Any) -> Emissions:
        """What the model says of each frame of a recording of any length: an audio file, or samples.

        Settings and errors are those of `every_emissions`. UserError also where the recording cannot be used.
        """
        named = source if isinstance(source, Samples) else Path(source)
        name = "the recording" if isinstance(named, Samples) else named
        [found] = self.every_emissions([Source(name, named)], **settings)
        if isinstance(found, UserError):
            raise found
        return found

    def every_emissions(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int = 8,
        window: float = 0.0,
        channel: str = "auto",
    ) -> Iterator[Emissions | UserError]:
        """What the model says of each frame of recordings, in their order, or why one cannot be used.

        Args:
            batch_size, window, channel: as in `transcripts`.
        Raises:
            UserError: as `transcripts`.
        """
        windowing = self.windowing(window)
        heard = self._heard(
            sources,
            windowing,
            self._for_alignment,
            lambda first, evidence: (first, evidence),
            batch_size=batch_size,
            channel=channel,
        )
        for source, stretches, ended in heard:
            if ended.error is not None:
                yield ended.error
                continue
            if ended.note:
                log.warning("%s: decided for %s", source.name, ended.note)
            frames = windowing.frames(round(ended.seconds * SAMPLE_RATE))
            arrays = whole(stretches, frames, self.config.vocab_size, self.tokenizer.blank_id)
            frame_seconds = windowing.hop / SAMPLE_RATE
            yield Emissions(arrays["log_probs"], arrays.get(ALIGNER), frame_seconds, ended.seconds)

    def align(
        self, audio: str | Path | Samples, text: str, *, stars: bool = True, **settings: Any
    ) -> Transcript:
        """When each word of a known text was said in a recording of any length.

        Args:
            audio: an audio file, or samples with their rate.
            text: what is said; it goes through the tokenizer's text rule.
            stars: speech that the text lacks may stand before, behind and between its words. The log names
                it, and words that were hardly said.
            settings: of `emissions`.
        Raises:
            UserError: the recording cannot be read, the text has nothing that the model can say, or the
                recording is too short for the text.
        """
        named = audio if isinstance(audio, Samples) else Path(audio)
        aligned = align_recording(self, named, text, stars=stars, **settings)
        report(aligned)
        return aligned.transcript

    def windowing(self, window: float = 0.0, *, at_pauses: bool = True) -> Windowing:
        """How recordings are cut, see `transcripts`. UserError where the window cannot be used."""
        if not 0 <= window < math.inf:
            raise UserError(field="window", found=window, expected="seconds, or 0 for the model's own")
        seconds = TrainingSeconds(window, window) if window else self.training_seconds or UNKNOWN
        return Windowing.of(self.config, seconds, at_pauses=at_pauses)

    def _heard(
        self,
        sources: Sequence[Source],
        windowing: Windowing,
        function: Evidences,
        of_stretch: Callable[[int, Evidence], T],
        *,
        batch_size: int,
        max_seconds: float = math.inf,
        channel: str = "auto",
        times: bool = True,
    ) -> Iterator[Heard[T]]:
        """What is made of the stretches of each recording; the arguments are checked at once.

        Args:
            function: of `_evidence`.
            of_stretch: as `recordings.joined` takes it.
        """
        sharding.check_batch_size("batch_size", batch_size, self.mesh)  # before much is read
        if not max_seconds > 0:  # or NaN, which no clip would be longer than
            raise UserError(field="max_seconds", found=max_seconds, expected="above 0")
        pieces = functools.partial(
            read_windows, windowing=windowing, channel=channel, max_seconds=max_seconds
        )
        batches = WindowBatches(sources, pieces, batch_size, self.preprocessor.do_normalize, windowing)
        params = self.params, self.aligner if times else None
        seconds = windowing.samples(windowing.longest) / SAMPLE_RATE
        if seconds > UNKNOWN.longest:
            scores = self.config.num_attention_heads * windowing.longest**2
            devices = self.mesh.size
            check_memory(function, params, batches, devices, "batch_size", seconds=seconds, scores=scores)

        def heard() -> Iterator[Heard[T]]:
            results: Iterator[Any] = run_over(function, params, batches, self.mesh, field="batch_size")
            with bar("seconds heard", stated_seconds(sources) if drawing() else 0) as shown:
                yield from joined(batches, results, of_stretch, shown)

        return heard()

    @functools.cached_property
    def decoder(self) -> Decoder:
        """Turns what the model says of frames into labels."""
        return self.chosen_decoder or GreedyDecoder(self.tokenizer.blank_id, self.temperature)

    def with_decoder(self, decoder: Decoder | None) -> Recogniser:
        """The same model with another decoder; None: the greedy one."""
        return dataclasses.replace(self, chosen_decoder=decoder)

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
        clips, skipped = self.clips(utterances, unusable, name=name, batch_size=batch_size, channel=channel)
        log.info("decoding: %s", self.decoder.describe())
        task = self.task
        if self.chosen_decoder is not None:
            task = decoded_by(self.chosen_decoder, task, self.tokenizer)
        eval_step = make_eval_step(task, self.config, self.mesh)
        batches = self._batches(clips, batch_size)
        result = evaluate(task, eval_step, self.params, batches, self.mesh)
        return result._replace(figures={**result.figures, "skipped": len(unusable) + len(skipped)})

    def clips(
        self,
        utterances: Sequence[Utterance],
        unusable: Sequence[Skipped] = (),
        *,
        name: str,
        batch_size: int = 8,
        channel: str = "auto",
    ) -> tuple[list[Clip], list[Skipped]]:
        """A split's clips, and the utterances that cannot be used. Arguments and errors: as `evaluate`."""
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
        return clips, skipped

    def log_probs(self, clips: Sequence[Clip], *, batch_size: int = 8) -> list[np.ndarray]:
        """What the model says of each clip, in their order: float32 [T, V] of its own frames, all in memory.

        They are the model's own log-probabilities, whatever its temperature. UserError as `evaluate`.
        """
        found: dict[int, np.ndarray] = {}
        function, params = self._evidence(every_posterior), (self.params, None)
        batches = self._batches(clips, batch_size)
        results: Iterator[Any] = run_over(function, params, batches, self.mesh, field="batch_size")
        with bar("clips heard", len(clips)) as shown:
            for rows, evidence in results:
                for row in np.flatnonzero(rows != FILLER):
                    clip = int(rows[row])
                    frames = int(self.config.frame_count(len(clips[clip].samples)))
                    found[clip] = evidence["log_probs"][row, :frames].copy()
                    shown.advance()
        return [found[clip] for clip in range(len(clips))]

    def _batches(self, clips: Sequence[Clip], batch_size: int) -> ClipBatches:
        return ClipBatches(clips, batch_size, BUCKETS, do_normalize=self.preprocessor.do_normalize)

    @functools.cached_property
    def _for_decoder(self) -> Evidences:
        return self._evidence(self.decoder.evidence)

    @functools.cached_property
    def _for_alignment(self) -> Evidences:
        return self._evidence(every_posterior, self.temperature)

    def _evidence(
        self, of_frames: Callable[[Array, Array], dict[str, Array]], temperature: float = 1.0
    ) -> Evidences:
        """The jitted function (params, batch) -> window [B], what a decoder needs of its frames.

        `params` are the model's and the aligner's. Where there is an aligner, its log-probabilities are among
        the evidence, as `ALIGNER`. A decoder has the model's own log-probabilities, an alignment those at the
        temperature.
        """
        forward = forward_with_features(self.task, self.config)

        def evidence(params: tuple[Params, Params | None], batch: Batch) -> tuple[Array, dict[str, Array]]:
            model, aligner = params
            logits, frame_lengths, features = forward(model, batch)
            found = of_frames(jax.nn.log_softmax(logits / temperature), frame_lengths)
            if aligner is not None:
                found |= {ALIGNER: aligner_log_probs(aligner, features, frame_lengths)}
            return batch["clip"], found

        return jit_over_batches(evidence, self.mesh)


def _is_decoded(heard: Heard[Future[Decoded]]) -> bool:
    return heard.ended.error is not None or all(stretch.done() for stretch in heard.stretches)

"""Fits an aligner beside a model: from clips and their text alone, it learns when each label is said.

The model itself is only read. Its frozen feature encoder is run once over each clip, and the aligner is
trained on what that gives. See `flax_wavlm/recognition/aligner.py` for what an aligner is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flax_wavlm.data.audio import duration_seconds
from flax_wavlm.data.batches import Batches, Features, eval_batches
from flax_wavlm.data.buckets import choose_shapes
from flax_wavlm.data.clips import Clip, describe_skipped, usable_clips
from flax_wavlm.data.corpora.utterance import Skipped, Utterance, by_id
from flax_wavlm.data.preprocessor import INPUTS, Preprocessor, input_values
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError, cannot_write
from flax_wavlm.files import is_folder
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import Params, decay_mask, merge, split
from flax_wavlm.ops.ctc.api import ctc_loss
from flax_wavlm.ops.switch import kernels
from flax_wavlm.parallel import processes
from flax_wavlm.porting.extras import read_extras
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.progress import bar, tracked
from flax_wavlm.recognition.aligner import (
    Aligner,
    AlignerSize,
    Fitting,
    aligner_logits,
    encoder_checksum,
    load_aligner,
    save_aligner,
    text_to_align,
)
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.prepare import Parts

log = logging.getLogger(__name__)

Array = jax.Array

ALPHA = 0.8  # the share of the label priors
STEPS = 800
LEAST_STEPS, MOST_EPOCHS = 100, 100  # of a corpus of few clips, which is soon learnt by heart
BATCH_SECONDS = 50.0  # padded speech in a step
BUCKETS = 3  # padded lengths, each of which compiles once
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 3e-3, 1e-2, 1.0
MOST_SECONDS = 3600.0  # of speech that is fitted to
MOST_BYTES = 2**29  # of its features in memory
USUAL_SECONDS = 5.0  # of a clip whose length only decoding would tell
ENCODED_SECONDS = 16.0  # of padded speech that the feature encoder works on at a time
STEP_INPUTS = ("features", "lengths", "labels", "label_lengths", "valid")  # of a batch, what a step is given


class Listener(NamedTuple):
    """The parts of a model that an aligner is fitted to."""

    config: WavLMConfig
    params: Params
    blank_id: int
    delimiter_id: int | None
    do_normalize: bool


def fit_aligner(
    listener: Listener, clips: Sequence[Clip], *, seed: int = 0, steps: int = STEPS
) -> tuple[Params, Fitting]:
    """Trains an aligner on clips of training; the same arguments give the same aligner.

    Args:
        listener: the model. Whatever its dtype, all is computed in float32.
        clips: whose labels are the model's. Of many a random sample is taken, see `sample_of`.
        seed: of that sample, of new weights and of the order of clips.
        steps: at most; a corpus of few clips has fewer.
    Returns:
        the aligner's parameters, on the host, and how they were fitted.
    Raises:
        UserError: there is no clip, or the loss is not a number.
    """
    began = time.perf_counter()
    config = dataclasses.replace(listener.config, dtype="float32", masked_group_norm=True)
    chosen = sample_of(clips, config, seed)
    arrays = _encode(config, listener, chosen)
    batches = _batches(listener, chosen, arrays, config, seed, steps)
    aligner, loss = _train(config, batches, arrays, listener.blank_id, seed)
    if not np.isfinite(loss):
        raise UserError(f"fitting the aligner, the loss became {loss}", expected="a number")
    hours = sum(len(clip.samples) for clip in chosen) / SAMPLE_RATE / 3600
    log.info(
        "aligner: fitted on %d clips, %.2f hours, in %d steps and %.0f s",
        *(len(chosen), hours, len(batches), time.perf_counter() - began),
    )
    return aligner, Fitting(ALPHA, len(batches), len(chosen))


def sample_of(clips: Sequence[Clip], config: WavLMConfig, seed: int) -> list[Clip]:
    """The clips in a random order, up to `MOST_SECONDS` of speech and `MOST_BYTES` of features; at least one.

    Raises UserError where there is none.
    """
    if not clips:
        raise UserError("there is no clip to fit an aligner to")
    order = np.random.default_rng(seed).permutation(len(clips))
    lengths = np.array([len(clips[i].samples) for i in order], np.int64)
    held = np.cumsum(config.frame_count(lengths)) * config.conv_dim[-1] * 4
    fitting = (np.cumsum(lengths) <= MOST_SECONDS * SAMPLE_RATE) & (held <= MOST_BYTES)
    return [clips[i] for i in order[: max(int(fitting.sum()), 1)]]


class _Shapes(NamedTuple):
    """The shapes of batches: rows, and padded samples, of each."""

    rows: list[int]
    samples: list[int]

    @classmethod
    def of(cls, clips: Sequence[Clip], seconds: float, config: WavLMConfig) -> _Shapes:
        """Those of batches of that much padded speech, or of the longest clip alone where that is more."""
        lengths = [len(clip.samples) for clip in clips]
        longest = (-(-max(lengths) // 320) + 1) * 320  # the largest bucket there can be
        chosen = choose_shapes(
            lengths,
            BUCKETS,
            batch_samples=max(int(seconds * SAMPLE_RATE), longest),
            frame_count=config.frame_count,
        )
        return cls([shape.rows for shape in chosen], [shape.samples for shape in chosen])


def _encode(config: WavLMConfig, listener: Listener, clips: Sequence[Clip]) -> list[np.ndarray]:
    """The feature encoder's output of each clip, float32 [T, C]."""
    graphdef, _ = structure(config)

    @jax.jit
    def encode(params: Params, batch: dict[str, Array]) -> Array:
        return merge(graphdef, params).features(input_values(batch), batch["lengths"])

    arrays: list[np.ndarray] = [np.zeros(0)] * len(clips)
    shapes = _Shapes.of(clips, ENCODED_SECONDS, config)
    with bar("encoding for the aligner", len(clips)) as shown:
        for batch in eval_batches(clips, *shapes, do_normalize=listener.do_normalize):
            features = np.asarray(encode(listener.params, {name: batch[name] for name in INPUTS}))
            rows = np.flatnonzero(batch["valid"])
            for row in rows:
                frames = int(config.frame_count(int(batch["lengths"][row])))
                arrays[batch["clip"][row]] = features[row, :frames].copy()
            shown.advance(len(rows))
    return arrays


def _batches(
    listener: Listener,
    clips: Sequence[Clip],
    arrays: list[np.ndarray],
    config: WavLMConfig,
    seed: int,
    steps: int,
) -> Batches:
    """The batches of all steps, with features in place of samples."""
    shapes = _Shapes.of(clips, BATCH_SECONDS, config)
    labelled = [
        dataclasses.replace(clip, labels=text_to_align(clip.labels, listener.delimiter_id)) for clip in clips
    ]
    make = functools.partial(Batches, labelled, *shapes, seed=seed, do_normalize=False)
    epoch = make(epochs=1).steps_per_epoch
    batches = make(steps=min(steps, max(LEAST_STEPS, MOST_EPOCHS * epoch)))
    batches.features = Features(arrays, config.frame_count)
    return batches


# --- Training -----------------------------------------------------------------------------------------------


def prior_loss(logits: Array, frame_lengths: Array, batch: dict[str, Array], *, blank_id: int) -> Array:
    """The mean over a batch's clips of the CTC loss a label, with label priors.

    The priors are the mean posteriors of the batch (Huang et al. 2024, section 3). They say how often a label
    is heard in any frame, so what is left of the scores is what this frame says of it.
    """
    own = (jnp.arange(logits.shape[1]) < frame_lengths[:, None]) & batch["valid"][:, None]
    posteriors = jax.nn.softmax(logits) * own[:, :, None]
    prior = jnp.sum(posteriors, axis=(0, 1)) / jnp.sum(own)
    loss, _ = ctc_loss(
        logits,
        frame_lengths,
        batch["labels"],
        batch["label_lengths"],
        blank_id=blank_id,
        log_prior=ALPHA * jnp.log(prior + 1e-8),
    )
    loss = jnp.where(batch["valid"], loss / jnp.maximum(batch["label_lengths"], 1), 0)
    return jnp.sum(loss) / jnp.maximum(jnp.sum(batch["valid"]), 1)


def _train(
    config: WavLMConfig, batches: Batches, arrays: Sequence[np.ndarray], blank_id: int, seed: int
) -> tuple[Params, float]:
    """The aligner's parameters after all batches, and the last loss."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, max(len(batches) // 10, 1), len(batches)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(schedule, weight_decay=WEIGHT_DECAY, mask=decay_mask),
    )

    def loss_of(trained: Params, norm: Params, batch: dict[str, Array]) -> Array:
        frame_lengths = config.frame_count(batch["lengths"])
        logits = aligner_logits({**trained, "norm": norm}, batch["features"], frame_lengths)
        with kernels(config.kernels):
            return prior_loss(logits, frame_lengths, batch, blank_id=blank_id)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trained: Params, state: Any, norm: Params, batch: dict[str, Array]) -> tuple[Params, Any, Array]:
        loss, gradient = jax.value_and_grad(loss_of)(trained, norm, batch)
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    aligner = split(Aligner(AlignerSize.of_model(config), nnx.Rngs(seed)))[1]
    del aligner["norm"]
    norm = _mean_and_scale(arrays)
    state, loss = optimizer.init(aligner), jnp.zeros(())
    for number in tracked(range(len(batches)), "fitting the aligner", len(batches)):
        batch = batches[number]
        inputs = {name: batch[name] for name in STEP_INPUTS}
        aligner, state, loss = step(aligner, state, norm, inputs)
    return jax.device_get({**aligner, "norm": norm}), float(loss)


def _mean_and_scale(arrays: Sequence[np.ndarray]) -> Params:
    """Mean, and one over the standard deviation, of each channel over all frames, [C]."""
    frames = sum(map(len, arrays))
    mean = sum(array.sum(axis=0, dtype=np.float64) for array in arrays) / frames
    variance = sum(np.square(array - mean).sum(axis=0, dtype=np.float64) for array in arrays) / frames
    floor = 1e-3 * variance.mean() + 1e-10  # a channel that says nothing is not made loud
    return {"mean": mean.astype(np.float32), "scale": (1 / np.sqrt(variance + floor)).astype(np.float32)}


# --- Into a model's folder ----------------------------------------------------------------------------------


def fit_folder(
    folder: Path,
    utterances: Sequence[Utterance],
    unusable: Sequence[Skipped] = (),
    *,
    name: str = "train",
    seed: int = 0,
    steps: int = STEPS,
    channel: str = "auto",
) -> Path:
    """Fits an aligner to the model in a folder, and writes it there; returns the file.

    Args:
        folder: of a fine-tuned model.
        utterances: from `load_corpus`, whose text the model can write.
        unusable: what the corpus's reader could not use; named in the log.
        name: what messages call the utterances.
        seed, steps: as for `fit_aligner`.
        channel: of recordings with several, see `read_audio`.
    Raises:
        UserError: it is no model's folder, or cannot be written; no utterance can be used.
    """
    if not is_folder(folder):
        raise UserError(
            field="model",
            found=str(folder),
            expected="the folder of a fine-tuned model: the aligner is written into it",
            do="a model of the hub is downloaded first, with `convert.py HUB_ID FOLDER`",
        )
    _check_writable(folder)
    listener, tokenizer = _open(folder)
    if unusable:
        log.warning("%s: %s", name, describe_skipped(unusable))
    clips, _ = usable_clips(
        _some_of(utterances, seed),
        tokenizer,
        frame_count=listener.config.frame_count,
        name=name,
        channel=channel,
    )
    aligner, fitting = fit_aligner(listener, clips, seed=seed, steps=steps)
    return save_aligner(folder, aligner, fitting, encoder=encoder_checksum(listener.params))


def _open(folder: Path) -> tuple[Listener, CTCTokenizer]:
    """The model in a folder, whatever aligner lies there; UserError where it is no fine-tuned model."""
    weights, extras = open_weights(folder), read_extras(folder)
    if not weights.has_head:
        raise UserError(
            "has no CTC head", where=folder, expected="a fine-tuned model", do="fine-tune it first"
        )
    tokenizer = CTCTokenizer.from_pretrained(folder, rule=extras.text, follows=extras.follows_vocabulary)
    tokenizer = tokenizer.for_head(
        weights.config.vocab_size, head=weights.source, do="restore the tokenizer's files of the model"
    )
    params = split(load_model(weights))[1]
    do_normalize = Preprocessor.from_pretrained(folder).do_normalize
    listener = Listener(weights.config, params, tokenizer.blank_id, tokenizer.delimiter_id, do_normalize)
    return listener, tokenizer


def _check_writable(folder: Path) -> None:
    """UserError before a minute's work where nothing can be written there."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise cannot_write(folder, error) from None


def _some_of(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Utterances at random, of `MOST_SECONDS` of speech or a little more: the others are not decoded."""
    chosen, seconds = [], 0.0
    for i in np.random.default_rng(seed).permutation(len(utterances)):
        chosen.append(utterances[i])
        seconds += _seconds(utterances[i])
        if seconds >= MOST_SECONDS:
            break
    if len(chosen) < len(utterances):
        log.info("aligner: %d of %d clips, chosen at random", len(chosen), len(utterances))
    return sorted(chosen, key=by_id)


def _seconds(utterance: Utterance) -> float:
    """How long an utterance is, as far as that is known without decoding it."""
    if utterance.start is not None and utterance.end is not None:
        return utterance.end - utterance.start
    if utterance.duration is not None:
        return utterance.duration
    known = None
    if isinstance(utterance.audio, Path):
        with contextlib.suppress(UserError):  # it will be skipped, and named
            known = duration_seconds(utterance.audio)
    return known or USUAL_SECONDS


# --- At the end of a run ------------------------------------------------------------------------------------


def fit_exported(config: TrainConfig, run: Parts, export: Path) -> None:
    """Fits an aligner to a run's exported model on its training clips, where `train.aligner` asks for it.

    An aligner that a run fitted before it was killed is kept: it is the same. In a run of several processes
    all must call; the first one works, on a device of its own.
    """
    if not config.train.aligner:
        return
    with processes.first_process_first("aligner"):
        if jax.process_index() == 0:
            _fit_exported(config, run, export)


def _fit_exported(config: TrainConfig, run: Parts, export: Path) -> None:
    model = load_model(export, overrides={"kernels": config.model.kernels})
    params, tokenizer = split(model)[1], run.origin.tokenizer
    encoder = encoder_checksum(params)
    try:
        if load_aligner(export, model.config, encoder=encoder) is not None:
            return
    except UserError as error:
        log.info("%s", error)
    listener = Listener(
        model.config, params, tokenizer.blank_id, tokenizer.delimiter_id, run.origin.preprocessor.do_normalize
    )
    try:
        aligner, fitting = fit_aligner(listener, run.speech.train.clips, seed=config.seed)
    except UserError as error:  # the run is worth more than its aligner
        log.warning("%s has no aligner: %s", export, error)
        return
    save_aligner(export, aligner, fitting, encoder=encoder)

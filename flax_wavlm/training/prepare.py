"""The parts of a run, made before its first step: data, programs, and the form of its state."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import optax
from jax.sharding import Mesh

from flax_wavlm.errors import UserError
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import Params
from flax_wavlm.models.wavlm import attention_spec
from flax_wavlm.ops.attention.choice import describe
from flax_wavlm.recognition.ctc_task import ctc_scoring
from flax_wavlm.recognition.evaluate import Evaluation, evaluate, make_eval_step
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.training.config import OptimSettings, TrainConfig
from flax_wavlm.training.optimizer import adamw, linear_schedule
from flax_wavlm.training.speech import Speech, prepare_speech
from flax_wavlm.training.splits import load_splits
from flax_wavlm.training.start import StartingPoint, new_state, open_starting_point, state_template
from flax_wavlm.training.state import TrainState
from flax_wavlm.training.step import Encode, TrainStep, jit_encode, jit_train_step, make_train_step

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What the loop of a run works with."""

    mesh: Mesh
    origin: StartingPoint
    speech: Speech
    attention: str  # which implementation runs, in words
    schedule: optax.Schedule
    template: TrainState  # shapes, types and shardings
    encode: Encode | None  # the frozen feature encoder; None where it is trained
    train_step: TrainStep
    evaluate: Callable[[Params, ClipBatches], Evaluation]  # over a whole split
    new_state: Callable[[], TrainState]  # the state before the first step


def prepare(config: TrainConfig, mesh: Mesh) -> Parts:
    """Reads corpus and pretrained weights, plans the batches, and builds the programs. Nothing is compiled.

    Raises UserError where corpus, weights or settings cannot be used.
    """
    splits = load_splits(config.data)
    origin = open_starting_point(
        config.model,
        splits.by_name(),
        text=config.text,
        overrides=config.model_overrides(),
        tokenizer=config.data.tokenizer,
        reduction=config.train.ctc_loss_reduction,
    )
    speech = prepare_speech(
        splits, origin, config.data, config.train, cache=config.cache_folder(), seed=config.seed
    )
    best_by = _chosen_by(config.train.best_by, speech)
    origin = origin.judged_by(replace(ctc_scoring(config.data.corpus), best_by=best_by))
    batches, task = speech.train, origin.task
    frame_counts = {int(origin.config.frame_count(samples)) for samples in batches.buckets}
    attention = describe(attention_spec(origin.config), frame_counts)

    schedule, optimizer = _make_optimizer(config.optim, len(batches))
    freeze = config.model.freeze_feature_encoder
    template = state_template(origin, optimizer, mesh, freeze=freeze)
    train_step = make_train_step(
        structure(origin.config, model=task.head)[0],
        optimizer,
        task.loss,
        seed=config.seed,
        accumulation=config.train.accumulation,
    )
    encode = jit_encode(origin.config, mesh, accumulation=config.train.accumulation) if freeze else None
    eval_step = make_eval_step(task, origin.config, mesh)

    def evaluate_on(params: Params, clips: ClipBatches) -> Evaluation:
        result = evaluate(task, eval_step, params, clips, mesh)
        if not math.isfinite(loss := result.figures["loss"]):
            raise UserError(f"evaluated, the loss is {loss}, expected a number")
        return result

    return Parts(
        mesh=mesh,
        origin=origin,
        speech=speech,
        attention=attention,
        schedule=schedule,
        template=template,
        encode=encode,
        train_step=jit_train_step(train_step, mesh, template, encode),
        evaluate=evaluate_on,
        new_state=lambda: new_state(origin, optimizer, template, seed=config.seed, freeze=freeze),
    )


def _chosen_by(best_by: str, speech: Speech) -> str:
    """The score that chooses: `train.best_by`, where "auto" looks at the texts of train."""
    if best_by != "auto":
        return best_by
    single = sum(len(clip.text.split()) == 1 for clip in speech.train.clips)
    if 2 * single <= len(speech.train.clips):
        return "wer"
    log.info(
        "the best checkpoint is the one of the lowest CER (train.best_by is 'auto'): %d of %d texts are a "
        "single word, so the WER only counts texts without any error",
        single,
        len(speech.train.clips),
    )
    return "cer"


def _make_optimizer(optim: OptimSettings, steps: int) -> tuple[optax.Schedule, optax.GradientTransformation]:
    if optim.warmup_steps >= steps:
        raise UserError(
            field="optim.warmup_steps",
            found=optim.warmup_steps,
            expected=f"fewer than the {steps} steps of the run",
        )
    schedule = linear_schedule(optim.learning_rate, optim.warmup_steps, steps)
    optimizer = adamw(
        schedule,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
    )
    return schedule, optimizer

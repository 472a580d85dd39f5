"""The parts of a run, made before its first step: data, programs, and the form of its state."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import optax
from jax.sharding import Mesh

from flax_wavlm.errors import UserError
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import Params
from flax_wavlm.models.wavlm import attention_spec
from flax_wavlm.ops.attention.choice import describe
from flax_wavlm.recognition.evaluate import EvalStep, Evaluation, evaluate, make_eval_step
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.recognition.task import Scoring
from flax_wavlm.training.config import OptimSettings, TrainConfig
from flax_wavlm.training.optimizer import (
    adamw,
    constant_schedule,
    cosine_schedule,
    linear_schedule,
    tri_stage_schedule,
)
from flax_wavlm.training.rates import rate_multipliers, rates_by_group
from flax_wavlm.training.speech import Speech, prepare_speech
from flax_wavlm.training.splits import load_splits
from flax_wavlm.training.start import StartingPoint, new_state, open_starting_point, state_template
from flax_wavlm.training.state import TrainState
from flax_wavlm.training.step import StepPrograms, jit_encode, jit_train_step, make_train_step

log = logging.getLogger(__name__)


class Programs(NamedTuple):
    """What computes a run."""

    rates: Callable[[int], dict[str, float]]  # of an update, by the number of those before it
    template: TrainState  # shapes, types and shardings
    train_step: StepPrograms
    new_state: Callable[[], TrainState]  # the state before the first step


class Parts(NamedTuple):
    """What the loop of a run works with."""

    mesh: Mesh
    origin: StartingPoint
    speech: Speech
    attention: str  # which implementation runs, in words
    programs: Programs
    eval_step: EvalStep
    evaluate: Callable[[Params, ClipBatches], Evaluation]  # over a whole split


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
        corpus=config.data.corpus,
    )
    speech = prepare_speech(
        splits,
        origin,
        config.data,
        config.train,
        cache=config.cache_folder(),
        seed=config.seed,
        rows_multiple=mesh.size * config.train.accumulation,
    )
    origin = origin.judged_by(_best_by(config.train.best_by, origin.task.scoring, speech))
    batches, task = speech.train, origin.task
    frame_counts = {int(origin.config.frame_count(samples)) for samples in batches.buckets}
    attention = describe(attention_spec(origin.config), frame_counts)

    programs = make_programs(config, origin, mesh, len(batches))
    eval_step = make_eval_step(task, origin.config, mesh)

    def evaluate_on(params: Params, clips: ClipBatches) -> Evaluation:
        result = evaluate(task, eval_step, params, clips, mesh, field="train.eval_batch_size")
        if not math.isfinite(loss := result.figures["loss"]):
            raise UserError(f"evaluated, the loss is {loss}, expected a number")
        return result

    return Parts(
        mesh=mesh,
        origin=origin,
        speech=speech,
        attention=attention,
        programs=programs,
        eval_step=eval_step,
        evaluate=evaluate_on,
    )


def make_programs(config: TrainConfig, origin: StartingPoint, mesh: Mesh, steps: int) -> Programs:
    """The optimizer, the step and the form of the state of a run of so many steps. Nothing is compiled."""
    schedule = make_schedule(config.optim, steps)
    optimizer = make_optimizer(
        config.optim,
        schedule,
        head_first_steps=config.train.head_first_steps,
        norm_last=origin.config.do_stable_layer_norm,
    )
    freeze = config.model.freeze_feature_encoder
    template = state_template(origin, optimizer, mesh, freeze=freeze)
    train_step = make_train_step(
        structure(origin.config, model=origin.task.head)[0],
        optimizer,
        origin.task.loss,
        seed=config.seed,
        accumulation=config.train.accumulation,
    )

    def rates(updates: int) -> dict[str, float]:
        return rates_by_group(
            float(schedule(updates)),
            updates,
            head=_head_multiplier(config.optim),
            layer_decay=config.optim.layer_decay,
            layers=origin.config.num_hidden_layers,
            head_first_steps=config.train.head_first_steps,
        )

    encode = jit_encode(origin.config, mesh, accumulation=config.train.accumulation) if freeze else None
    return Programs(
        rates=rates,
        template=template,
        train_step=jit_train_step(train_step, mesh, template, encode),
        new_state=lambda: new_state(origin, optimizer, template, seed=config.seed, freeze=freeze),
    )


def _best_by(best_by: str, scoring: Scoring, speech: Speech) -> str:
    """The score that chooses: `train.best_by`, or for "auto" the task's own.

    A WER gives way to the CER where most texts of train are a single word.
    """
    if best_by != "auto":
        return best_by
    if scoring.best_by != "wer":
        return scoring.best_by
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


def make_schedule(optim: OptimSettings, steps: int) -> optax.Schedule:
    """The learning rate of a run of so many steps. UserError where warm-up and hold leave no step over."""
    before = optim.warmup_steps + optim.hold_steps
    if before >= steps:
        held = optim.warmup_steps < steps
        raise UserError(
            field="optim.hold_steps" if held else "optim.warmup_steps",
            found=optim.hold_steps if held else optim.warmup_steps,
            expected=f"fewer than the {steps} steps of the run"
            + (f", together with the {optim.warmup_steps} of optim.warmup_steps" if held else ""),
        )
    peak, warmup_steps = optim.learning_rate, optim.warmup_steps
    match optim.schedule:
        case "linear":
            return linear_schedule(peak, warmup_steps, steps)
        case "cosine":
            return cosine_schedule(peak, warmup_steps, steps)
        case "constant":
            return constant_schedule(peak, warmup_steps)
    return tri_stage_schedule(
        peak,
        warmup_steps,
        steps,
        hold_steps=optim.hold_steps,
        initial_share=optim.initial_share,
        final_share=optim.final_share,
    )


def _head_multiplier(optim: OptimSettings) -> float:
    return (optim.head_learning_rate or optim.learning_rate) / optim.learning_rate


def make_optimizer(
    optim: OptimSettings, schedule: optax.Schedule, *, head_first_steps: int = 0, norm_last: bool
) -> optax.GradientTransformation:
    """AdamW as the settings say. `norm_last`: the encoder's norm comes after its layers."""
    head = _head_multiplier(optim)
    multipliers = None
    if (head, optim.layer_decay) != (1.0, 1.0):
        multipliers = functools.partial(
            rate_multipliers, head=head, layer_decay=optim.layer_decay, norm_last=norm_last
        )
    if head_first_steps > 0:
        log.info("the first %d steps train the head alone", head_first_steps)
    return adamw(
        schedule,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        multipliers=multipliers,
        head_first_steps=head_first_steps,
    )

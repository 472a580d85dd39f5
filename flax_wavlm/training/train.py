"""A whole run: corpus and checkpoint in, a fine-tuned model evaluated, kept and exported out."""

from __future__ import annotations

import functools
import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_wavlm.data.audio import SAMPLE_RATE
from flax_wavlm.data.batches import Batches, Features, eval_batches, train_iterator
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.clips import usable_clips
from flax_wavlm.data.preprocessor import INPUTS
from flax_wavlm.errors import Preempted, UserError
from flax_wavlm.files import writing
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import Params, combine
from flax_wavlm.models.wavlm import attention_spec
from flax_wavlm.ops.attention.choice import describe
from flax_wavlm.parallel import processes, sharding
from flax_wavlm.recognition.evaluate import evaluate, figures_line, make_eval_step, write_predictions
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.export import export_run
from flax_wavlm.training.features import cached_features
from flax_wavlm.training.journal import Journal
from flax_wavlm.training.monitor import StepMonitor, train_line
from flax_wavlm.training.optimizer import adamw, linear_schedule
from flax_wavlm.training.report.curves import curves
from flax_wavlm.training.report.metrics import evaluations, read_metrics, results_table
from flax_wavlm.training.start import load_split, new_state, open_starting_point, state_template
from flax_wavlm.training.state import zero_totals
from flax_wavlm.training.step import jit_encode, jit_train_step, make_train_step
from flax_wavlm.training.workdir import fingerprint, lock_workdir

log = logging.getLogger(__name__)

T = TypeVar("T")

STEP_INPUTS = ("features", *INPUTS, "labels", "label_lengths", "valid")


class TrainResult(NamedTuple):
    """What a run leaves: its folder, the exported model's folder, and the evaluation of that model."""

    workdir: Path
    export: Path
    best: dict[str, Any]


def train(config: TrainConfig) -> TrainResult:
    """Runs the configuration to its end, from the newest whole checkpoint in its workdir if there is one.

    Evaluates and saves every `train.eval_every` steps and at the end, and exports the best checkpoint.
    What it writes into the workdir is described in the README.

    Raises:
        UserError: before any work is done where the configuration, corpus or checkpoint cannot be used;
            later where a loss or gradient is not finite, or the workdir cannot be written any more.
            Checkpoints written until then stay.
        Preempted: the process got SIGTERM (any process of the run did), and the run was saved.
    """
    config.check()
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size("train.batch_size", config.train.batch_size, mesh, config.train.accumulation)
    sharding.check_batch_size("train.eval_batch_size", config.train.eval_batch_size, mesh)
    log.info("%d device(s): %s", len(jax.devices()), jax.devices()[0].device_kind)
    workdir = Path(config.workdir)
    with processes.StopRequest() as stop, lock_workdir(workdir, config):
        _cache_compilations(workdir)
        _fit(config, mesh, workdir, stop)
        return _finish(workdir)


def _fit(config: TrainConfig, mesh: Mesh, workdir: Path, stop: processes.StopRequest) -> None:
    train_speech, test_speech = load_split(config.data, "train"), load_split(config.data, "test")
    origin = open_starting_point(config, [utterance.text for utterance in train_speech + test_speech])
    decode = functools.partial(
        usable_clips,
        tokenizer=origin.tokenizer,
        frame_count=origin.config.frame_count,
        cache=config.cache_folder(),
    )
    if jax.process_index() > 0:  # let the first process fill the cache
        multihost_utils.sync_global_devices("cache")
    train_clips, _ = decode(train_speech, name="train", max_seconds=config.data.train_max_seconds or None)
    test_clips, _ = decode(test_speech, name="test", drop_infeasible=False)
    if jax.process_index() == 0:
        multihost_utils.sync_global_devices("cache")
    batches = Batches(
        train_clips,
        config.train.batch_size,
        choose_buckets(
            [len(clip.samples) for clip in train_clips],
            config.data.buckets,
            batch_size=config.train.batch_size,
            min_batches=4,
            frame_count=origin.config.frame_count,
        ),
        steps=config.train.steps or config.train.epochs * -(-len(train_clips) // config.train.batch_size),
        seed=config.seed,
        do_normalize=origin.preprocessor.do_normalize,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    total = len(batches)
    if config.optim.warmup_steps >= total:
        raise UserError(
            f"--config.optim.warmup_steps is {config.optim.warmup_steps}, expected fewer than the {total} "
            "steps of the run"
        )
    log.info("%d steps, %d an epoch", total, batches.steps_per_epoch)

    schedule = linear_schedule(config.optim.learning_rate, config.optim.warmup_steps, total)
    optimizer = adamw(
        schedule,
        beta1=config.optim.beta1,
        beta2=config.optim.beta2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
    )
    frame_counts = {int(origin.config.frame_count(samples)) for samples in batches.buckets}
    log.info("%s", describe(attention_spec(origin.config), frame_counts))

    template = state_template(config, origin, optimizer, mesh)
    encode = None
    if config.model.freeze_feature_encoder:
        encode = jit_encode(origin.config, mesh, accumulation=config.train.accumulation)
    blank_id, reduction = origin.tokenizer.blank_id, config.train.ctc_loss_reduction
    train_step = jit_train_step(
        make_train_step(
            structure(origin.config)[0],
            optimizer,
            blank_id=blank_id,
            reduction=reduction,
            seed=config.seed,
            accumulation=config.train.accumulation,
        ),
        mesh,
        template,
        encode,
    )
    eval_step = make_eval_step(origin.config, mesh, blank_id=blank_id, reduction=reduction)
    eval_buckets = choose_buckets(
        [len(clip.samples) for clip in test_clips],
        config.data.buckets,
        batch_size=config.train.eval_batch_size,
        frame_count=origin.config.frame_count,
    )
    journal = Journal(workdir, batches.steps_per_epoch)

    def evaluate_now(step: int, params: Params) -> None:
        eval_input = eval_batches(
            test_clips,
            config.train.eval_batch_size,
            eval_buckets,
            do_normalize=origin.preprocessor.do_normalize,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        figures, predictions = evaluate(eval_step, params, eval_input, test_clips, origin.tokenizer, mesh)
        if not math.isfinite(figures["loss"]):
            raise UserError(f"evaluated at step {step}, the loss is {figures['loss']}, expected a number")
        if jax.process_index() == 0:
            write_predictions(workdir / "predictions" / f"{step}.jsonl", predictions)
        journal.write(step, "test", figures)
        log.info("step %d/%d  test: %s", step, total, figures_line(figures))

    def due(step: int, every: int) -> bool:
        return step == total or (every > 0 and step % every == 0)

    iterator = train_iterator(batches, threads=config.data.threads, prefetch=config.data.prefetch)
    data = {"train": fingerprint(train_clips), "test": fingerprint(test_clips)}
    with Checkpoints(workdir / "checkpoints", journal.scores) as checkpoints:
        start = 0
        freeze = config.model.freeze_feature_encoder
        if restored := checkpoints.restore_newest(template, freeze_feature_encoder=freeze):
            start, state, position = restored
            if position["data"] != data:
                raise UserError(
                    f"{config.data.path or config.data.corpus}: not the clips that {workdir} was begun with "
                    f"(found {data}, expected {position['data']}). Bring them back, or give another --workdir"
                )
            iterator.set_state(position["iterator"])
            log.info("resumed from step %d", start)
        else:
            state = new_state(config, origin, optimizer, template)
        journal.go_back_to(start)
        if config.data.cache_features:
            folder = config.cache_folder()
            assert folder is not None  # `TrainConfig.check` saw to both
            assert encode is not None
            arrays = cached_features(origin.config, encode, state.frozen, batches, mesh, folder)
            batches.features = Features(arrays, origin.config.frame_count)
        if start and due(start, config.train.eval_every) and start not in journal.scores:
            evaluate_now(start, combine(state.params, state.frozen))  # the run ended before it could

        watch = StepMonitor(journal, batches, config.train.skip_nonfinite, state)
        compiled: set[int] = set()
        for step in range(start + 1, total + 1):
            batch = watch.wait_for(iterator, state)
            batch = {name: batch[name] for name in STEP_INPUTS if name in batch}
            samples = batches.samples(step - 1)
            if samples not in compiled:
                log.info("compiling the step for clips of up to %.2f s ...", samples / SAMPLE_RATE)
            began = time.perf_counter()
            state = train_step(state, sharding.put_batch(mesh, batch))
            if samples not in compiled:
                compiled.add(samples)
                log.info("... took %.1f s", time.perf_counter() - began)
                watch.pause(began)

            if due(step, config.train.log_every):
                line = watch.read(state)
                line["learning_rate"] = float(schedule(step - 1 - line["skipped"]))
                journal.write(step, "train", line)
                log.info("step %d/%d  %s", step, total, train_line(line))
                state = state._replace(totals=jax.device_put(zero_totals(), sharding.replicated(mesh)))

            stopping = stop.reached(step)
            evaluating = due(step, config.train.eval_every)
            if evaluating or stopping or due(step, config.train.save_every):
                began = time.perf_counter()
                watch.check(state)  # stops here rather than save after what is not finite
                position = {"iterator": iterator.get_state(), "data": data}
                checkpoints.save(state, position=position, config=config.to_dict())
                if stopping:
                    checkpoints.wait()
                    raise Preempted(
                        f"asked to stop: saved at step {step} of {total}; the same command resumes"
                    )
                if evaluating:
                    evaluate_now(step, combine(state.params, state.frozen))
                watch.pause(began)


def _finish(workdir: Path) -> TrainResult:
    """Exports the best checkpoint, draws the curves, and shows the table."""
    exported = export_run(workdir, workdir / "export", "best")
    metrics = read_metrics(workdir / "metrics.jsonl")
    if jax.process_index() == 0:
        with writing(workdir / "curves.svg"):
            curves(metrics, workdir / "curves.svg")
    rows = evaluations(metrics)
    log.info("\n%s\n\nThe best, step %d, is in %s", results_table(rows), exported, workdir / "export")
    best = next(row for row in rows if row["step"] == exported)
    return TrainResult(workdir, workdir / "export", dict(best))


def _cache_compilations(workdir: Path) -> None:
    """Has jax keep what it compiles beside the workdir, for other starts and runs, unless told otherwise."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute().parent / "compilation-cache"))

"""A whole run: corpus and checkpoint in, a fine-tuned model evaluated, kept and exported out."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_wavlm import attention, corpora, port, processes, report, sharding
from flax_wavlm.audio import SAMPLE_RATE
from flax_wavlm.batches import (
    Batches,
    Features,
    choose_buckets,
    describe_skipped,
    eval_batches,
    train_iterator,
    usable_clips,
)
from flax_wavlm.checkpoint import Checkpoints
from flax_wavlm.config import WavLMConfig
from flax_wavlm.errors import Preempted, UserError
from flax_wavlm.evaluate import evaluate, figures_line, make_eval_step, write_predictions
from flax_wavlm.export import export_run
from flax_wavlm.features import cached_features
from flax_wavlm.model import Params, WavLMForCTC, split, structure
from flax_wavlm.optim import adamw, combine, linear_schedule, partition
from flax_wavlm.step import (
    TrainState,
    init_state,
    jit_encode,
    jit_train_step,
    make_train_step,
    skipped_steps,
    zero_totals,
)
from flax_wavlm.text import INPUTS, CTCTokenizer, Preprocessor, normalise
from flax_wavlm.train_config import DataSettings, TrainConfig
from flax_wavlm.workdir import Journal, claimed, fingerprint, write_whole, writing

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
    with processes.StopRequest() as stop, claimed(workdir, config):
        _cache_compilations(workdir)
        _fit(config, mesh, workdir, stop)
        return _finish(workdir)


def _fit(config: TrainConfig, mesh: Mesh, workdir: Path, stop: processes.StopRequest) -> None:
    train_speech, test_speech = _load(config.data, "train"), _load(config.data, "test")
    origin = _open_origin(config, [utterance.text for utterance in train_speech + test_speech])
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
    log.info("%s", attention.describe(origin.config, frame_counts))

    template = _state_template(config, origin, optimizer, mesh)
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
            state = _new_state(config, origin, optimizer, template)
        journal.go_back_to(start)
        if config.data.cache_features:
            folder = config.cache_folder()
            assert folder is not None  # `TrainConfig.check` saw to both
            assert encode is not None
            arrays = cached_features(origin.config, encode, state.frozen, batches, mesh, folder)
            batches.features = Features(arrays, origin.config.frame_count)
        if start and due(start, config.train.eval_every) and start not in journal.scores:
            evaluate_now(start, combine(state.params, state.frozen))  # the run ended before it could

        watch = _Watch(journal, batches, config.train.skip_nonfinite, state)
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
                log.info("step %d/%d  %s", step, total, _train_line(line))
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
    metrics = report.read_metrics(workdir / "metrics.jsonl")
    if jax.process_index() == 0:
        with writing(workdir / "curves.svg"):
            report.curves(metrics, workdir / "curves.svg")
    rows = report.evaluations(metrics)
    log.info("\n%s\n\nThe best, step %d, is in %s", report.results_table(rows), exported, workdir / "export")
    best = next(row for row in rows if row["step"] == exported)
    return TrainResult(workdir, workdir / "export", dict(best))


def _cache_compilations(workdir: Path) -> None:
    """Has jax keep what it compiles beside the workdir, for other starts and runs, unless told otherwise."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute().parent / "compilation-cache"))


# --- What the run starts from -------------------------------------------------------------------------------


class _Origin(NamedTuple):
    """Where the model comes from, and how it reads and writes."""

    checkpoint: port.Checkpoint | None  # None: random weights
    config: WavLMConfig
    fresh_head: bool
    tokenizer: CTCTokenizer
    preprocessor: Preprocessor


def _load(data: DataSettings, split: str) -> list[corpora.Utterance]:
    """A split's utterances; what the corpus itself shows to be unusable is counted and named."""
    if data.corpus == "synthetic" and jax.process_index() == 0:
        from flax_wavlm.synthetic import make_corpus

        settings = data.synthetic
        make_corpus(
            Path(data.path),
            seed=settings.seed,
            train_clips=settings.train_clips,
            test_clips=settings.test_clips,
        )
    multihost_utils.sync_global_devices("corpus")
    utterances, skipped = corpora.load_corpus(
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


def _open_origin(config: TrainConfig, texts: list[str]) -> _Origin:
    """Opens the checkpoint (or takes `model.config`), and settles tokenizer, preprocessor and head width."""
    checkpoint = port.open_checkpoint(config.model.checkpoint) if config.model.checkpoint else None
    model_config = checkpoint.config if checkpoint else config.model.config
    assert model_config is not None  # `TrainConfig.check` saw to it
    tokenizer, fresh_head = _settle_head(config, checkpoint, texts)
    preprocessor = _settle_preprocessor(checkpoint, model_config)
    if model_config.feat_extract_norm == "group":
        log.warning(
            "a group-norm model (base): as in transformers, its training logits depend on the padding of the "
            "batch; evaluation treats each clip as if alone"
        )
    model_config = model_config.replace(
        **config.model_overrides(),
        vocab_size=tokenizer.size,
        pad_token_id=tokenizer.blank_id,
        ctc_loss_reduction=config.train.ctc_loss_reduction,
        ctc_zero_infinity=True,
    )
    if jax.process_index() == 0:
        processor = Path(config.workdir) / "processor"
        with writing(processor):
            tokenizer.save(processor)
            preprocessor.save(processor)
            write_whole(processor / "config.json", json.dumps(model_config.to_hf(), indent=2) + "\n")
    return _Origin(checkpoint, model_config, fresh_head, tokenizer, preprocessor)


def _settle_head(
    config: TrainConfig, checkpoint: port.Checkpoint | None, texts: list[str]
) -> tuple[CTCTokenizer, bool]:
    """The tokenizer, and whether the CTC head is a new one: the two must mean the same by every output."""
    has_head = checkpoint is not None and checkpoint.has_head and not config.model.fresh_head
    if config.data.tokenizer:
        named: Path | str | None = config.data.tokenizer
    elif checkpoint is not None and has_head and (checkpoint.folder / "vocab.json").exists():
        named = checkpoint.folder
    else:
        named = None
    if named is None:
        if checkpoint is not None and has_head:
            log.warning(
                "%s: has a CTC head but no vocab.json that says what its outputs mean, so a new head "
                "is begun; to keep the head, name its tokenizer with --config.data.tokenizer",
                checkpoint.source,
            )
        tokenizer = CTCTokenizer.from_texts(normalise(text) for text in texts)
        log.info("a vocabulary of %d from the corpus's text", tokenizer.size)
        return tokenizer, True
    tokenizer = CTCTokenizer.from_pretrained(named)
    if checkpoint is not None and has_head and tokenizer.size != checkpoint.config.vocab_size:
        raise UserError(
            f"{named}: the tokenizer has {tokenizer.size} tokens, but the CTC head of {checkpoint.source} "
            f"has {checkpoint.config.vocab_size} outputs; give its own tokenizer, or start a new head with "
            "--config.model.fresh_head=true"
        )
    return tokenizer, not has_head


def _settle_preprocessor(checkpoint: port.Checkpoint | None, model_config: WavLMConfig) -> Preprocessor:
    """The checkpoint's own; else what its file says of normalisation; else normalised, as large is."""
    if checkpoint is not None and any(
        (checkpoint.folder / name).exists() for name in port.PREPROCESSOR_FILES
    ):
        return Preprocessor.from_pretrained(checkpoint.folder)
    said = checkpoint.do_normalize if checkpoint else None
    normalises = True if said is None else said
    if checkpoint is not None:
        log.warning("%s: no preprocessor_config.json; do_normalize = %s", checkpoint.source, normalises)
    return Preprocessor(normalises, return_attention_mask=model_config.feat_extract_norm == "layer")


def _state_template(
    config: TrainConfig, origin: _Origin, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The training state's shapes, types and shardings, without an array."""
    freeze = config.model.freeze_feature_encoder
    trained, frozen = partition(structure(origin.config)[1], freeze_feature_encoder=freeze)
    log.info(
        "%.1f million parameters, %.1f million of them trained",
        port.count_parameters(combine(trained, frozen)) / 1e6,
        port.count_parameters(trained) / 1e6,
    )
    shapes = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained, frozen)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.tree_sharding(mesh, shapes),
    )


def _new_state(
    config: TrainConfig, origin: _Origin, optimizer: optax.GradientTransformation, template: TrainState
) -> TrainState:
    """The state before the first step, every array made or put where the template says."""
    where = jax.tree.map(lambda x: x.sharding, template)
    params_where = combine(where.params, where.frozen)
    if origin.checkpoint is not None:

        def placement(path: tuple[str, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
            node: Any = params_where
            for key in path:
                node = node[key]
            return node

        model = port.load(
            origin.checkpoint,
            overrides=dataclasses.asdict(origin.config),
            fresh_head=origin.fresh_head,
            placement=placement,
            seed=config.seed,
        )
        params = split(model)[1]
        del model
    else:

        def make() -> Params:
            return split(WavLMForCTC(origin.config, nnx.Rngs(config.seed)))[1]

        params = jax.jit(make, out_shardings=params_where)()
    trained, frozen = partition(params, freeze_feature_encoder=config.model.freeze_feature_encoder)
    del params
    init = functools.partial(init_state, optimizer=optimizer)
    return jax.jit(init, out_shardings=where, donate_argnums=(0, 1))(trained, frozen)


# --- Figures ------------------------------------------------------------------------------------------------


class _Watch:
    """Reads a run's figures off its state: means since the last log line, and steps that were not finite."""

    def __init__(self, journal: Journal, batches: Batches, skips_allowed: int, state: TrainState):
        self.journal, self.batches, self.skips_allowed = journal, batches, skips_allowed
        self.skipped = int(state.skipped["count"])
        self.samples_before = float(state.totals["samples"])  # of a process that was stopped
        self.clock = time.perf_counter()
        self.waited = 0.0

    def wait_for(self, batches: Iterator[T], state: TrainState) -> T:
        """The next batch; the time that the devices had nothing to do meanwhile is counted."""
        asked = time.perf_counter()
        batch = next(batches)
        if state.step.is_ready():  # type: ignore[attr-defined]  # jax.Array does not declare it
            self.waited += time.perf_counter() - asked
        return batch

    def pause(self, since: float) -> None:
        """Takes the time since then out of the rate, which is that of training."""
        self.clock += time.perf_counter() - since

    def read(self, state: TrainState) -> dict[str, Any]:
        """The figures of a train line, and a new beginning for the next; raises as `check` does."""
        self.check(state)
        totals = {name: float(value) for name, value in jax.device_get(state.totals).items()}
        seconds = (totals["samples"] - self.samples_before) / SAMPLE_RATE
        elapsed = time.perf_counter() - self.clock
        wait = self.waited / elapsed
        self.clock, self.samples_before, self.waited = time.perf_counter(), 0.0, 0.0
        steps = totals["steps"]
        return {
            "loss": totals["loss"] / steps if steps else None,
            "grad_norm": totals["grad_norm"] / steps if steps else None,
            "clips": int(totals["clips"]),
            "infeasible": int(totals["infeasible"]),
            "skipped": self.skipped,
            "audio_seconds_per_second": seconds / elapsed,
            "data_wait": wait,  # share of the time in which the devices waited for a batch
        }

    def check(self, state: TrainState) -> None:
        """Notes new steps that were not finite; UserError where they are more than the run may skip."""
        steps = skipped_steps(state, since=self.skipped)
        for step in steps:
            self.journal.note_nonfinite(step, self.batches.clip_ids(step - 1))
        self.skipped = int(state.skipped["count"])
        if steps and self.skipped > self.skips_allowed:
            step = steps[-1] if self.skips_allowed else steps[0]
            ids = self.batches.clip_ids(step - 1)
            raise UserError(
                f"at step {step} the loss or its gradient was not finite, for the batch of the clips "
                f"{', '.join(ids[:4])}{', ...' if len(ids) > 4 else ''} (all in {self.journal.nonfinite}). "
                "Nothing of it was kept or saved. Look at these clips, lower optim.learning_rate, or let the "
                f"run pass over some steps with --config.train.skip_nonfinite={self.skipped}"
            )


def _train_line(line: Mapping[str, float]) -> str:
    return (
        (f"loss {line['loss']:.4f}  gradient {line['grad_norm']:.2f}  " if line["loss"] is not None else "")
        + f"rate {line['learning_rate']:.2e}  {line['audio_seconds_per_second']:.0f} audio seconds a second"
        + (f"  {line['skipped']} steps skipped" if line["skipped"] else "")
    )

"""A whole run: corpus and checkpoint in, a fine-tuned model evaluated, kept and exported out."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_wavlm import corpora, port, report, sharding
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
from flax_wavlm.errors import UserError
from flax_wavlm.evaluate import Evaluation, evaluate, figures_line, make_eval_step, write_predictions
from flax_wavlm.export import export_run
from flax_wavlm.features import cached_features
from flax_wavlm.files import read_json_object
from flax_wavlm.model import Params, WavLMForCTC, split, structure
from flax_wavlm.optim import adamw, combine, linear_schedule, partition
from flax_wavlm.step import TrainState, init_state, jit_train_step, make_train_step, zero_totals
from flax_wavlm.text import INPUTS, CTCTokenizer, Preprocessor, normalise
from flax_wavlm.train_config import DataSettings, TrainConfig, flatten

log = logging.getLogger(__name__)

# Fields that may change between a run and its resumption: they do not change what is computed.
FREE_TO_CHANGE = (
    *("workdir", "name", "mesh.data", "mesh.fsdp"),
    *("data.path", "data.cache", "data.threads", "data.prefetch"),
)
STEP_INPUTS = ("features", *INPUTS, "labels", "label_lengths", "valid")


class TrainResult(NamedTuple):
    """What a run leaves: its folder, the exported model's folder, and the evaluation of that model."""

    workdir: Path
    export: Path
    best: dict[str, Any]


def train(config: TrainConfig) -> TrainResult:
    """Runs the configuration to its end, from the newest checkpoint in its workdir if there is one.

    Evaluates and saves every `train.eval_every` steps and at the end, and exports the best checkpoint.
    What it writes into the workdir is described in the README.

    Raises:
        UserError: before any work is done where the configuration, corpus or checkpoint cannot be used;
            later where the loss is not finite. Checkpoints written until then stay.
    """
    config.check()
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size("train.batch_size", config.train.batch_size, mesh, config.train.accumulation)
    sharding.check_batch_size("train.eval_batch_size", config.train.eval_batch_size, mesh)
    log.info("%d device(s): %s", len(jax.devices()), jax.devices()[0].device_kind)
    workdir = Path(config.workdir)
    _claim(workdir, config)

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
    template = _state_template(config, origin, optimizer, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints")
    iterator = train_iterator(batches, threads=config.data.threads, prefetch=config.data.prefetch)
    start = checkpoints.latest_step() or 0
    if start:
        freeze = config.model.freeze_feature_encoder
        state, position = checkpoints.restore(start, template, freeze_feature_encoder=freeze)
        iterator.set_state(position)
        log.info("resumed from step %d", start)
    else:
        state = _new_state(config, origin, optimizer, template)
    if config.data.cache_features:
        folder = config.cache_folder()
        assert folder is not None  # `TrainConfig.check` saw to it
        encoder = state.frozen["wavlm"]["feature_encoder"]
        arrays = cached_features(
            origin.config, encoder, batches, mesh, folder, accumulation=config.train.accumulation
        )
        batches.features = Features(arrays, origin.config.frame_count)
    journal = _Journal(workdir / "metrics.jsonl", batches.steps_per_epoch, resumed_at=start)

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
        state,
    )
    eval_step = make_eval_step(origin.config, mesh, blank_id=blank_id, reduction=reduction)
    eval_buckets = choose_buckets(
        [len(clip.samples) for clip in test_clips],
        config.data.buckets,
        batch_size=config.train.eval_batch_size,
        frame_count=origin.config.frame_count,
    )

    def evaluate_now(params: Params) -> Evaluation:
        eval_input = eval_batches(
            test_clips,
            config.train.eval_batch_size,
            eval_buckets,
            do_normalize=origin.preprocessor.do_normalize,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return evaluate(eval_step, params, eval_input, test_clips, origin.tokenizer, mesh)

    log.info("compiling: the first step at each of %d clip lengths takes longer", len(batches.buckets))
    clock = time.perf_counter()
    for step in range(start + 1, total + 1):
        batch = next(iterator)
        state = train_step(
            state, sharding.put_batch(mesh, {name: batch[name] for name in STEP_INPUTS if name in batch})
        )

        if step % config.train.log_every == 0 or step == total:
            line = _means(state, checkpoints)
            line["learning_rate"] = float(schedule(step - 1))
            line["audio_seconds_per_second"] = line.pop("audio_seconds") / (time.perf_counter() - clock)
            journal.write(step, "train", line)
            log.info("step %d/%d  %s", step, total, _train_line(line))
            state = state._replace(totals=jax.device_put(zero_totals(), sharding.replicated(mesh)))
            clock = time.perf_counter()

        evaluates = step % config.train.eval_every == 0 or step == total
        if evaluates or (config.train.save_every and step % config.train.save_every == 0):
            _means(state, checkpoints)  # stops here rather than save what is not finite
            paused = time.perf_counter()
            scores = None
            if evaluates:
                result = evaluate_now(combine(state.params, state.frozen))
                scores = {"wer": result.figures["wer"]}
                journal.write(step, "test", result.figures)
                if jax.process_index() == 0:
                    write_predictions(workdir / "predictions" / f"{step}.jsonl", result.predictions)
                log.info("step %d/%d  test: %s", step, total, figures_line(result.figures))
            checkpoints.save(state, position=iterator.get_state(), config=config.to_dict(), metrics=scores)
            clock += time.perf_counter() - paused  # the rate is that of training
    checkpoints.close()

    exported = export_run(workdir, workdir / "export", "best")
    metrics = report.read_metrics(workdir / "metrics.jsonl")
    if jax.process_index() == 0:
        report.curves(metrics, workdir / "curves.svg")
    rows = report.evaluations(metrics)
    log.info("\n%s\n\nThe best, step %d, is in %s", report.results_table(rows), exported, workdir / "export")
    best = next(row for row in rows if row["step"] == exported)
    return TrainResult(workdir, workdir / "export", dict(best))


# --- The workdir --------------------------------------------------------------------------------------------


def _claim(workdir: Path, config: TrainConfig) -> None:
    """Makes the workdir this configuration's, or raises UserError where it is another's."""
    resolved = config.to_dict()
    path = workdir / "config.json"
    if path.exists() and any((workdir / "checkpoints").glob("[0-9]*")):  # else there is nothing to lose
        before = flatten(read_json_object(path, "the run's configuration"))
        now = flatten(json.loads(json.dumps(resolved)))
        different = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(before | now)
            if before.get(name) != now.get(name) and name not in FREE_TO_CHANGE
        ]
        if different:
            raise UserError(
                f"{workdir}: belongs to a run with another configuration: {'; '.join(different)}. "
                "Give another --workdir, or the same configuration to resume"
            )
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_whole(path, json.dumps(resolved, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written: {error.strerror}; give another --workdir") from None


def _write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is never seen half-written."""
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


class _Journal:
    """metrics.jsonl: one JSON object a line.

    Lines after the step that a run resumes at are taken back, the half line of a killed run among them.
    """

    def __init__(self, path: Path, steps_per_epoch: int, resumed_at: int):
        self.path, self.steps_per_epoch = path, steps_per_epoch
        if jax.process_index() == 0:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
            _write_whole(path, "".join(line for line in lines if line.endswith("\n")))
            rows = report.read_metrics(path)
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= resumed_at]
            _write_whole(path, "".join(kept))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if jax.process_index() == 0:
            row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "split": split, **values}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


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
        tokenizer.save(processor)
        preprocessor.save(processor)
        _write_whole(processor / "config.json", json.dumps(model_config.to_hf(), indent=2) + "\n")
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


def _means(state: TrainState, checkpoints: Checkpoints) -> dict[str, float]:
    """Means over the steps since the last log line; UserError where they are not finite."""
    totals = {name: float(value) for name, value in jax.device_get(state.totals).items()}
    steps = max(totals["steps"], 1.0)
    means = {
        "loss": totals["loss"] / steps,
        "grad_norm": totals["grad_norm"] / steps,
        "clips": int(totals["clips"]),
        "infeasible": int(totals["infeasible"]),
        "audio_seconds": totals["samples"] / SAMPLE_RATE,
    }
    if not (math.isfinite(means["loss"]) and math.isfinite(means["grad_norm"])):
        kept = checkpoints.latest_step()
        raise UserError(
            f"at or shortly before step {int(state.step)} loss or gradient stopped being finite (mean loss "
            f"{means['loss']}, gradient norm {means['grad_norm']}). The newest checkpoint is "
            f"{'none' if kept is None else kept}; lower optim.learning_rate or look at the data"
        )
    return means


def _train_line(line: Mapping[str, float]) -> str:
    return (
        f"loss {line['loss']:.4f}  gradient {line['grad_norm']:.2f}  rate {line['learning_rate']:.2e}  "
        f"{line['audio_seconds_per_second']:.0f} audio seconds a second"
    )

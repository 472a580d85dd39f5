"""A whole run: corpus and pretrained weights in; a fine-tuned model evaluated, kept and exported out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_wavlm.data.batches import Features, train_iterator
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import Preempted, UserError
from flax_wavlm.files import writing
from flax_wavlm.models.parameters import combine, split
from flax_wavlm.parallel import processes, sharding
from flax_wavlm.porting.extras import TrainingSeconds
from flax_wavlm.porting.load import load_model
from flax_wavlm.progress import ON_THE_BAR, Bar, bar
from flax_wavlm.recognition.evaluate import collapse, figures_line, write_predictions
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.recognition.marked import samples
from flax_wavlm.recognition.task import TEST, Row, Scoring, choosing
from flax_wavlm.training.aligner import fit_exported
from flax_wavlm.training.average import evaluate_average
from flax_wavlm.training.calibration import calibrate
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.dry_run import foretell, warnings_kept
from flax_wavlm.training.export import Exported, export_run, write_model_card
from flax_wavlm.training.features import cached_features
from flax_wavlm.training.journal import Journal
from flax_wavlm.training.memory import out_of_memory_explained
from flax_wavlm.training.monitor import StepMonitor
from flax_wavlm.training.prepare import Parts, prepare
from flax_wavlm.training.report.banner import banner, device_line
from flax_wavlm.training.report.curves import curves
from flax_wavlm.training.report.metrics import evaluation_of, final_test, read_metrics, results_table
from flax_wavlm.training.report.tensorboard import Events, require_tensorboard
from flax_wavlm.training.state import TrainState, zero_totals
from flax_wavlm.training.step import STEP_INPUTS
from flax_wavlm.training.stopping import steps_to_make
from flax_wavlm.training.workdir import as_begun, lock_workdir

log = logging.getLogger(__name__)


class TrainResult(NamedTuple):
    """What a run leaves.

    Attributes:
        workdir: its folder.
        export: the exported model's folder.
        best: the line of metrics.jsonl that chose that model.
        test: the line of that model on test; None where the run has no test split of its own.
    """

    workdir: Path
    export: Path
    best: dict[str, Any]
    test: dict[str, Any] | None


def train(config: TrainConfig) -> TrainResult:
    """Runs the configuration to its end, from the newest whole checkpoint in its workdir if there is one.

    Evaluates on dev and saves every `train.eval_every` steps and at the end. Exports the best checkpoint, and
    evaluates that model on test. The README describes what it writes into the workdir.

    Raises:
        UserError: before any work is done where the configuration, corpus or checkpoint cannot be used;
            later where a loss or gradient is not finite, or the workdir cannot be written any more.
            Checkpoints written until then stay.
        Preempted: the process got SIGTERM (any process of the run did), and the run was saved.
    """
    config, mesh = _checked(config)
    workdir = Path(config.workdir)
    with processes.StopRequest() as stop, lock_workdir(workdir, config):
        _keep_compilations(workdir)
        run = prepare(config, mesh)
        log.info("%s", banner(config, run.speech, run.programs.template, run.attention))
        if jax.process_index() == 0:
            seconds = TrainingSeconds.of(run.speech.train.lengths / SAMPLE_RATE)
            run.origin.save_processor(workdir / "processor", seconds)
        journal = _journal(config, run, workdir)
        with out_of_memory_explained(config, run):
            _fit(config, run, workdir, journal, stop)
        return _finish(config, run, workdir, journal)


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Reads and checks everything that `train` does, trains nothing, and foretells memory and time.

    Decoded audio and compiled programs are kept for the run. What is found is returned, logged, and written
    to `dry_run.json` in the workdir.

    Raises UserError as `train` does before its work, and where a checkpoint cannot be written.
    """
    config, mesh = _checked(config)
    _keep_compilations(Path(config.workdir))
    with warnings_kept() as warnings:
        run = prepare(config, mesh)
    return foretell(config, run, warnings)


def _checked(config: TrainConfig) -> tuple[TrainConfig, Mesh]:
    """The configuration as its run was begun, and the mesh. Raises UserError where they cannot be."""
    config.check()
    if config.train.tensorboard:
        require_tensorboard()
    config = as_begun(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    if not config.train.batch_seconds:
        sharding.check_batch_size(
            "train.batch_size", config.train.batch_size, mesh, config.train.accumulation
        )
    sharding.check_batch_size("train.eval_batch_size", config.train.eval_batch_size, mesh)
    log.info("%s", device_line(mesh, config.model))
    return config, mesh


def _journal(config: TrainConfig, run: Parts, workdir: Path) -> Journal:
    scoring, speech = run.origin.task.scoring, run.speech
    events = Events(workdir, scoring, speech.chooser) if config.train.tensorboard else None
    return Journal(workdir, speech.train.epochs, scoring, speech.chooser, events)


def _fit(
    config: TrainConfig, run: Parts, workdir: Path, journal: Journal, stop: processes.StopRequest
) -> None:
    """The loop: step, log, save, stop, evaluate."""
    batches, loop = run.speech.train, config.train
    total = len(batches)
    iterator = train_iterator(batches, threads=config.data.threads, prefetch=config.data.prefetch)
    fingerprints = run.speech.fingerprints()

    def due(step: int, every: int) -> bool:
        return step == total or (every > 0 and step % every == 0)

    kept = loop.average_last
    with (
        bar("step", total) as shown,
        Checkpoints(workdir / "checkpoints", journal.ranks, evaluated_kept=kept) as checkpoints,
    ):
        start, state = _resume_or_begin(config, run, checkpoints, iterator, fingerprints)
        journal.go_back_to(start)
        _keep_features(config, run, state)
        if start and due(start, loop.eval_every) and start not in journal.ranks:
            _evaluate(run, state, start, journal, workdir)  # the run ended before it could

        monitor = StepMonitor(journal, batches, loop.skip_nonfinite, state, shown)
        _note_score(shown, journal)
        for step in steps_to_make(start, total, journal, loop.early_stopping):
            batch = monitor.wait_for(iterator, state)
            inputs = {name: batch[name] for name in STEP_INPUTS if name in batch}
            with monitor.step_of_shape(batches.samples(step - 1), state):
                state = run.programs.train_step(state, sharding.put_batch(run.mesh, inputs))
            if due(step, loop.log_every):
                state = _log(run, state, step, monitor, journal)

            stopping, evaluating = stop.reached(step), due(step, loop.eval_every)
            if stopping or evaluating or due(step, loop.save_every):
                began = time.perf_counter()
                monitor.check(state)  # raises rather than save after what is not finite
                position = {"iterator": iterator.get_state(), "data": fingerprints}
                checkpoints.save(state, position=position, config=config.to_dict())
                if stopping:
                    checkpoints.wait()
                    raise Preempted(
                        f"asked to stop: saved at step {step} of {total}; the same command resumes"
                    )
                if evaluating:
                    _evaluate(run, state, step, journal, workdir)
                    _note_score(shown, journal)
                monitor.pause(began)


def _resume_or_begin(
    config: TrainConfig,
    run: Parts,
    checkpoints: Checkpoints,
    iterator: grain.DatasetIterator[Any],
    fingerprints: dict[str, str],
) -> tuple[int, TrainState]:
    """The last step that was made, and the state after it. The iterator is set to the same place."""
    freeze = config.model.freeze_feature_encoder
    restored = checkpoints.restore_newest(run.programs.template, freeze_feature_encoder=freeze)
    if restored is None:
        return 0, run.programs.new_state()
    begun_with = restored.position["data"]
    if begun_with != fingerprints:
        raise UserError(
            f"not the clips that {config.workdir} was begun with (found {fingerprints})",
            where=config.data.path or config.data.corpus,
            expected=str(begun_with),
            do="bring them back, or give another workdir",
        )
    iterator.set_state(restored.position["iterator"])
    log.info("resumed from step %d", restored.step)
    return restored.step, restored.state


def _keep_features(config: TrainConfig, run: Parts, state: TrainState) -> None:
    """Where `data.cache_features` asks for it, gives the training batches features in place of audio."""
    if not config.data.cache_features:
        return
    folder = config.cache_folder()
    assert folder is not None  # `TrainConfig.check` saw to both
    assert run.programs.train_step.encode is not None
    batches, model = run.speech.train, run.origin.config
    arrays = cached_features(model, run.programs.train_step.encode, state.frozen, batches, run.mesh, folder)
    batches.features = Features(arrays, model.frame_count)


def _log(run: Parts, state: TrainState, step: int, monitor: StepMonitor, journal: Journal) -> TrainState:
    """Writes a train line; returns the state with its totals at zero."""
    line = monitor.read(state)
    line |= run.programs.rates(step - 1 - line["skipped"])
    journal.write(step, "train", line)
    log.info("%s", monitor.describe(line), extra=ON_THE_BAR)
    # Made where they are to be. Arrays of one device that are put on one device of each of several processes
    # have no shards that orbax could write (jax 0.10).
    zeroed = jax.jit(zero_totals, out_shardings=sharding.replicated(run.mesh))
    return state._replace(totals=zeroed())


def _note_score(shown: Bar, journal: Journal) -> None:
    """Has the bar show the latest score of the split that chooses."""
    scoring = journal.scoring
    for row in choosing(journal.rows())[-1:]:
        title = scoring.titles.get(scoring.best_by, scoring.best_by)
        shown.note(score=f"{title} {row.get(scoring.best_by, math.nan):.3f}")


def _evaluate(run: Parts, state: TrainState, step: int, journal: Journal, workdir: Path) -> None:
    """Evaluates the state on the split that chooses; writes its predictions and its line."""
    scoring, chooser = run.origin.task.scoring, run.speech.chooser
    figures, predictions = run.evaluate(combine(state.params, state.frozen), run.speech.dev)
    if jax.process_index() == 0:
        write_predictions(workdir / "predictions" / f"{step}.jsonl", predictions)
    journal.write(step, chooser, {**figures, "best_by": scoring.best_by})
    log.info("step %d/%d  %s: %s", step, len(run.speech.train), chooser, figures_line(figures, scoring))
    for sample in samples(predictions):
        log.info("%s", sample)
    if step < len(run.speech.train):  # at the end they are drawn with what the run says of test
        _draw_curves(workdir, journal.rows(), scoring)
    if sameness := collapse(predictions):
        log.warning("at step %d %s", step, sameness)


def _finish(config: TrainConfig, run: Parts, workdir: Path, journal: Journal) -> TrainResult:
    """Exports the best checkpoint or average with an aligner, evaluates it on test, and shows the results."""
    scoring, export = run.origin.task.scoring, workdir / "export"
    evaluate_average(run, workdir, config.train.average_last, journal)
    multihost_utils.sync_global_devices("evaluated")  # the export reads what the first process wrote
    exported = export_run(workdir, export, "best", scoring=scoring)
    fit_exported(config, run, export)
    if run.speech.test is not None:
        journal.take_back_final(*exported)
        if not any(row["split"] == TEST for row in journal.rows()):
            _evaluate_exported(config, run, run.speech.test, exported, journal, workdir)
            write_model_card(workdir, export, exported, scoring=scoring)
    calibrate(config, run, export)
    metrics = read_metrics(workdir / "metrics.jsonl")
    _draw_curves(workdir, metrics, scoring)
    log.info("\n%s\n\nThe best, %s, is in %s", results_table(metrics, scoring), exported, export)
    best = evaluation_of(metrics, *exported)
    assert best is not None  # it is what chose
    return TrainResult(workdir, export, dict(best), final_test(metrics))


def _draw_curves(workdir: Path, rows: Sequence[Row], scoring: Scoring) -> None:
    if jax.process_index() == 0:
        with writing(workdir / "curves.svg"):
            curves(rows, workdir / "curves.svg", scoring)


def _evaluate_exported(
    config: TrainConfig, run: Parts, clips: ClipBatches, exported: Exported, journal: Journal, workdir: Path
) -> None:
    """Evaluates the exported files on test; writes their predictions and, when all is done, their line."""
    weights = load_model(
        workdir / "export",
        overrides=config.model_overrides(),
        placement=lambda path, shape: sharding.replicated(run.mesh),
    )
    figures, predictions = run.evaluate(split(weights)[1], clips)
    if jax.process_index() == 0:
        write_predictions(workdir / "predictions" / "test.jsonl", predictions)
    averaged = {"averaged": exported.averaged} if exported.averaged else {}
    journal.write(exported.step, TEST, figures | averaged)
    log.info("the exported model, %s  test: %s", exported, figures_line(figures, run.origin.task.scoring))


def _keep_compilations(workdir: Path) -> None:
    """Has jax keep what it compiles beside the workdir, for other starts and runs, unless told otherwise."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute().parent / "compilation-cache"))

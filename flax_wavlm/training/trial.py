"""A few steps, evaluations and a checkpoint of a run, timed. Their results are thrown away."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from flax_wavlm.files import writing
from flax_wavlm.models.parameters import combine
from flax_wavlm.parallel import sharding
from flax_wavlm.parallel.memory import on_cpu
from flax_wavlm.training.checkpoints import Checkpoints, saved_trees
from flax_wavlm.training.integrity import checksums
from flax_wavlm.training.prepare import Parts
from flax_wavlm.training.report.curves import curves
from flax_wavlm.training.step import STEP_INPUTS

TIMED_SECONDS = 3.0  # of calls of one program, and
TIMED_CALLS = 3  # at least so many


class Timed(NamedTuple):
    """What a program takes.

    Attributes:
        seconds: of a call; the median.
        start: seconds that the first call takes more: it loads what was compiled before.
    """

    seconds: float
    start: float


class Trial:
    """The state of a run that is tried out."""

    def __init__(self, run: Parts):
        self.run = run
        self.state = run.programs.new_state()

    def step(self, samples: int) -> Timed:
        """A step on clips padded to `samples`. Each process must call alike."""
        batches = self.run.speech.train
        number = next(step for step in range(len(batches)) if batches.samples(step) == samples)
        batch = {name: array for name, array in batches[number].items() if name in STEP_INPUTS}

        def steps(count: int) -> float:
            """Seconds of so many. As in a run, the host waits in between on a CPU alone."""
            began = time.perf_counter()
            for _ in range(count):
                put = sharding.put_batch(self.run.mesh, batch)
                self.state = self.run.programs.train_step(self.state, put)
                if on_cpu():
                    jax.block_until_ready(self.state)
            jax.block_until_ready(self.state)
            return time.perf_counter() - began

        first, second = steps(1), steps(1)
        count = max(TIMED_CALLS, math.ceil(agreed(TIMED_SECONDS / second)))
        seconds = steps(count) / count
        return Timed(seconds, max(0.0, first - seconds))

    def evaluation(self, folder: Path) -> Timed:
        """An evaluation on the split that chooses, and the drawing of the curves after it.

        Each shape of its batches is timed, and counted. The picture is drawn in a new folder.
        """
        params = combine(self.state.params, self.state.frozen)
        counts: Counter[int] = Counter()
        examples: dict[int, dict[str, np.ndarray]] = {}
        for batch in self.run.speech.dev:
            counts[batch["samples"].shape[1]] += 1
            examples.setdefault(batch["samples"].shape[1], batch)
        seconds = start = 0.0
        for samples, batch in examples.items():

            def forward(batch: dict[str, np.ndarray] = batch) -> Any:
                return self.run.eval_step(params, sharding.put_batch(self.run.mesh, batch))

            timed = _timed(forward)
            seconds += counts[samples] * timed.seconds
            start += timed.start
        drawing = self._drawing(folder)
        return Timed(seconds + drawing.seconds, start + drawing.start)

    def _drawing(self, folder: Path) -> Timed:
        """The curves of two evaluations, drawn by the first process: it alone loads the library for it."""
        if jax.process_index() != 0:
            return Timed(0.0, 0.0)
        scoring, chooser = self.run.origin.task.scoring, self.run.speech.chooser
        figures = dict.fromkeys(("loss", *scoring.titles), 1.0)
        rows = [
            {"step": step, "epoch": 1.0, "split": split, "best_by": scoring.best_by, **figures}
            for step in (1, 2)
            for split in ("train", chooser)
        ]
        taken = []
        with writing(folder):
            folder.mkdir(parents=True)
            try:
                for _ in range(2):
                    began = time.perf_counter()
                    curves(rows, folder / "curves.svg", scoring)
                    taken.append(time.perf_counter() - began)
            finally:
                shutil.rmtree(folder)
        return Timed(taken[1], max(0.0, taken[0] - taken[1]))

    def checkpoint(self, folder: Path) -> tuple[float, int]:
        """Seconds that training waits for a checkpoint, and its bytes on the disk.

        It is written to a new folder, and removed. UserError where it cannot be written.
        """
        checksums(saved_trees(self.state))  # compiles
        try:
            with Checkpoints(folder) as checkpoints:
                began = time.perf_counter()
                checkpoints.save(self.state, position={}, config={})
                seconds = time.perf_counter() - began
            written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        finally:
            multihost_utils.sync_global_devices("checkpoint tried")
            if jax.process_index() == 0:
                shutil.rmtree(folder, ignore_errors=True)
        return seconds, written


def _timed(call: Callable[[], Any]) -> Timed:
    taken: list[float] = []
    calls = 2  # the first one loads or compiles
    while len(taken) < calls:
        began = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - began)
        if len(taken) == 2:
            calls = 1 + max(TIMED_CALLS, math.ceil(agreed(TIMED_SECONDS / taken[1])))
    seconds = statistics.median(taken[1:])
    return Timed(seconds, max(0.0, taken[0] - seconds))


def agreed(value: float) -> float:
    """The first process's value, so that all processes decide alike."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))

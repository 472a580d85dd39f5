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

from flax_wavlm.models.parameters import combine
from flax_wavlm.parallel import sharding
from flax_wavlm.training.checkpoints import Checkpoints, saved_trees
from flax_wavlm.training.integrity import checksums
from flax_wavlm.training.prepare import Parts
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

        def step() -> Any:
            self.state = self.run.programs.train_step(self.state, sharding.put_batch(self.run.mesh, batch))
            return self.state

        return _timed(step)

    def evaluation(self) -> Timed:
        """An evaluation on the split that chooses: each shape of its batches is timed, and counted."""
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
        return Timed(seconds, start)

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

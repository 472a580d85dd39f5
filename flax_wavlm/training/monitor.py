"""What a run sees of itself while it trains: means, speed, and steps that were not finite."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, some
from flax_wavlm.parallel.memory import on_cpu, release_freed
from flax_wavlm.progress import Bar, time_left
from flax_wavlm.training.journal import Journal
from flax_wavlm.training.state import TrainState, skipped_steps

log = logging.getLogger(__name__)

T = TypeVar("T")

CLIPS_NAMED = 4  # in the message about a batch; nonfinite.jsonl has all


class StepMonitor:
    """Reads a run's figures off its state: means since the last log line, and steps that were not finite.

    Args:
        journal: takes the steps that were not finite.
        batches: knows the clips of each step.
        skips_allowed: `train.skip_nonfinite`.
        state: the state before the first step of this process.
        bar: shows the steps; its loss and speed are those of the last log line, so that no step waits for it.
    """

    def __init__(self, journal: Journal, batches: Batches, skips_allowed: int, state: TrainState, bar: Bar):
        self.journal, self.batches, self.skips_allowed, self.bar = journal, batches, skips_allowed, bar
        self.step = int(state.step)
        bar.begin_at(self.step)
        bar.note(loss="", score="", epoch="", speed="")  # in this order
        bar.go_at(0)
        self.before = self.step  # steps made by earlier processes
        self.began = time.perf_counter()  # later by what will not come again
        self.rate = 0.0  # steps a second, evaluations included; 0: not known yet
        self.skipped = int(state.skipped["count"])
        self.samples_before = float(state.totals["samples"])  # of a process that was stopped
        self.clock = time.perf_counter()
        self.waited = 0.0
        self.compiled: set[int] = set()  # padded lengths
        self._on_cpu = on_cpu()

    def wait_for(self, batches: Iterator[T], state: TrainState) -> T:
        """The next batch. If the devices have nothing to do meanwhile, the time is counted.

        On a CPU the last step ends first. A step that is given to it earlier gets its temporary arrays while
        those of the last one are still there, and gains no time: other threads make the batches anyway.
        """
        if (self.step - self.before).bit_count() == 1:  # after 1, 2, 4, 8 ... steps
            self._measure(state)
        if self._on_cpu:
            jax.block_until_ready(state.step)
        asked = time.perf_counter()
        batch = next(batches)
        if state.step.is_ready():  # type: ignore[attr-defined]  # jax.Array does not declare it
            self.waited += time.perf_counter() - asked
        return batch

    def _measure(self, state: TrainState) -> None:
        """Takes the rate so far. Waits for the last step: the host is ahead of the devices."""
        jax.block_until_ready(state.step)
        self.rate = (self.step - self.before) / (time.perf_counter() - self.began)
        self.bar.go_at(self.rate)

    @contextlib.contextmanager
    def step_of_shape(self, samples: int, state: TrainState) -> Iterator[None]:
        """Around a step on clips padded to `samples`: the first step of a length compiles, and says so.

        `state` is that before the step.
        """
        if samples in self.compiled:
            yield
            self._advance()
            return
        jax.block_until_ready(state.step)  # or what the devices compute meanwhile would take no time
        log.info("compiling the step for clips of up to %.2f s ...", samples / SAMPLE_RATE)
        began = time.perf_counter()
        yield
        self.compiled.add(samples)
        log.info("... took %.1f s", time.perf_counter() - began)
        release_freed()
        self.pause(began)
        self.began += time.perf_counter() - began
        self._advance()

    @property
    def epoch(self) -> float:
        return self.batches.epochs(self.step)

    def _advance(self) -> None:
        self.step += 1
        self.bar.note(epoch=f"epoch {self.epoch:.2f}")
        self.bar.advance()

    def pause(self, since: float) -> None:
        """Takes the time since `since`, a `time.perf_counter`, out of the rate of training."""
        self.clock += time.perf_counter() - since

    def read(self, state: TrainState) -> dict[str, Any]:
        """The figures of a train line. The next line's begin anew. Raises as `check` does."""
        self.check(state)
        self._measure(state)
        totals = {name: float(value) for name, value in jax.device_get(state.totals).items()}
        seconds = (totals["samples"] - self.samples_before) / SAMPLE_RATE
        elapsed = time.perf_counter() - self.clock
        wait = self.waited / elapsed
        self.clock, self.samples_before, self.waited = time.perf_counter(), 0.0, 0.0
        steps = totals["steps"]
        line = {
            "loss": totals["loss"] / steps if steps else None,
            "grad_norm": totals["grad_norm"] / steps if steps else None,
            "clips": int(totals["clips"]),
            "infeasible": int(totals["infeasible"]),
            "skipped": self.skipped,
            "audio_seconds_per_second": seconds / elapsed,
            "data_wait": wait,  # share of the time in which the devices waited for a batch
        }
        if line["loss"] is not None:
            self.bar.note(loss=f"loss {line['loss']:.3f}")
        self.bar.note(speed=f"{_speed(seconds / elapsed)} audio s/s")
        return line

    def describe(self, line: Mapping[str, Any]) -> str:
        """The figures of a train line as text for a person, with the time that is left."""
        total = len(self.batches)
        figures = [f"step {self.step}/{total}", f"epoch {self.epoch:.2f}"]
        if line["loss"] is not None:
            figures += [f"loss {line['loss']:.4f}", f"gradient {line['grad_norm']:.2f}"]
        figures += [
            f"rate {line['learning_rate']:.2e}",
            f"{_speed(line['audio_seconds_per_second'])} audio seconds a second",
        ]
        if line["skipped"]:
            figures.append(f"{line['skipped']} steps skipped")
        return "  ".join([*figures, time_left((total - self.step) / self.rate)])

    def check(self, state: TrainState) -> None:
        """Notes new steps that were not finite; UserError where there are more than the run may skip."""
        steps = skipped_steps(state, since=self.skipped)
        for step in steps:
            self.journal.note_nonfinite(step, self.batches.clip_ids(step - 1))
        self.skipped = int(state.skipped["count"])
        if steps and self.skipped > self.skips_allowed:
            step = steps[-1] if self.skips_allowed else steps[0]
            clips = some(self.batches.clip_ids(step - 1), CLIPS_NAMED)
            raise UserError(
                f"at step {step} the loss or its gradient was not finite, for the batch of the clips {clips} "
                f"(all in {self.journal.nonfinite}). Nothing of this step was kept or saved",
                field="train.skip_nonfinite",
                do=(
                    "look at these clips, lower optim.learning_rate, or let the run skip some steps with "
                    f"train.skip_nonfinite={self.skipped}"
                ),
            )


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"

"""TODO."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax

from flax_wavlm.data.audio import SAMPLE_RATE
from flax_wavlm.data.batches import Batches
from flax_wavlm.errors import UserError
from flax_wavlm.training.journal import Journal
from flax_wavlm.training.state import TrainState, skipped_steps

T = TypeVar("T")

# --- Figures ------------------------------------------------------------------------------------------------


class StepMonitor:
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


def train_line(line: Mapping[str, float]) -> str:
    return (
        (f"loss {line['loss']:.4f}  gradient {line['grad_norm']:.2f}  " if line["loss"] is not None else "")
        + f"rate {line['learning_rate']:.2e}  {line['audio_seconds_per_second']:.0f} audio seconds a second"
        + (f"  {line['skipped']} steps skipped" if line["skipped"] else "")
    )

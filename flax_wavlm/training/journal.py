"""The lines that a run writes about itself: metrics.jsonl and nonfinite.jsonl. Process 0 writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from flax_wavlm.files import write_atomically, writing
from flax_wavlm.recognition.task import DEV, TEST, Rank, Scoring
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.report.tensorboard import Events


class Journal:
    """metrics.jsonl and nonfinite.jsonl: one JSON object a line, each step's lines once.

    A line is on the disk before anything that is computed after it is saved. So a run that resumes at a
    checkpoint finds every line up to it. It takes back the lines of later steps, and the half line that a
    killed process may have left.

    Args:
        workdir: the run's folder.
        epochs: how many epochs a number of steps is.
        scoring: of the run's task.
        chooser: the split whose evaluations choose the best checkpoint, "dev" or "test".
        events: takes the lines too, for TensorBoard; None: they are in metrics.jsonl alone.

    Attributes:
        ranks: step to rank, of every evaluation so far that chooses the best checkpoint.
    """

    def __init__(
        self,
        workdir: Path,
        epochs: Callable[[int], float],
        scoring: Scoring,
        chooser: str = DEV,
        events: Events | None = None,
    ):
        self.metrics, self.nonfinite = workdir / "metrics.jsonl", workdir / "nonfinite.jsonl"
        self.epochs, self.scoring, self.chooser = epochs, scoring, chooser
        self.events = events if jax.process_index() == 0 else None
        with writing(self.metrics):
            for path in (self.metrics, self.nonfinite):
                if jax.process_index() == 0 and path.exists():
                    _drop_half_line(path)
        if self.events is not None:
            self.events.rewrite(self.rows())
        multihost_utils.sync_global_devices("journal")
        self.ranks: dict[int, Rank] = {}
        self._read_ranks()

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        return read_metrics(self.metrics) if self.metrics.exists() else []

    def _read_ranks(self) -> None:
        self.ranks.clear()
        self.ranks.update(self.scoring.ranks(self.rows()))

    def go_back_to(self, step: int) -> None:
        """Takes back all lines of later steps."""
        self._keep(lambda row: row["step"] <= step)

    def take_back_final(self, step: int, averaged: int = 0) -> None:
        """Takes back final lines on test that are of other weights than those that are exported."""
        exported = (step, averaged)
        self._keep(lambda row: row.get("split") != TEST or (row["step"], row.get("averaged", 0)) == exported)

    def _keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        if jax.process_index() == 0:
            before = len(self.rows())
            for path in (self.metrics, self.nonfinite):
                rows = read_metrics(path) if path.exists() else []
                with writing(path):
                    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows if wanted(row)))
            if self.events is not None and len(kept := self.rows()) < before:
                self.events.rewrite(kept)
        multihost_utils.sync_global_devices("journal")
        self._read_ranks()

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes a line of figures; `split` is "train", "dev" or "test"."""
        row = {"step": step, "epoch": round(self.epochs(step), 4), "split": split, **values}
        self._append(self.metrics, row)
        if self.events is not None:
            self.events.write(row)
        if split == self.chooser:
            self.ranks.update(self.scoring.ranks([row]))

    def note_nonfinite(self, step: int, ids: Sequence[str]) -> None:
        """Notes a step whose loss or gradient was not finite, with the clips of its batch."""
        self._append(self.nonfinite, {"step": step, "clips": list(ids)})

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        if jax.process_index() == 0:
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _drop_half_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    if text and not text.endswith("\n"):
        write_atomically(path, text[: text.rfind("\n") + 1])

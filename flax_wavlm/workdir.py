"""A run's folder: whose it is, and the lines that are written into it. Process 0 writes all of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from flax_wavlm import report
from flax_wavlm.batches import Clip
from flax_wavlm.errors import UserError
from flax_wavlm.files import read_json_object
from flax_wavlm.train_config import TrainConfig, flatten

log = logging.getLogger(__name__)

# Fields that may change between a run and its resumption: they do not change what is computed.
FREE_TO_CHANGE = (
    "workdir",
    "name",
    "data.threads",
    "data.prefetch",
    "data.path",
    "data.cache",
    "data.cache_features",
    "mesh.data",
    "mesh.fsdp",
    "train.skip_nonfinite",
)


@contextlib.contextmanager
def claimed(workdir: Path, config: TrainConfig) -> Iterator[None]:
    """The workdir as this run's alone: config.json says what it runs, a lock that it is running.

    Raises UserError where the folder is another configuration's, where a run is at work in it, where it
    cannot be written, and where the processes of a run do not all see the same folder.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(workdir))
                _compare(workdir, config)
                write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
            except OSError as error:
                raise UserError(
                    f"{workdir}: cannot be written: {error.strerror or error}; give another --workdir, or "
                    "see to the disk's space and permissions"
                ) from None
        multihost_utils.sync_global_devices("workdir claimed")
        if jax.process_index() != 0:
            if not (workdir / "config.json").exists():
                raise UserError(
                    f"{workdir}: process {jax.process_index()} does not see process 0's folder; expected a "
                    "--workdir on a disk that all processes share"
                )
            _compare(workdir, config)
        yield


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """The kernel gives the lock back when the process ends, however it ends."""
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{workdir}: {file.read().strip() or 'another process'} is training here; wait for its end, "
                "or give another --workdir"
            ) from None
        except OSError as error:  # network disks without locks
            log.warning("%s: cannot be locked (%s); see that no second run uses it", workdir, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {os.uname().nodename}\n")
        file.flush()
        yield


def _compare(workdir: Path, config: TrainConfig) -> None:
    """UserError where the workdir's run has another configuration."""
    path = workdir / "config.json"
    if not path.exists() or not any((workdir / "checkpoints").glob("[0-9]*")):
        return  # nothing to lose
    before = flatten(read_json_object(path, "the run's configuration"))
    now = flatten(json.loads(json.dumps(config.to_dict())))
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


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is never seen half-written."""
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def fingerprint(clips: Sequence[Clip]) -> str:
    """Tells a set of clips from another: their number, and a checksum of ids, lengths and labels."""
    crc = 0
    for clip in clips:
        crc = zlib.crc32(f"{clip.id} {len(clip.samples)}".encode() + clip.labels.tobytes(), crc)
    return f"{len(clips)} clips, {crc:08x}"


class Journal:
    """metrics.jsonl and nonfinite.jsonl: one JSON object a line, each step's lines once.

    A line is on the disk before anything that is computed after it is saved, so that a run that resumes at a
    checkpoint finds every line up to it, and takes back those after it (and the half line of a killed run).

    Attributes:
        scores: step to word error rate, of every evaluation so far.
    """

    def __init__(self, workdir: Path, steps_per_epoch: int):
        self.metrics, self.nonfinite = workdir / "metrics.jsonl", workdir / "nonfinite.jsonl"
        self.steps_per_epoch = steps_per_epoch
        with writing(self.metrics):
            for path in (self.metrics, self.nonfinite):
                if jax.process_index() == 0 and path.exists():
                    _drop_half_line(path)
        multihost_utils.sync_global_devices("journal")
        self.scores: dict[int, float] = {}
        self._read_scores()

    def _read_scores(self) -> None:
        rows = report.read_metrics(self.metrics) if self.metrics.exists() else []
        self.scores.clear()
        self.scores.update({row["step"]: row["wer"] for row in report.evaluations(rows)})

    def go_back_to(self, step: int) -> None:
        """Takes back all lines of later steps."""
        if jax.process_index() == 0:
            for path in (self.metrics, self.nonfinite):
                rows = report.read_metrics(path) if path.exists() else []
                with writing(path):
                    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
        multihost_utils.sync_global_devices("journal")
        self._read_scores()

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """A line of figures; `split` is "train" or "test"."""
        row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "split": split, **values}
        if "wer" in row:
            self.scores[step] = row["wer"]
        self._append(self.metrics, row)

    def note_nonfinite(self, step: int, ids: Sequence[str]) -> None:
        """A step whose loss or gradient was not finite, and the clips of its batch."""
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
        write_whole(path, text[: text.rfind("\n") + 1])


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes a failure to write there a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}. See to the disk's space and permissions; "
            "the same command then resumes"
        ) from None

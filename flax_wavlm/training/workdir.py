"""A run's folder: whose it is, and the lines that are written into it. Process 0 writes all of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from flax_wavlm.data.clips import Clip
from flax_wavlm.errors import UserError
from flax_wavlm.files import read_json_object, write_atomically
from flax_wavlm.training.config import TrainConfig, flatten

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
def lock_workdir(workdir: Path, config: TrainConfig) -> Iterator[None]:
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
                write_atomically(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
            except OSError as error:
                raise UserError(
                    f"{workdir}: cannot be written: {error.strerror or error}; give another --workdir, or "
                    "see to the disk's space and permissions"
                ) from None
        multihost_utils.sync_global_devices("workdir lock_workdir")
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


def fingerprint(clips: Sequence[Clip]) -> str:
    """Tells a set of clips from another: their number, and a checksum of ids, lengths and labels."""
    crc = 0
    for clip in clips:
        crc = zlib.crc32(f"{clip.id} {len(clip.samples)}".encode() + clip.labels.tobytes(), crc)
    return f"{len(clips)} clips, {crc:08x}"

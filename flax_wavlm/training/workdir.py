"""A run's folder: it belongs to one configuration, and one run at a time works in it. Process 0 writes."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from flax_wavlm.errors import MOST_ITEMS, UserError, cannot_write, reason
from flax_wavlm.files import read_json_object, write_atomically
from flax_wavlm.training.config import FORMER_DEFAULTS, TrainConfig, flatten, lookup, read_saved

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
    "train.tensorboard",
)


@contextlib.contextmanager
def lock_workdir(workdir: Path, config: TrainConfig) -> Iterator[None]:
    """Takes the workdir for this run alone: config.json says what it runs, a lock that it is running.

    Raises:
        UserError: the folder belongs to another configuration, a run is at work in it, it cannot be
            written, or the processes of a run do not all see the same folder.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(workdir))
                check_same_run(workdir, config)
                write_atomically(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
            except OSError as error:
                raise cannot_write(workdir, error) from None
        multihost_utils.sync_global_devices("workdir")
        if jax.process_index() != 0:
            if not (workdir / "config.json").exists():
                raise UserError(
                    f"process {jax.process_index()} does not see process 0's folder",
                    where=workdir,
                    expected="a workdir on a disk that all processes share",
                )
            check_same_run(workdir, config)
        yield


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the workdir's lock. The kernel gives it back when the process ends, however it ends."""
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{file.read().strip() or 'another process'} is training here",
                where=workdir,
                do="wait for its end, or give another workdir",
            ) from None
        except OSError as error:  # network disks without locks
            log.warning("%s: cannot be locked (%s); see that no second run uses it", workdir, reason(error))
        file.truncate(0)
        file.write(f"process {os.getpid()} of {os.uname().nodename}\n")
        file.flush()
        yield


def as_begun(config: TrainConfig) -> TrainConfig:
    """The configuration with which the run in its workdir was begun, as far as it had to be said then.

    Fields that came later are absent from that run's config.json, and others have had another default.
    Whatever the recipe of today says, the run goes on as it was computed then. The log names what changes.
    """
    path = Path(config.workdir) / "config.json"
    if not _has_checkpoints(path.parent) or not path.exists():
        return config
    said, completed = flatten(read_json_object(path, "a run's configuration")), flatten(read_saved(path))
    defaults, today = flatten(TrainConfig()), flatten(config)
    absent = (defaults.keys() - said.keys() - set(FREE_TO_CHANGE)) & completed.keys()
    begun_with = {name: completed[name] for name in absent}
    begun_with |= {
        name: former
        for name, former in FORMER_DEFAULTS.items()
        if said.get(name) == former and today[name] == defaults[name]
    }
    config = copy.deepcopy(config)
    changed = []
    for name, value in sorted(begun_with.items()):
        group, _, field = name.rpartition(".")
        if today[name] != value:
            setattr(lookup(config, group), field, tuple(value) if isinstance(value, list) else value)
            changed.append(f"{name} = {value!r}")
    if changed:
        log.warning("%s: begun by an older version, the run goes on with %s", path, ", ".join(changed))
    return config


def _has_checkpoints(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("[0-9]*"))


def check_same_run(workdir: Path, config: TrainConfig) -> None:
    """UserError where the workdir holds checkpoints of another configuration.

    Fields that its config.json lacks are read as `config.WHEN_ABSENT` says.
    """
    path = workdir / "config.json"
    if not path.exists() or not _has_checkpoints(workdir):
        return  # nothing to lose
    before, now = flatten(read_saved(path)), flatten(json.loads(json.dumps(config.to_dict())))
    different = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name) and name not in FREE_TO_CHANGE
    ]
    if different:
        more = f"; and {len(different) - MOST_ITEMS} more" if len(different) > MOST_ITEMS else ""
        raise UserError(
            f"belongs to a run with another configuration: {'; '.join(different[:MOST_ITEMS])}{more}",
            where=workdir,
            do="give another workdir, or the same configuration to resume",
        )

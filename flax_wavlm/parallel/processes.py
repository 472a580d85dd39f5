"""The processes of a run: how they find each other, how they are asked to stop, and how they leave."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from flax_wavlm.errors import UserError, reason

log = logging.getLogger(__name__)

# A process that has not been heard of for this long counts as dead, and the others end too.
HEARTBEAT_SECONDS = 30
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(multihost: bool) -> None:
    """Makes this process one of a run of several, where it is one. Call it before jax is used.

    The environment variables JAX_COORDINATOR_ADDRESS ("host:port" of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID describe the run. Without them, `multihost` has jax ask the cluster (TPU pod, Slurm, Open
    MPI, Kubernetes). Without either, the process is alone.

    Raises:
        UserError: only some of the variables are set, one of them is no number, or the other processes
            cannot be found.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    described = bool({"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} & given.keys())
    if not described and not multihost:
        return
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **(_described(given) if described else {})
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes of the run cannot be joined ({reason(error)})",
            expected=f"a cluster that jax knows, or each process with {', '.join(VARIABLES)} set",
        ) from None
    log.info(
        "process %d of %d; if one of them ends, so do the others within %d s, and the same command resumes",
        jax.process_index(),
        jax.process_count(),
        2 * HEARTBEAT_SECONDS,
    )


def _described(given: dict[str, str]) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`, from the environment variables that are set."""
    if missing := sorted(set(VARIABLES) - given.keys()):
        raise UserError(
            f"{' and '.join(sorted(given))} set without {', '.join(missing)}",
            expected="all three, or none of them",
        )
    count, index = given["JAX_NUM_PROCESSES"], given["JAX_PROCESS_ID"]
    try:
        return {"num_processes": int(count), "process_id": int(index)}
    except ValueError:
        raise UserError(
            f"JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID is {index!r}",
            expected="numbers such as 4 and 0 to 3",
        ) from None


def count() -> int:
    """The number of processes of this run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def leave(status: int) -> None:
    """Ends this process of several at once, because something went wrong.

    A usual exit would first wait for the others, which wait for this one. This way they hear of its end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Around work that process 0 must have done before the others begin it. All processes must call it.

    Args:
        name: of the place where they wait; every process gives the same.
    """
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices(name)
    yield
    if jax.process_index() == 0:
        multihost_utils.sync_global_devices(name)


class StopRequest:
    """SIGTERM, noticed between steps; in a run of several processes, a preemption notice to any of them.

    A context manager: at its end the signal means again what it meant before. Further signals change nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._restore: Callable[[], object] = lambda: None

    def __enter__(self) -> StopRequest:
        # With several processes jax listens to SIGTERM itself, and has them agree on a step.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            former = signal.signal(signal.SIGTERM, self._ask)
            self._restore = lambda: signal.signal(signal.SIGTERM, former)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether to save after this step and stop. Every process must ask after every step."""
        return self._asked or (
            jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
        )

"""The processes of a run: how they find each other, how they are asked to stop, and how they leave."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from flax_wavlm.errors import UserError

log = logging.getLogger(__name__)

# A process that has not been heard of for so long is taken for dead, and the others end too.
HEARTBEAT_SECONDS = 30
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(multihost: bool) -> None:
    """Makes this process one of a run of several, where it is one; to be called before jax is used.

    The environment variables JAX_COORDINATOR_ADDRESS ("host:port" of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say so, or else `multihost` does: then jax asks the cluster (TPU pod, Slurm, Open MPI,
    Kubernetes). Without either the process is alone.

    Raises UserError where only some of the variables are set, where one is no number, and where the others
    cannot be found.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    described = {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} & given.keys()
    if not described and not multihost:
        return
    if described and len(given) < len(VARIABLES):
        missing = ", ".join(sorted(set(VARIABLES) - given.keys()))
        raise UserError(
            f"{' and '.join(sorted(given))} set without {missing}; expected all three, or none of them"
        )
    where: dict[str, Any] = {}
    if described:
        try:
            where = {
                "num_processes": int(given["JAX_NUM_PROCESSES"]),
                "process_id": int(given["JAX_PROCESS_ID"]),
            }
        except ValueError:
            raise UserError(
                f"JAX_NUM_PROCESSES is {given['JAX_NUM_PROCESSES']!r} and JAX_PROCESS_ID is "
                f"{given['JAX_PROCESS_ID']!r}, expected numbers such as 4 and 0 to 3"
            ) from None
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **where)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes of the run cannot be joined ({str(error).splitlines()[0]}). Expected a "
            f"cluster that jax knows, or {', '.join(VARIABLES)} in the environment of each process"
        ) from None
    log.info(
        "process %d of %d; if one of them ends, so do the others within %d s, and the same command resumes",
        jax.process_index(),
        jax.process_count(),
        2 * HEARTBEAT_SECONDS,
    )


def count() -> int:
    """Processes of this run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def leave(status: int) -> None:
    """Ends this process of several at once, because something went wrong.

    A usual exit would first wait for the others, which wait for this one. As it is, they hear of its end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StopRequest:
    """SIGTERM, noticed between steps; in a run of several processes, a preemption notice to any of them.

    A context manager: the signal's former meaning comes back at its end. Further signals change nothing.
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

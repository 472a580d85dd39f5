"""The state of a run: everything that a training step changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flax_wavlm.models.parameters import Params

Array = jax.Array


class TrainState(NamedTuple):
    """All that a step changes, and all that a checkpoint must hold beside the data's position."""

    step: Array  # int32: steps made
    params: Params  # trained, float32
    frozen: Params  # not trained, float32
    opt_state: Any
    totals: dict[str, Array]  # float32 sums since the last log line, over the steps that were not skipped
    skipped: dict[str, Array]  # steps without an update: count [], their numbers [SKIPPED_KEPT] as a ring


SKIPPED_KEPT = 32
TOTALS = ("steps", "loss", "grad_norm", "samples", "clips", "infeasible")


def zero_totals() -> dict[str, Array]:
    """The totals right after a log line."""
    return {name: jnp.zeros((), jnp.float32) for name in TOTALS}


def init_state(params: Params, frozen: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        opt_state=optimizer.init(params),
        totals=zero_totals(),
        skipped={"count": jnp.zeros((), jnp.int32), "steps": jnp.zeros(SKIPPED_KEPT, jnp.int32)},
    )


def skipped_steps(state: TrainState, since: int = 0) -> list[int]:
    """The numbers, from 1, of the steps that were skipped because they were not finite.

    The first `since` of them are left out. At most the last SKIPPED_KEPT are known.
    """
    count, steps = jax.device_get((state.skipped["count"], state.skipped["steps"]))
    return [int(steps[i % SKIPPED_KEPT]) for i in range(max(since, int(count) - SKIPPED_KEPT), int(count))]

"""TODO."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flax_wavlm.models.parameters import Params

Array = jax.Array


class TrainState(NamedTuple):
    """All that a step changes, and all that a checkpoint must hold beside the data's position."""

    step: Array  # int32: updates made
    params: Params  # trained, float32
    frozen: Params  # not trained, float32
    opt_state: Any
    totals: dict[str, Array]  # float32 sums since the last log line, over the updates that were made
    skipped: dict[str, Array]  # updates not made, see `make_train_step`: count [], steps [SKIPPED_KEPT]


SKIPPED_KEPT = 32
TOTALS = ("steps", "loss", "grad_norm", "samples", "clips", "infeasible")


def zero_totals() -> dict[str, Array]:
    return {name: jnp.zeros((), jnp.float32) for name in TOTALS}


def init_state(params: Params, frozen: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        opt_state=optimizer.init(params),
        totals=zero_totals(),
        skipped={"count": jnp.zeros((), jnp.int32), "steps": jnp.zeros(SKIPPED_KEPT, jnp.int32)},
    )


def skipped_steps(state: TrainState, since: int = 0) -> list[int]:
    """Steps, from 1, whose update was not made, but for the first `since` of them; the last 32 at most."""
    count, steps = jax.device_get((state.skipped["count"], state.skipped["steps"]))
    return [int(steps[i % SKIPPED_KEPT]) for i in range(max(since, int(count) - SKIPPED_KEPT), int(count))]

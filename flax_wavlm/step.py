"""One training step: a pure function of state and batch, to be jitted over a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from flax_wavlm import ctc, sharding
from flax_wavlm.model import Params, merge
from flax_wavlm.optim import combine
from flax_wavlm.text import input_values

Array = jax.Array
Batch = dict[str, Array]
"""`text.INPUTS` (or features [B, T, C], lengths), labels [B, S], label_lengths [B] int32, valid [B] bool."""


class TrainState(NamedTuple):
    """All that a step changes, and all that a checkpoint must hold beside the data's position."""

    step: Array  # int32: updates made
    params: Params  # trained, float32
    frozen: Params  # not trained, float32
    opt_state: Any
    totals: dict[str, Array]  # float32 sums since the last log line


TOTALS = ("steps", "loss", "grad_norm", "samples", "clips", "infeasible")


def zero_totals() -> dict[str, Array]:
    return {name: jnp.zeros((), jnp.float32) for name in TOTALS}


def init_state(params: Params, frozen: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, frozen, optimizer.init(params), zero_totals())


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    blank_id: int,
    reduction: str,
    seed: int,
    accumulation: int = 1,
) -> Callable[[TrainState, Batch], TrainState]:
    """The function (state, batch) -> state: CTC loss, its gradient, and one update of the trained parameters.

    Rows that are not valid count nowhere. Randomness is a function of `seed` and `state.step` alone, so that
    a resumed run repeats what an uninterrupted one does. With `accumulation` > 1 the batch is worked through
    in so many parts, and the gradient is that of the whole.
    """

    def loss_share(
        params: Params, frozen: Params, batch: Batch, key: Array, scale: Array
    ) -> tuple[Array, Array]:
        model = merge(graphdef, combine(params, frozen))
        if "features" in batch:
            logits, frames = model.from_features(batch["features"], batch["lengths"], key=key)
        else:
            logits, frames = model(input_values(batch), batch["lengths"], key=key)
        loss, feasible = ctc.ctc_loss(
            logits, frames, batch["labels"], batch["label_lengths"], blank_id=blank_id
        )
        infeasible = jnp.sum(batch["valid"] & ~feasible)
        loss = ctc.reduced_sum(loss, batch["label_lengths"], batch["valid"], reduction=reduction)
        return loss * scale, infeasible

    gradient = jax.value_and_grad(loss_share, has_aux=True)

    def accumulated(
        params: Params, frozen: Params, batch: Batch, key: Array, scale: Array
    ) -> tuple[Any, Params]:
        # Part i takes rows i, i + parts, ...: each device then keeps its own rows.
        parts = jax.tree.map(
            lambda rows: rows.reshape(-1, accumulation, *rows.shape[1:]).swapaxes(0, 1), batch
        )

        def add(sums: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(params, frozen, *part, scale)), None

        first = jax.tree.map(lambda rows: rows[0], parts)
        shapes = jax.eval_shape(gradient, params, frozen, first, key, scale)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, (parts, jax.random.split(key, accumulation)))[0]

    def train_step(state: TrainState, batch: Batch) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        compute = gradient if accumulation == 1 else accumulated
        clips = jnp.sum(batch["valid"])
        scale = 1 / jnp.maximum(clips, 1) if reduction == "mean" else jnp.ones(())
        (loss, infeasible), grads = compute(state.params, state.frozen, batch, key, scale)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = {
            "steps": 1,
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "samples": jnp.sum(jnp.where(batch["valid"], batch["lengths"], 0)),
            "clips": clips,
            "infeasible": infeasible,
        }
        totals = {name: state.totals[name] + new[name] for name in TOTALS}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, state.frozen, opt_state, totals)

    return train_step


def jit_train_step(
    train_step: Callable[[TrainState, Batch], TrainState], mesh: Mesh, state: TrainState
) -> Callable[[TrainState, Batch], TrainState]:
    """The step compiled over the mesh; the state's buffers are given up to the new state's."""
    state_sharding = sharding.tree_sharding(mesh, state)
    return jax.jit(
        train_step,
        in_shardings=(state_sharding, sharding.batch_sharding(mesh)),
        out_shardings=state_sharding,
        donate_argnums=0,
    )

"""One training step: a pure function of state and batch, to be jitted over a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from flax_wavlm.data.preprocessor import INPUTS, input_values
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import Params, combine, merge
from flax_wavlm.models.wavlm import FeatureEncoder
from flax_wavlm.ops.ctc.api import ctc_loss, reduced_sum
from flax_wavlm.parallel import sharding
from flax_wavlm.training.state import SKIPPED_KEPT, TOTALS, TrainState

Array = jax.Array
Batch = dict[str, Array]
"""`text.INPUTS` (or features [B, T, C], lengths), labels [B, S], label_lengths [B] int32, valid [B] bool."""


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
    a resumed run repeats what an uninterrupted one does. A step whose loss or gradient is not finite leaves
    parameters and optimizer as they were, and is noted in `skipped`: whether the run may go on is decided
    where it is read (`skipped_steps`), so that no step waits for the host. With `accumulation` > 1 the batch
    is worked through in so many parts, and the gradient is that of the whole.

    The optimizer leaves its own state as it is where its update is called with `finite` false, as
    `optim.adamw` does; one that does not know this argument must have no state to lose.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def loss_share(
        params: Params, frozen: Params, batch: Batch, key: Array, scale: Array
    ) -> tuple[Array, Array]:
        model = merge(graphdef, combine(params, frozen))
        if "features" in batch:
            logits, frames = model.from_features(batch["features"], batch["lengths"], key=key)
        else:
            logits, frames = model(input_values(batch), batch["lengths"], key=key)
        loss, feasible = ctc_loss(logits, frames, batch["labels"], batch["label_lengths"], blank_id=blank_id)
        infeasible = jnp.sum(batch["valid"] & ~feasible)
        loss = reduced_sum(loss, batch["label_lengths"], batch["valid"], reduction=reduction)
        return loss * scale, infeasible

    gradient = jax.value_and_grad(loss_share, has_aux=True)

    def accumulated(
        params: Params, frozen: Params, batch: Batch, key: Array, scale: Array
    ) -> tuple[Any, Params]:
        parts = in_parts(batch, accumulation)

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
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def if_finite(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
            params = if_finite(optax.apply_updates(state.params, updates), state.params)
        new = {
            "steps": 1,
            "loss": loss,
            "grad_norm": norm,
            "samples": jnp.sum(jnp.where(batch["valid"], batch["lengths"], 0)),
            "clips": clips,
            "infeasible": infeasible,
        }
        totals = {name: state.totals[name] + new[name] for name in TOTALS}
        count, steps = state.skipped["count"], state.skipped["steps"]
        noted = {"count": count + 1, "steps": steps.at[count % SKIPPED_KEPT].set(state.step + 1)}
        return TrainState(
            step=state.step + 1,
            params=params,
            frozen=state.frozen,
            opt_state=opt_state,
            totals=if_finite(totals, state.totals),
            skipped=if_finite(state.skipped, noted),
        )

    return train_step


def jit_train_step(
    train_step: Callable[[TrainState, Batch], TrainState],
    mesh: Mesh,
    state: TrainState,
    encode: Callable[[Params, Batch], Array] | None = None,
) -> Callable[[TrainState, Batch], TrainState]:
    """The step compiled over the mesh; the state's buffers are given up to the new state's.

    `encode`, from `jit_encode`, is applied first to batches that have no features yet.
    """
    state_sharding = sharding.tree_sharding(mesh, state)
    step = jax.jit(
        train_step,
        in_shardings=(state_sharding, sharding.batch_sharding(mesh)),
        out_shardings=state_sharding,
        donate_argnums=0,
        compiler_options=_compiler_options(mesh),
    )
    if encode is None:
        return step

    def encode_first(state: TrainState, batch: Batch) -> TrainState:
        if "features" not in batch:
            batch = with_features(encode(state.frozen, batch), batch)
        return step(state, batch)

    return encode_first


GPU_OPTIONS = {"xla_gpu_enable_dus_accumulator_zero_init_elimination": True}


def _compiler_options(mesh: Mesh) -> dict[str, bool] | None:
    """What XLA does not do by itself: on a GPU, leave out zeros where the loop over layers fills an array."""
    if mesh.devices.flat[0].platform != "gpu":
        return None
    try:
        jax.jit(jnp.negative, compiler_options=GPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # a compiler that does not know them
        return None
    return GPU_OPTIONS


def jit_encode(config: WavLMConfig, mesh: Mesh, *, accumulation: int = 1) -> Callable[[Params, Batch], Array]:
    """The frozen feature encoder as a program of its own: (frozen, batch) -> features [B, T, C].

    What follows it in a step is then one program, whether the features are made now or were kept from an
    earlier epoch, and training comes out the same to the last bit. Frames beyond a clip's own are zero.

    A CPU works through the rows one at a time: there the last bits of a convolution depend on a row's place
    among the others (and it is no slower).
    """
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: FeatureEncoder(config, nnx.Rngs(0))))

    def encode_rows(encoder: Params, batch: Batch) -> Array:
        with jax.default_matmul_precision(config.matmul_precision):
            features = merge(graphdef, encoder)(input_values(batch), batch["lengths"])
        frames = config.frame_count(batch["lengths"])
        return jnp.where((jnp.arange(features.shape[1]) < frames[:, None])[:, :, None], features, 0)

    def encode(frozen: Params, batch: Batch) -> Array:
        encoder = frozen["wavlm"]["feature_encoder"]
        rows = {name: batch[name] for name in INPUTS}
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        parts = len(batch["lengths"]) // mesh.size if on_cpu else accumulation
        if parts == 1:
            return encode_rows(encoder, rows)
        features = jax.lax.map(functools.partial(encode_rows, encoder), in_parts(rows, parts))
        return features.swapaxes(0, 1).reshape(-1, *features.shape[2:])

    return jax.jit(
        encode,
        in_shardings=(None, sharding.batch_sharding(mesh)),
        out_shardings=sharding.batch_sharding(mesh),
    )


def with_features(features: Array, batch: Batch) -> Batch:
    """The batch with features in place of its audio."""
    return {"features": features} | {k: v for k, v in batch.items() if k not in INPUTS or k == "lengths"}


def in_parts(batch: Batch, parts: int) -> Batch:
    """[B, ...] to [parts, B / parts, ...]: part i takes rows i, i + parts, ...: devices keep their rows."""
    return jax.tree.map(lambda rows: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1), batch)

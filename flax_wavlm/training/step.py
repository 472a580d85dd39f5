"""One training step: a pure function of state and batch, to be compiled over a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from flax_wavlm.data.preprocessor import INPUTS, input_values
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.layers import computing
from flax_wavlm.models.parameters import Params, combine, merge
from flax_wavlm.models.wavlm import FeatureEncoder
from flax_wavlm.ops.switch import kernels
from flax_wavlm.parallel import sharding
from flax_wavlm.recognition.task import BatchLoss, Loss
from flax_wavlm.training.state import SKIPPED_KEPT, TOTALS, TrainState

Array = jax.Array
Batch = dict[str, Array]
"""A batch of `flax_wavlm.data.batches` on the devices, with audio (`preprocessor.INPUTS`) or with features
[B, T, C] and lengths [B]; labels [B, S], label_lengths [B] int32 and valid [B] bool."""

STEP_INPUTS = ("features", *INPUTS, "labels", "label_lengths", "valid")  # of a batch, what a step is given

TrainStep = Callable[[TrainState, Batch], TrainState]
Encode = Callable[[Params, Batch], Array]


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    seed: int,
    accumulation: int = 1,
) -> TrainStep:
    """The function (state, batch) -> state: loss, gradient, and one update of the trained parameters.

    Rows that are not valid count nowhere. Randomness depends on `seed` and `state.step` alone, so a resumed
    run repeats what an uninterrupted one does. If loss or gradient is not finite, the step leaves parameters
    and optimizer as they were and notes itself in `skipped`. Whether the run may go on is decided where that
    is read (`state.skipped_steps`): no step waits for the host.

    Args:
        graphdef: the model's structure, from `models.parameters.split`.
        optimizer: where its update is called with `finite` false, it leaves its own state as it is, as
            `optimizer.adamw` does. One that does not know this argument must have no state to lose.
        loss: of a task.
        seed: of dropout, LayerDrop and SpecAugment.
        accumulation: the number of equal parts that a batch is worked through in. The gradient is that of
            the whole batch.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def scaled_loss(
        params: Params, frozen: Params, batch: Batch, key: Array, scale: Array
    ) -> tuple[Array, Array]:
        model = merge(graphdef, combine(params, frozen))
        if "features" in batch:
            result = model.from_features(batch["features"], batch["lengths"], key=key)
        else:
            result = model(input_values(batch), batch["lengths"], key=key)
        outputs, frame_lengths = result[:2]
        with kernels(model.config.kernels):
            total, infeasible = loss(outputs, frame_lengths, batch)
        return total * scale, infeasible

    gradient = jax.value_and_grad(scaled_loss, has_aux=True)

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
        scale = loss.scale(clips)
        found, grads = compute(state.params, state.frozen, batch, key, scale)
        batch_loss = BatchLoss(*found)
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(grads)
        finite = jnp.isfinite(batch_loss.total) & jnp.isfinite(norm)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
            params = _if(finite, optax.apply_updates(state.params, updates), state.params)
        return TrainState(
            step=state.step + 1,
            params=params,
            frozen=state.frozen,
            opt_state=opt_state,
            totals=_if(finite, _added(state.totals, batch, clips, batch_loss, norm), state.totals),
            skipped=_if(finite, state.skipped, _noted(state)),
        )

    return train_step


def _if(condition: Array, new: Any, old: Any) -> Any:
    """The new tree where the condition [] holds, else the old one."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _added(
    totals: dict[str, Array], batch: Batch, clips: Array, loss: BatchLoss, norm: Array
) -> dict[str, Array]:
    """The run's totals with this batch's."""
    new: dict[str, Any] = {
        "steps": 1,
        "loss": loss.total,
        "grad_norm": norm,
        "samples": jnp.sum(jnp.where(batch["valid"], batch["lengths"], 0)),
        "clips": clips,
        "infeasible": loss.infeasible,
    }
    return {name: totals[name] + new[name] for name in TOTALS}


def _noted(state: TrainState) -> dict[str, Array]:
    """`skipped` with the present step in it."""
    count, steps = state.skipped["count"], state.skipped["steps"]
    return {"count": count + 1, "steps": steps.at[count % SKIPPED_KEPT].set(state.step + 1)}


class StepPrograms(NamedTuple):
    """A training step as it is compiled: one program, or two where the feature encoder is frozen.

    Called on a state and a batch, it gives the new state, which takes over the buffers of the old one.
    """

    step: Any  # jitted, (state, batch) -> state
    encode: Any  # `jit_encode`'s, or None: makes the features of batches that have none yet

    def __call__(self, state: TrainState, batch: Batch) -> TrainState:
        if self.encode is not None and "features" not in batch:
            batch = with_features(self.encode(state.frozen, batch), batch)
        return self.step(state, batch)

    def plans(self, state: TrainState, batch: Batch) -> list[Any]:
        """XLA's `CompiledMemoryStats` of each program, a device's share. Nothing is run.

        Args:
            state, batch: their shapes and types.
        """
        compiled = []
        if self.encode is not None and "features" not in batch:
            compiled.append(self.encode.lower(state.frozen, batch).compile())
            batch = with_features(jax.eval_shape(self.encode, state.frozen, batch), batch)
        compiled.append(self.step.lower(state, batch).compile())
        return [program.memory_analysis() for program in compiled]


def jit_train_step(
    train_step: TrainStep, mesh: Mesh, state: TrainState, encode: Encode | None = None
) -> StepPrograms:
    """The step compiled over the mesh, when it is first called.

    Args:
        train_step: from `make_train_step`.
        state: a state, or its shapes and types.
        encode: from `jit_encode`; applied first to batches that have no features yet.
    """
    state_sharding = sharding.tree_sharding(mesh, state)
    step = jax.jit(
        train_step,
        in_shardings=(state_sharding, sharding.batch_sharding(mesh)),
        out_shardings=state_sharding,
        donate_argnums=0,
        compiler_options=_compiler_options(mesh),
    )
    return StepPrograms(step, encode)


GPU_OPTIONS = {"xla_gpu_enable_dus_accumulator_zero_init_elimination": True}


def _compiler_options(mesh: Mesh) -> dict[str, bool] | None:
    """An option for GPUs: no zeros are written where the loop over layers then fills an array."""
    if mesh.devices.flat[0].platform != "gpu":
        return None
    try:
        jax.jit(jnp.negative, compiler_options=GPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # a compiler that does not know the option
        return None
    return GPU_OPTIONS


def jit_encode(config: WavLMConfig, mesh: Mesh, *, accumulation: int = 1) -> Encode:
    """The frozen feature encoder as a program of its own: (frozen, batch) -> features [B, T, C].

    What follows it in a step is then one program, whether the features are made now or were kept from an
    earlier epoch. So training comes out the same to the last bit. Frames behind a clip's own are zero.

    A CPU works through the rows one at a time: there the last bits of a convolution depend on a row's place
    among the others (and it is no slower).
    """
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: FeatureEncoder(config, nnx.Rngs(0))))

    def encode_rows(encoder: Params, batch: Batch) -> Array:
        with computing(config):
            features = merge(graphdef, encoder)(input_values(batch), batch["lengths"])
        frame_lengths = config.frame_count(batch["lengths"])
        return jnp.where((jnp.arange(features.shape[1]) < frame_lengths[:, None])[:, :, None], features, 0)

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
    """[B, ...] to [parts, B / parts, ...]. Part i takes rows i, i + parts, ...: devices keep their rows."""
    return jax.tree.map(lambda rows: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1), batch)

"""The optimizer: AdamW, its schedules, clipping, rates by part, and updates that are left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flax_wavlm.models.parameters import Params, decay_mask
from flax_wavlm.training.rates import in_head

Array = jax.Array

# --- Schedules: the learning rate of update k = 0, 1, ... ---------------------------------------------------


def linear_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The learning rate of update k = 0, 1, ...: peak * k / warmup_steps, then linearly down to 0 at the end.

    The first update has learning rate 0. Source: `transformers.get_linear_schedule_with_warmup`.
    """
    return _warmed_up(peak, warmup_steps, optax.linear_schedule(peak, 0.0, total_steps - warmup_steps))


def cosine_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """peak * k / warmup_steps, then half a cosine down to 0 at the end.

    Source: `transformers.get_cosine_schedule_with_warmup`.
    """
    return _warmed_up(peak, warmup_steps, optax.cosine_decay_schedule(peak, total_steps - warmup_steps))


def constant_schedule(peak: float, warmup_steps: int) -> optax.Schedule:
    """peak * k / warmup_steps, then the peak. Source: `transformers.get_constant_schedule_with_warmup`."""
    return _warmed_up(peak, warmup_steps, optax.constant_schedule(peak))


def tri_stage_schedule(
    peak: float,
    warmup_steps: int,
    total_steps: int,
    *,
    hold_steps: int,
    initial_share: float,
    final_share: float,
) -> optax.Schedule:
    """Linearly up from initial_share * peak, then the peak for `hold_steps`, then an exponential decay.

    The decay ends at final_share * peak with step `total_steps`: k steps after the hold, of D, the rate is
    peak * final_share^(k / D). Source: fairseq's `tri_stage` scheduler.
    """
    decay_steps = total_steps - warmup_steps - hold_steps
    decay = optax.exponential_decay(peak, decay_steps, final_share, end_value=final_share * peak)
    held = optax.join_schedules([optax.constant_schedule(peak), decay], [hold_steps])
    return _warmed_up(peak, warmup_steps, held, initial_share)


def _warmed_up(
    peak: float, warmup_steps: int, after: optax.Schedule, initial_share: float = 0.0
) -> optax.Schedule:
    """A linear rise to the peak, and then the other schedule from its beginning."""
    if warmup_steps == 0:
        return after
    rise = optax.linear_schedule(initial_share * peak, peak, warmup_steps)
    return optax.join_schedules([rise, after], [warmup_steps])


# --- The optimizer ------------------------------------------------------------------------------------------


class _Pace(NamedTuple):
    """How a part of the model, head or encoder, takes part in an update."""

    learns: Any  # [] bool: whether its moments and parameters change at all
    rate: Any  # [] its learning rate, before the multipliers
    unbiased: tuple[Any, Any]  # [] what the two moments are divided by, since they began at 0


def adamw(
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float,
    clip_norm: float,
    multipliers: Callable[[Params], Params] | None = None,
    head_first_steps: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov & Hutter 2019) after clipping to a global norm; `clip_norm` 0 does not clip.

    It makes the update of `optax.chain(clip_by_global_norm, adamw)` and has that chain's state. In addition
    its update function takes `finite`, a bool array []: where that is false, the state stays as it is.

    The choice between old and new state is made here, moment by moment, and the parameters' update is made
    from the chosen moments. So XLA works in place and in one pass. A choice between optax's finished states
    would make it copy both moments in every step.

    `multipliers` and `head_first_steps` change the program only where they are given, and never the form of
    the state. The first updates of a run may train the head alone. That is a choice inside the one program
    by the schedule's count, as for `finite`: a second program without the encoder's backward pass would save
    about half of the time of these few steps, but each padded length would compile twice. An encoder that
    waits has no part in the clipping's norm. When it begins, the correction of its moments' bias begins too,
    as if it had its own AdamW.

    Args:
        schedule: count of updates to learning rate.
        multipliers: parameters to what their rate is multiplied by, such as `rates.rate_multipliers`.
        head_first_steps: updates that leave everything but the head as it is.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    chain = optax.chain(
        clip,
        optax.adamw(schedule, beta1, beta2, eps, weight_decay=weight_decay, mask=decay_mask),
    )

    def paces(finite: Any, count: Array, scheduled_count: Array) -> tuple[_Pace, _Pace]:
        """Of the head and of the encoder. `count` is 1 in the first update, `scheduled_count` is 0."""

        def pace(learns: Any, rate: Any, count: Array) -> _Pace:
            return _Pace(learns, rate, (1 - beta1**count, 1 - beta2**count))

        rate = schedule(scheduled_count)
        head = pace(finite, rate, count)
        if head_first_steps == 0:
            return head, head
        begun = scheduled_count >= head_first_steps
        own_count = jnp.maximum(count - head_first_steps, 1)
        return head, pace(finite & begun, jnp.where(begun, rate, 0.0), own_count)

    def update(
        grads: Params, state: Any, params: Params | None = None, *, finite: Any = True, **_: Any
    ) -> tuple[Params, Any]:
        assert params is not None  # optional in optax's signature; weight decay needs them
        clip_state, (adam, decay_state, scheduled) = state
        count = optax.safe_increment(adam.count)
        head, encoder = paces(finite, count, scheduled.count)
        each = jax.tree_util.tree_map_with_path

        def pace(path: tuple[Any, ...]) -> _Pace:
            return head if in_head(path) else encoder

        if head_first_steps > 0:
            grads = each(lambda path, grad: jnp.where(pace(path).learns, grad, 0.0), grads)
        scale = jnp.ones(())
        if clip_norm > 0:
            norm = optax.tree.norm(grads)
            scale = jnp.where(norm < clip_norm, 1.0, clip_norm / norm)
        rates = each(lambda path, _: pace(path).rate, params)
        if multipliers is not None:
            rates = jax.tree.map(jnp.multiply, rates, multipliers(params))

        def first(path: tuple[Any, ...], old: Array, grad: Array) -> Array:
            return jnp.where(pace(path).learns, beta1 * old + (1 - beta1) * (grad * scale), old)

        def second(path: tuple[Any, ...], old: Array, grad: Array) -> Array:
            return jnp.where(pace(path).learns, beta2 * old + (1 - beta2) * jnp.square(grad * scale), old)

        def change(
            path: tuple[Any, ...], mu: Array, nu: Array, param: Array, decayed: bool, rate: Array
        ) -> Array:
            unbiased1, unbiased2 = pace(path).unbiased
            direction = (mu / unbiased1) / (jnp.sqrt(nu / unbiased2) + eps)
            return -rate * (direction + weight_decay * param if decayed else direction)

        mu = each(first, adam.mu, grads)
        nu = each(second, adam.nu, grads)
        updates = each(change, mu, nu, params, decay_mask(params), rates)
        adam = adam._replace(count=jnp.where(finite, count, adam.count), mu=mu, nu=nu)
        next_count = jnp.where(finite, optax.safe_increment(scheduled.count), scheduled.count)
        return updates, (clip_state, (adam, decay_state, scheduled._replace(count=next_count)))

    return optax.GradientTransformationExtraArgs(chain.init, update)

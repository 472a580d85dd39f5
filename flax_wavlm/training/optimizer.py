"""The optimizer of the recipe: AdamW, a linear schedule, clipping, and updates that can be left out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flax_wavlm.models.parameters import Params, decay_mask

Array = jax.Array


def linear_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The learning rate of update k = 0, 1, ...: peak * k / warmup_steps, then linearly down to 0 at the end.

    The first update has learning rate 0. Source: `transformers.get_linear_schedule_with_warmup`.
    """
    decay = optax.linear_schedule(peak, 0.0, total_steps - warmup_steps)
    if warmup_steps == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), decay], [warmup_steps])


def adamw(
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov & Hutter 2019) after clipping to a global norm; `clip_norm` 0 does not clip.

    It makes the update of `optax.chain(clip_by_global_norm, adamw)` and has that chain's state. In addition
    its update function takes `finite`, a bool array []: where that is false, the state stays as it is.

    The choice between old and new state is made here, moment by moment, and the parameters' update is made
    from the chosen moments. So XLA works in place and in one pass. A choice between optax's finished states
    would make it copy both moments in every step.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    chain = optax.chain(
        clip,
        optax.adamw(schedule, beta1, beta2, eps, weight_decay=weight_decay, mask=decay_mask),
    )

    def update(
        grads: Params, state: Any, params: Params | None = None, *, finite: Any = True, **_: Any
    ) -> tuple[Params, Any]:
        assert params is not None  # optional in optax's signature; weight decay needs them
        clip_state, (adam, decay_state, scheduled) = state
        scale = jnp.ones(())
        if clip_norm > 0:
            norm = optax.tree.norm(grads)
            scale = jnp.where(norm < clip_norm, 1.0, clip_norm / norm)
        count = optax.safe_increment(adam.count)
        rate = schedule(scheduled.count)
        unbiased1, unbiased2 = (1 - beta**count for beta in (beta1, beta2))

        def first(old: Array, grad: Array) -> Array:
            return jnp.where(finite, beta1 * old + (1 - beta1) * (grad * scale), old)

        def second(old: Array, grad: Array) -> Array:
            return jnp.where(finite, beta2 * old + (1 - beta2) * jnp.square(grad * scale), old)

        def change(mu: Array, nu: Array, param: Array, decayed: bool) -> Array:
            direction = (mu / unbiased1) / (jnp.sqrt(nu / unbiased2) + eps)
            return -rate * (direction + weight_decay * param if decayed else direction)

        mu = jax.tree.map(first, adam.mu, grads)
        nu = jax.tree.map(second, adam.nu, grads)
        updates = jax.tree.map(change, mu, nu, params, decay_mask(params))
        adam = adam._replace(count=jnp.where(finite, count, adam.count), mu=mu, nu=nu)
        next_count = jnp.where(finite, optax.safe_increment(scheduled.count), scheduled.count)
        return updates, (clip_state, (adam, decay_state, scheduled._replace(count=next_count)))

    return optax.GradientTransformationExtraArgs(chain.init, update)

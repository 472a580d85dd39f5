"""Learning-rate schedule, parameter groups, and the optimizer: AdamW as the reference recipe has it."""

from __future__ import annotations

from typing import Any

import jax
import optax
from flax import traverse_util

from flax_wavlm.model import Params


def linear_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The learning rate of update k = 0, 1, ...: peak * k / warmup_steps, then linearly down to 0 at the end.

    Source: `transformers.get_linear_schedule_with_warmup`; the first update has learning rate 0.
    """
    decay = optax.linear_schedule(peak, 0.0, total_steps - warmup_steps)
    if warmup_steps == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), decay], [warmup_steps])


def partition(params: Params, *, freeze_feature_encoder: bool) -> tuple[Params, Params]:
    """Parameters that are trained, and those that are not: the convolutional feature encoder if frozen."""
    flat = traverse_util.flatten_dict(params)
    frozen = {
        path: leaf for path, leaf in flat.items() if freeze_feature_encoder and "feature_encoder" in path
    }
    trained = {path: leaf for path, leaf in flat.items() if path not in frozen}
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(frozen)


def combine(trained: Params, frozen: Params) -> Params:
    """What `partition` took apart."""
    return traverse_util.unflatten_dict(
        traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
    )


def decay_mask(params: Params) -> Any:
    """True for what weight decay applies to: everything but biases and the scales of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def adamw(
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) after clipping to a global norm; `clip_norm` 0 does not clip."""
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    return optax.chain(
        clip,
        optax.adamw(schedule, beta1, beta2, eps, weight_decay=weight_decay, mask=decay_mask),
    )

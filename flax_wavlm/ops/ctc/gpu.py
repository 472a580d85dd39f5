"""The recursion of CTC as one Triton kernel, for NVIDIA GPUs, where launching a kernel a frame adds up."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flax_wavlm.ops.ctc import reference
from flax_wavlm.ops.ctc.reference import LOG_ZERO
from flax_wavlm.ops.partition import shard_batch

Array = jax.Array

WARP_STATES = 128  # states of a warp, four a lane; more warps would wait for one another
MOST_STATES = 32 * WARP_STATES  # a program has at most 32 warps


def forward(emission: Array, may_skip: Array, *, interpret: bool = False) -> tuple[Array, Array]:
    """`flax_wavlm.ops.ctc.reference.forward` as one kernel. `interpret`: on any platform, for tests."""
    _, time, count = emission.shape
    width = max(pl.next_power_of_2(count), 32)
    if width > MOST_STATES or not time:
        return reference.forward(emission, may_skip)

    def rows(emission: Array, may_skip: Array) -> tuple[Array, Array]:
        by_state = pl.BlockSpec((None, time, count), lambda row: (row, 0, 0))
        log_alpha, largest = pl.pallas_call(
            functools.partial(_forward_kernel, width, interpret),
            grid=emission.shape[:1],
            in_specs=[by_state, pl.BlockSpec((None, count), lambda row: (row, 0))],
            out_specs=[by_state, pl.BlockSpec((None, time), lambda row: (row, 0))],
            out_shape=[
                jax.ShapeDtypeStruct(emission.shape, emission.dtype),
                jax.ShapeDtypeStruct(emission.shape[:2], emission.dtype),
            ],
            name="ctc_forward",
            interpret=interpret,
            compiler_params=plgpu.CompilerParams(num_warps=max(width // WARP_STATES, 1), num_stages=1),
        )(emission, may_skip.astype(jnp.int32))
        return log_alpha - largest[:, :, None], largest

    log_alpha, largest = shard_batch(rows)(emission, may_skip)
    return log_alpha, largest


def _forward_kernel(width: int, interpret: bool, emission_ref, may_skip_ref, out_ref, largest_ref):
    """A clip's frames one after another: emission [T, S], may_skip [S] -> log alpha [T, S], largest [T].

    Triton cannot shift what is in registers. So log alpha is written, and read back one and two states
    further on; while that takes its time the largest is found, and it is taken off only then.
    """
    time, count = emission_ref.shape
    states, index = pl.ds(0, width), jnp.arange(width)
    inside = index < count
    may_skip = plgpu.load(may_skip_ref.at[states], mask=inside, other=0) != 0

    def emission(t: Array) -> Array:
        return plgpu.load(emission_ref.at[t, states], mask=inside, other=LOG_ZERO)

    def shifted(t: Array, shift: int) -> Array:
        before = jnp.maximum(index - shift, 0)
        return plgpu.load(out_ref.at[t, before], mask=inside & (index >= shift), other=LOG_ZERO)

    def advance(t: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        log_alpha, one, two, now = carry
        following = emission(jnp.minimum(t + 1, time - 1))  # a frame early: a load takes long
        two = jnp.where(may_skip, two, LOG_ZERO)
        highest = jnp.maximum(jnp.maximum(log_alpha, one), two)
        ways = jnp.exp(log_alpha - highest) + jnp.exp(one - highest) + jnp.exp(two - highest)
        log_alpha = jnp.log(ways) + highest + now
        plgpu.store(out_ref.at[t, states], log_alpha, mask=inside)
        if not interpret:
            plgpu.debug_barrier()  # what a thread of the program wrote, all may read
        one, two = shifted(t, 1), shifted(t, 2)
        largest = jnp.max(log_alpha)
        largest_ref[t] = largest
        return log_alpha - largest, one - largest, two - largest, following

    start = (jnp.where(index == shift, 0.0, LOG_ZERO) for shift in range(3))  # as the scan's
    jax.lax.fori_loop(0, time, advance, (*start, emission(jnp.zeros((), jnp.int32))))

"""Connectionist temporal classification (Graves et al. 2006): the loss, and greedy decoding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flax_wavlm import sharding

Array = jax.Array

LOG_ZERO = -1e30  # finite, so that no difference of two is NaN
UNROLL = 4  # frames in a round of the loop over frames, whose rounds are short
WARP_STATES = 128  # of the kernel, four a lane; more warps than they need wait for one another
MOST_STATES = 32 * WARP_STATES  # as many warps as a program may have


@jax.named_scope("ctc_loss")
def ctc_loss(
    logits: Array, frames: Array, labels: Array, label_lengths: Array, *, blank_id: int
) -> tuple[Array, Array]:
    """The negative log likelihood of each clip's labels, in float32.

    Args:
        logits: [B, T, V], not normalised.
        frames: [B] int, the valid frames of each clip.
        labels: [B, S] int; what follows the first `label_lengths` [B] of a row is ignored.
        blank_id: the blank's index among the V outputs.
    Returns:
        loss [B], and feasible [B] bool: whether the labels, with a blank between equal neighbours, fit in the
        frames. Where they do not, the likelihood is 0: loss and gradient are 0 here, as torch's are with
        `zero_infinity`. Where they fit, equal to `torch.nn.functional.ctc_loss(reduction="none")`.
    """
    positions = jnp.arange(labels.shape[1])
    padded_labels = positions >= label_lengths[:, None]
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & ~padded_labels[:, 1:], axis=1)
    feasible = label_lengths + repeats <= frames
    labels = jnp.where(padded_labels, blank_id, labels)  # whatever stood there
    loss = _negative_log_likelihood(logits.astype(jnp.float32), frames, labels, label_lengths, blank_id)
    return jnp.where(feasible, loss, 0.0), feasible


# Automatic differentiation would make a second loop over the frames, back in time. The textbook's gradient
# needs the recursion from both ends, and that is one loop: from the end it is the same recursion for the
# reversed clip and labels. Loops over frames are what a GPU is slow at.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _negative_log_likelihood(
    logits: Array, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> Array:
    """The loss [B] where the labels fit; anything finite where they do not. Arguments as `ctc_loss`."""
    log_probs = jax.nn.log_softmax(logits)
    return _recursion(log_probs, frames, labels, label_lengths, blank_id)[0]


def _with_gradient(
    logits: Array, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> tuple[Array, Array]:
    """The loss [B], and its gradient [B, T, V]: what the model says less what the labels make of it."""
    batch, time, outputs = logits.shape
    log_probs = jax.nn.log_softmax(logits)
    back = jnp.maximum(frames[:, None] - 1 - jnp.arange(time), 0)  # [B, T]: a clip's frames, the last first
    label_back = jnp.maximum(label_lengths[:, None] - 1 - jnp.arange(labels.shape[1]), 0)
    loss, log_alpha, emission, states = _recursion(
        jnp.concatenate([log_probs, jnp.take_along_axis(log_probs, back[:, :, None], axis=1)]),
        jnp.concatenate([frames, frames]),
        jnp.concatenate([labels, jnp.take_along_axis(labels, label_back, axis=1)]),
        jnp.concatenate([label_lengths, label_lengths]),
        blank_id,
    )
    index = jnp.arange(states.shape[1])
    state_back = 2 * label_lengths[:, None] - index  # [B, S]
    log_beta = jnp.take_along_axis(log_alpha[batch:], back[:, :, None], axis=1)
    log_beta = jnp.take_along_axis(log_beta, jnp.maximum(state_back, 0)[:, None, :], axis=2)
    # Both count the frame itself. A frame is in one of the states: the scale of alpha and beta is free.
    log_posterior = log_alpha[:batch] + log_beta - emission[:batch]
    posterior = jax.nn.softmax(jnp.where(state_back[:, None, :] >= 0, log_posterior, -jnp.inf))
    of_outputs = jnp.einsum(
        "bts,bsv->btv", posterior, jax.nn.one_hot(states[:batch], outputs), precision="highest"
    )
    real = (jnp.arange(time) < frames[:, None])[:, :, None]
    return loss[:batch], jnp.where(real, jnp.exp(log_probs) - of_outputs, 0)


def _recursion(
    log_probs: Array, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> tuple[Array, Array, Array, Array]:
    """Forward variables (the paper's section 4.1) over the states: blank, label, blank, ..., label, blank.

    Returns: the loss [B]; log alpha [B, T, S] less its largest of each frame; the states' log probabilities
        [B, T, S]; and their labels [B, S], S = 2 * labels + 1.
    """
    batch, time, _ = log_probs.shape
    states = jnp.full((batch, 2 * labels.shape[1] + 1), blank_id).at[:, 1::2].set(labels)
    index = jnp.arange(states.shape[1])
    before = jnp.pad(states[:, :-2], ((0, 0), (2, 0)), constant_values=blank_id)
    may_skip = (states != blank_id) & (states != before)  # the blank before a label unlike the last one
    emission = jnp.take_along_axis(log_probs, states[:, None, :], axis=2)

    # By the platform that it is compiled for: the only such place.
    log_alpha, largest = jax.lax.platform_dependent(
        emission, may_skip, cuda=_forward_by_kernel, default=_forward_by_scan
    )
    last = jnp.maximum(frames - 1, 0)[:, None, None]
    final = jnp.take_along_axis(log_alpha, last, axis=1)[:, 0]  # [B, S]
    ends = (index == 2 * label_lengths[:, None]) | (index == 2 * label_lengths[:, None] - 1)
    log_likelihood = jax.nn.logsumexp(jnp.where(ends, final, LOG_ZERO), axis=1)
    log_likelihood += jnp.sum(jnp.where(jnp.arange(time) < frames[:, None], largest, 0), axis=1)
    return jnp.where(frames > 0, -log_likelihood, 0.0), log_alpha, emission, states


def _forward_by_scan(emission: Array, may_skip: Array) -> tuple[Array, Array]:
    """The recursion itself.

    Args: the states' log probabilities [B, T, S]; may_skip [B, S] bool, the states that can follow the last
        but one before them. Returns: log alpha [B, T, S] less its largest of each frame; and those [B, T].
    """

    def advance(log_alpha: Array, now: Array) -> tuple[Array, tuple[Array, Array]]:
        one = jnp.pad(log_alpha[:, :-1], ((0, 0), (1, 0)), constant_values=LOG_ZERO)
        two = jnp.pad(log_alpha[:, :-2], ((0, 0), (2, 0)), constant_values=LOG_ZERO)
        two = jnp.where(may_skip, two, LOG_ZERO)
        highest = jnp.maximum(jnp.maximum(log_alpha, one), two)
        total = jnp.exp(log_alpha - highest) + jnp.exp(one - highest) + jnp.exp(two - highest)
        log_alpha = highest + jnp.log(total) + now
        largest = jnp.max(log_alpha, axis=1)
        log_alpha = log_alpha - largest[:, None]  # else sums over hundreds of frames lose digits
        return log_alpha, (log_alpha, largest)

    # Before the first frame: in the blank that precedes all, with no way to stay out of the first label.
    start = jnp.where(jnp.arange(may_skip.shape[1]) == 0, 0.0, LOG_ZERO) * jnp.ones((len(may_skip), 1))
    _, (log_alpha, largest) = jax.lax.scan(advance, start, emission.swapaxes(0, 1), unroll=UNROLL)
    return log_alpha.swapaxes(0, 1), largest.T


def _forward_by_kernel(emission: Array, may_skip: Array, *, interpret: bool = False) -> tuple[Array, Array]:
    """`_forward_by_scan` as one kernel: on a GPU each round of the scan is several, and launches add up."""
    _, time, count = emission.shape
    width = max(pl.next_power_of_2(count), 32)
    if width > MOST_STATES or not time:
        return _forward_by_scan(emission, may_skip)

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

    log_alpha, largest = sharding.by_rows(rows)(emission, may_skip)
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


def _backward(blank_id: int, gradient: Array, d_loss: Array) -> tuple[Array, None, None, None]:
    return gradient * d_loss[:, None, None], None, None, None


_negative_log_likelihood.defvjp(_with_gradient, _backward)


def reduced_sum(loss: Array, label_lengths: Array, valid: Array, *, reduction: str) -> Array:
    """The sum over valid clips [B] of what torch's reduction "mean" or "sum" adds up.

    "mean" weighs each clip by one over its labels, and then divides by the clips: that division is left to
    the caller, who knows the clips of the whole batch. "sum" needs none.
    """
    if reduction == "mean":
        loss = loss / jnp.maximum(label_lengths, 1)
    return jnp.sum(jnp.where(valid, loss, 0.0))


def greedy(logits: Array, frames: Array, *, blank_id: int) -> Array:
    """`collapse` of the best path of each clip, on the device.

    Args: logits [B, T, V], frames [B] int, the valid ones. Returns: [B, T] int32, in each row the clip's
        labels in order, among entries of -1 where a frame adds none.
    """
    ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    kept = (ids != before) & (ids != blank_id) & (jnp.arange(ids.shape[1]) < frames[:, None])
    return jnp.where(kept, ids, -1)


def collapse(ids: np.ndarray, blank_id: int) -> np.ndarray:
    """The labels that a path of frame labels [T] stands for: repeats merged, then blanks dropped."""
    ids = np.asarray(ids)
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return ids[first & (ids != blank_id)]

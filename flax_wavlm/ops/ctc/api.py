"""The CTC loss (Graves et al. 2006), with the paper's own gradient.

Formula: minus the logarithm of the summed probabilities of all paths that collapse to the labels, in float32.
Residuals: the gradient itself, which is made together with the loss.
Implementations: the recursion over frames as a `lax.scan`, and as one kernel for NVIDIA GPUs in `gpu.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flax_wavlm.ops.ctc import reference
from flax_wavlm.ops.platform import GpuKernel, by_platform, operation

Array = jax.Array

_GPU_FORWARD = GpuKernel("flax_wavlm.ops.ctc.gpu", "forward")


@jax.named_scope("ctc_loss")
def ctc_loss(
    logits: Array,
    frames: Array,
    labels: Array,
    label_lengths: Array,
    *,
    blank_id: int,
    log_prior: Array | None = None,
) -> tuple[Array, Array]:
    """The negative log likelihood of each clip's labels, in float32.

    Args:
        logits: [B, T, V], not normalised.
        frames: [B] int, the valid frames of each clip.
        labels: [B, S] int; labels after the first `label_lengths` [B] of a row are ignored.
        blank_id: the index of the blank among the V outputs.
        log_prior: [V], a constant that is taken from the log probabilities of every frame before paths are
            summed; None: nothing is. With a share of the outputs' log priors, blanks are no longer cheap,
            and labels last longer (Huang et al. 2024, arXiv:2406.02560).
    Returns:
        loss [B], and feasible [B] bool: whether the labels, with a blank between equal neighbours, fit in the
        frames. Where they do not, the likelihood is 0: loss and gradient are 0 here, as torch's are with
        `zero_infinity`. Where they fit, equal to `torch.nn.functional.ctc_loss(reduction="none")`.
    """
    positions = jnp.arange(labels.shape[1])
    padded_labels = positions >= label_lengths[:, None]
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & ~padded_labels[:, 1:], axis=1)
    feasible = label_lengths + repeats <= frames
    labels = jnp.where(padded_labels, blank_id, labels)
    logits = logits.astype(jnp.float32)
    loss = _negative_log_likelihood(logits, log_prior, frames, labels, label_lengths, blank_id)
    return jnp.where(feasible, loss, 0.0), feasible


def _forward_variables(emission: Array, may_skip: Array) -> tuple[Array, Array]:
    return by_platform(reference.forward, _GPU_FORWARD, (), emission, may_skip)


def _with_gradient(
    logits: Array, log_prior: Array | None, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> tuple[Array, Array]:
    """The loss [B], and its gradient [B, T, V]: the model's probabilities less the posteriors of the labels.

    Automatic differentiation would make a second loop over the frames, back in time. This gradient (the
    paper's equation 16) needs the recursion from both ends, which is one loop: from the end it is the same
    recursion, for the reversed clip and labels. Loops over frames are slow on a GPU.

    A log prior is a constant, so it changes the posteriors alone: they still sum to 1 in each frame.
    """
    batch, time, outputs = logits.shape
    log_probs = jax.nn.log_softmax(logits)
    scores = reference.less_prior(log_probs, log_prior)
    back = jnp.maximum(
        frames[:, None] - 1 - jnp.arange(time), 0
    )  # [B, T]: a clip's frames, from its last to its first
    label_back = jnp.maximum(label_lengths[:, None] - 1 - jnp.arange(labels.shape[1]), 0)
    loss, log_alpha, emission, states = reference.recursion(
        _forward_variables,
        jnp.concatenate([scores, jnp.take_along_axis(scores, back[:, :, None], axis=1)]),
        jnp.concatenate([frames, frames]),
        jnp.concatenate([labels, jnp.take_along_axis(labels, label_back, axis=1)]),
        jnp.concatenate([label_lengths, label_lengths]),
        blank_id,
    )
    index = jnp.arange(states.shape[1])
    state_back = 2 * label_lengths[:, None] - index  # [B, S]
    log_beta = jnp.take_along_axis(log_alpha[batch:], back[:, :, None], axis=1)
    log_beta = jnp.take_along_axis(log_beta, jnp.maximum(state_back, 0)[:, None, :], axis=2)
    # Both include the emission of the frame itself. The scales of alpha and beta cancel: posteriors sum to 1.
    log_posterior = log_alpha[:batch] + log_beta - emission[:batch]
    posterior = jax.nn.softmax(jnp.where(state_back[:, None, :] >= 0, log_posterior, -jnp.inf))
    of_outputs = jnp.einsum(
        "bts,bsv->btv", posterior, jax.nn.one_hot(states[:batch], outputs), precision="highest"
    )
    real = (jnp.arange(time) < frames[:, None])[:, :, None]
    return loss[:batch], jnp.where(real, jnp.exp(log_probs) - of_outputs, 0)


def _backward(blank_id: int, gradient: Array, d_loss: Array) -> tuple[Array, None, None, None, None]:
    return gradient * d_loss[:, None, None], None, None, None, None


@operation(reference.negative_log_likelihood, forward=_with_gradient, backward=_backward, static=(5,))
def _negative_log_likelihood(
    logits: Array, log_prior: Array | None, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> Array:
    scores = reference.less_prior(jax.nn.log_softmax(logits), log_prior)
    return reference.recursion(_forward_variables, scores, frames, labels, label_lengths, blank_id)[0]

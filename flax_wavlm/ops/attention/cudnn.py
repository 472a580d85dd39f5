"""Attention by cuDNN's fused kernel, on NVIDIA GPUs in bfloat16. Holds the gated bias [B, H, T, T]."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def cudnn(
    q: Array, k: Array, v: Array, gate: Array, bias: Array, frames: Array, *, implementation: Any = "cudnn"
) -> Array:
    """`flax_wavlm.ops.attention.reference.attention`, with the valid frames [B] of each row, without dropout.

    T may be odd: cuDNN differentiates only a bias of even sizes, so a frame is added, masked and cut off. A
    row without frames attends to its first. `implementation="xla"` computes the same by plain operations.
    """
    time = q.shape[1]
    extra = time % 2
    lengths = jnp.maximum(frames, 1).astype(jnp.int32)

    def attend(q: Array, k: Array, v: Array, gate: Array, bias: Array) -> Array:
        q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, k, v))
        gated = gate[..., None] * bias  # [B, H, T, T]
        gated = jnp.pad(gated, ((0, 0), (0, 0), (0, extra), (0, extra))).astype(q.dtype)
        return jax.nn.dot_product_attention(
            q, k, v, bias=gated, key_value_seq_lengths=lengths, implementation=implementation
        )[:, :time]

    # The backward pass makes the bias again, so that nothing of size [B, H, T, T] is kept for it.
    return jax.checkpoint(attend, policy=_is_of_cudnn, prevent_cse=False)(q, k, v, gate, bias)


def _is_of_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name.startswith("dot_product_attention")

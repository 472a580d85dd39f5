"""TODO."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def cudnn(
    q: Array, k: Array, v: Array, gate: Array, bias: Array, frames: Array, *, implementation: Any = "cudnn"
) -> Array:
    """cuDNN's fused attention. As `xla`, with frames [B] in place of valid, without dropout.

    T may be odd: cuDNN differentiates a bias of even sizes only, so a frame is added, masked and cut off. A
    row without any frame attends to its first. `implementation="xla"`: the same in plain operations.
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

    # Of [B, H, T, T] nothing is kept for the backward pass, which makes the bias again.
    return jax.checkpoint(attend, policy=_is_of_cudnn, prevent_cse=False)(q, k, v, gate, bias)


def _is_of_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name.startswith("dot_product_attention")

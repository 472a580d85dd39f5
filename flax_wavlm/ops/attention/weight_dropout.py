"""Which attention weights the kernels for GPUs drop: a hash of each weight's place, never stored.

Every kernel computes it again, so that the mask is the same in all of them, and for any block size and number
of devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from flax_wavlm.ops.dropout import STEPS

Array = jax.Array

# The multipliers and shifts of MurmurHash3's last step, `fmix32` (Appleby 2011, public domain).
MIX = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
STRIDE = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio, as counters are spaced by Steele et al. 2014


def kept(seed: Array, batch: int, heads: int, time: int, rate: float) -> Array:
    """Which attention weights stay with this seed: bool [B, H, T, T], for queries and their keys.

    This is the definition of the kernels' mask, for tests. It is a pure function of the seed [2] and of the
    numbers of the clip in the global batch, the head, the query and the key.
    """
    words, frames = random_words(seed, batch, heads)[:, :, None, None], jnp.arange(time)
    return stays(words[..., 0], words[..., 1], frames[:, None], frames[None, :], round(rate * STEPS))


def random_words(seed: Array, batch: int, heads: int) -> Array:
    """Two random words [B, H, 2] for every clip and head."""
    seed = seed.astype(jnp.uint32)
    counter = jnp.arange(batch, dtype=jnp.uint32)[:, None, None] * np.uint32(heads)
    counter = counter + jnp.arange(heads, dtype=jnp.uint32)[:, None]
    words = counter * STRIDE + seed
    for after in (seed[::-1], np.uint32(0)):  # fmix32, twice: each word depends on the whole seed
        words = (words ^ (words >> 16)) * MIX[0]
        words = (words ^ (words >> 13)) * MIX[1]
        words = (words ^ (words >> 16)) + after
    return words


def stays(first: Array, second: Array, queries: Array, keys: Array, dropped: int) -> Array:
    """Whether the weights of these int32 queries and keys stay, from the two words of their clip and head.

    A hash of the counter query * 2^16 + key (masks repeat beyond 2^16 keys): `fmix32`, which starts at the
    first word and takes in the second half-way. Its last step is left out, since it changes the lower 16 bits
    only and a rate is a multiple of 2^-16. Queries and keys are multiplied before they are combined: one
    addition is left for each pair.
    """
    counter = first + queries.astype(jnp.uint32) * (STRIDE << np.uint32(16))
    bits = counter + keys.astype(jnp.uint32) * STRIDE
    bits = (bits ^ jax.lax.shift_right_logical(bits, jnp.full_like(bits, 16))) * MIX[0]
    bits = (bits ^ second ^ jax.lax.shift_right_logical(bits, jnp.full_like(bits, 13))) * MIX[1]
    return bits >= np.uint32(dropped << 16)

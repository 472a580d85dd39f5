"""WavLM's attention with a gated relative position bias, computed in one of three ways.

    out[t] = softmax over s of (q[t] . k[s] / sqrt(K) + gate[t] * table[s - t]) . v[s]

for each clip and head, over the clip's valid keys s (Chen et al. 2022, section III-B). Letters as in
model.py: B clips, T frames, H heads, K head size.

    xla      the reference: plain operations, any dtype, attention dropout. Holds [B, H, T, T].
    cudnn    cuDNN's fused kernel: NVIDIA GPUs, bfloat16, no attention dropout. Holds the bias [B, H, T, T].
    pallas   our fused kernels, forward and backward: attention dropout on a GPU only. Memory is linear in T.

All have run on an H100, forward and backward. `auto` takes ours on a GPU in bfloat16, where it was the
fastest in a trial that is not among the benchmarks' results, and the plain one in float32. For TPUs ours is
compiled, but has not run on one yet, so the limits for them are estimates. `choose` says which of them a call
takes, and why; our kernels are in fused_attention.py and, for GPUs, fused_attention_gpu.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.ops.attention import gpu as fused_attention_gpu
from flax_wavlm.ops.attention import tpu as fused_attention
from flax_wavlm.ops.attention.cudnn import cudnn
from flax_wavlm.ops.attention.reference import toeplitz
from flax_wavlm.ops.attention.xla import xla
from flax_wavlm.ops.dense import add_bias

Array = jax.Array
Attend = Callable[[Array, Array, Array, Array | None], Array]
"""(q, k and v [B, T, 3, H, K], their biases [3, H, K], gate [B, H, T] float32, key of attention dropout or
None) -> [B, T, H, K]."""

# --- Which one ----------------------------------------------------------------------------------------------

MIN_FRAMES_PALLAS_TPU = 256  # "auto" on a TPU: below, the kernel's tiles of 128 are mostly padding
MAX_FRAMES_PALLAS_TPU = 3072  # a head's keys, values and bias must fit the vector memory


class Choice(NamedTuple):
    name: str  # "xla", "cudnn" or "pallas"
    reason: str


def choose(
    requested: str, *, platform: str, dtype: str, frames: int, head_size: int, dropout: float
) -> Choice:
    """The implementation for a call, and why; a pure function of what is asked for.

    Args:
        requested: `WavLMConfig.attention`.
        platform: "cpu", "gpu" or "tpu" (`jax.default_backend()`).
        frames: T.
        dropout: of the attention weights in this call; 0 in an evaluation.
    Raises:
        UserError: what is explicitly requested cannot run; nothing else is taken in its stead.
    """
    obstacles = {
        name: _obstacle(name, platform, dtype, frames, head_size, dropout) for name in ("cudnn", "pallas")
    }
    if requested != "auto":
        if obstacle := obstacles.get(requested):
            raise UserError(f"model.attention is {requested!r}, but {obstacle}, or take 'auto' or 'xla'")
        slow = requested == "pallas" and platform == "cpu"
        return Choice(
            requested, "as configured" + (", interpreted and so very slow on a CPU" if slow else "")
        )
    if platform == "cpu":
        return Choice("xla", "on a CPU the fused kernels do not run")
    if platform == "tpu":
        if dropout > 0:
            return Choice("xla", f"no kernel for TPUs has attention dropout, which is {dropout:g}")
        if frames < MIN_FRAMES_PALLAS_TPU:
            return Choice("xla", f"under {MIN_FRAMES_PALLAS_TPU} frames a fused kernel is mostly padding")
        if obstacles["pallas"]:
            return Choice("xla", obstacles["pallas"])
        return Choice("pallas", "fused on a TPU, memory linear in the frames")
    if platform == "gpu":
        if dtype != "bfloat16":
            return Choice(
                "xla", f"on a GPU the fused kernels are fast in bfloat16 only, and this is {dtype!r}"
            )
        if not obstacles["pallas"]:
            return Choice("pallas", "fused on a GPU, attention dropout inside, memory linear in the frames")
        if not obstacles["cudnn"]:
            return Choice("cudnn", "fused on an NVIDIA GPU in bfloat16")
        return Choice("xla", obstacles["pallas"])
    return Choice("xla", f"there is no fused kernel for {platform}")


def _obstacle(name: str, platform: str, dtype: str, frames: int, head_size: int, dropout: float) -> str:
    """Why a fused implementation cannot run and what would let it; empty where it can."""
    if dropout > 0 and (name, platform) != ("pallas", "gpu"):
        return (
            f"attention dropout is {dropout:g} and this fused kernel has none: set "
            "model.overrides.attention_dropout = 0"
        )
    if name == "cudnn":
        if platform != "gpu":
            return f"cuDNN needs an NVIDIA GPU and this is a {platform}: run on one"
        if dtype != "bfloat16":
            return f"cuDNN computes in bfloat16 and model.dtype is {dtype!r}: set model.dtype = 'bfloat16'"
        if head_size % 8 or head_size > 128:
            return f"cuDNN's head sizes are multiples of 8 up to 128 and this is {head_size}"
    if name == "pallas":
        if platform not in ("cpu", "gpu", "tpu"):
            return f"the kernel is for GPUs and TPUs and this is a {platform}: run on one"
        if platform == "gpu" and (head_size < 16 or head_size & (head_size - 1)):
            return f"on a GPU the kernel's head sizes are powers of 2 from 16 on and this is {head_size}"
        if platform == "tpu" and frames > MAX_FRAMES_PALLAS_TPU:
            return (
                f"on a TPU the kernel takes up to {MAX_FRAMES_PALLAS_TPU} frames and these are {frames}: "
                "set data.train_max_seconds"
            )
    return ""


def chosen(config: WavLMConfig, frames: int, *, training: bool) -> Choice:
    """`choose` for a model on this process's default platform; `frames` long rows."""
    return choose(
        config.attention,
        platform=jax.default_backend(),
        dtype=config.dtype,
        frames=frames,
        head_size=config.hidden_size // config.num_attention_heads,
        dropout=config.attention_dropout if training else 0.0,
    )


def describe(config: WavLMConfig, frame_counts: Iterable[int]) -> str:
    """What a run with rows of these lengths will take, for its log.

    UserError where `config.attention` cannot train here: ask before anything is compiled.
    """
    parts = []
    for phase, training in (("training", True), ("evaluation", False)):
        lengths: dict[Choice, list[int]] = {}
        for frames in sorted(frame_counts):
            lengths.setdefault(chosen(config, frames, training=training), []).append(frames)
        for (name, reason), counts in lengths.items():
            some = "" if len(lengths) == 1 else f" of {counts[0]} to {counts[-1]} frames"
            parts.append(f"{name} in {phase}{some} ({reason})")
    return "attention: " + "; ".join(parts)


def prepare(config: WavLMConfig, table: Array, valid: Array | None, batch: int, *, training: bool) -> Attend:
    """The attention of every layer of one call of the model, with what the layers share made once.

    Args:
        table: [H, 2T - 1] float32, the position bias of distances s - t = -(T - 1) ... T - 1.
        valid: [B, T] bool, the keys that are attended to, the first so many of each row; None: all.
    """
    time = (table.shape[1] + 1) // 2
    name = chosen(config, time, training=training).name
    frames = jnp.full(batch, time, jnp.int32) if valid is None else jnp.sum(valid, axis=1, dtype=jnp.int32)
    exact = config.matmul_precision != "default"
    if name == "pallas" and jax.default_backend() == "gpu":
        tiles = fused_attention_gpu.prepare_bias(table, config.dtype)

        def on_gpu(qkv: Array, qkv_bias: Array, gate: Array, key: Array | None) -> Array:
            seed = None if key is None else jax.random.bits(key, (2,), jnp.uint32)
            arrays = qkv, qkv_bias, gate, tiles, frames
            return fused_attention_gpu.attention(
                *arrays, rate=config.attention_dropout, seed=seed, exact=exact
            )

        return on_gpu
    if name == "pallas":
        return _apart(
            lambda q, k, v, gate, _: fused_attention.attention(q, k, v, gate, table, frames, exact=exact)
        )
    bias = toeplitz(table)
    if name == "cudnn":
        return _apart(lambda q, k, v, gate, _: cudnn(q, k, v, gate, bias, frames))
    plainly = functools.partial(xla, rate=config.attention_dropout, precision=config.matmul_precision)
    return _apart(lambda q, k, v, gate, key: plainly(q, k, v, gate, bias, valid, key=key))


def _apart(function: Callable[[Array, Array, Array, Array, Array | None], Array]) -> Attend:
    """For a function of q, k and v as three arrays, their biases added."""

    def attend(qkv: Array, qkv_bias: Array, gate: Array, key: Array | None) -> Array:
        qkv = add_bias(qkv, qkv_bias)
        return function(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], gate, key)

    return attend


FRAMES_GPU = 8  # on a GPU, T is made a multiple of it


def pad_frames(x: Array, valid: Array | None) -> tuple[Array, Array | None]:
    """x [B, T, D] and valid [B, T] with the frames that the platform wants: none more, but on a GPU.

    There cuDNN differentiates a bias of even sizes only, and tensor cores read rows of 16 bytes. Padding once
    is cheaper than padding q, k, v and the bias in every layer.
    """
    extra = -x.shape[1] % FRAMES_GPU if jax.default_backend() == "gpu" else 0
    if extra == 0:
        return x, valid
    if valid is None:
        valid = jnp.ones(x.shape[:2], bool)
    return jnp.pad(x, ((0, 0), (0, extra), (0, 0))), jnp.pad(valid, ((0, 0), (0, extra)))

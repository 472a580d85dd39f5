"""Which implementation of attention a call takes, and why.

    reference  plain jnp with the automatic gradient, where kernels are off (`flax_wavlm.ops.switch`)
    xla        plain jnp with a custom VJP: any platform and dtype, attention dropout; holds [B, H, T, T]
    cudnn      cuDNN's fused kernel: NVIDIA GPUs, bfloat16, no attention dropout; holds the bias [B, H, T, T]
    pallas     our fused kernels: memory is linear in T; attention dropout on a GPU only

All but the TPU's kernel have run on hardware: on an H100, forward and backward. `auto` takes ours on a GPU in
bfloat16, where it was the fastest in a trial that is not among the benchmarks' results, and `xla` in float32.
The kernel for TPUs is compiled, but has not run on one yet, so `auto` does not take it: only its name does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax

from flax_wavlm.errors import UserError
from flax_wavlm.ops.platform import has_triton
from flax_wavlm.ops.switch import VARIABLE, references_only

MAX_FRAMES_TPU = 3072  # a head's keys, values and bias must fit the vector memory; an estimate


class AttentionSpec(NamedTuple):
    """What attention must know of a model."""

    implementation: str  # as requested: "auto", "xla", "cudnn" or "pallas"
    dtype: str  # of q, k and v
    head_size: int  # K
    dropout: float  # of the attention weights, while training
    precision: str  # of float32 products: "default", "high" or "highest"


class Choice(NamedTuple):
    name: str  # "reference", "xla", "cudnn" or "pallas"
    reason: str


def choose(
    requested: str,
    *,
    platform: str,
    dtype: str,
    frames: int,
    head_size: int,
    dropout: float,
    triton: bool = True,
) -> Choice:
    """The implementation for a call, and why; a pure function of its arguments.

    Args:
        requested: `AttentionSpec.implementation`.
        platform: "cpu", "gpu" or "tpu" (`jax.default_backend()`).
        frames: T.
        dropout: of the attention weights in this call; 0 in an evaluation.
        triton: whether jax has Pallas on Triton, which the kernels for GPUs are written in.
    Raises:
        UserError: what is requested by name cannot run; nothing else is taken in its stead.
    """
    obstacles = {
        name: _obstacle(name, platform, dtype, frames, head_size, dropout, triton)
        for name in ("cudnn", "pallas")
    }
    if requested != "auto":
        if obstacle := obstacles.get(requested):
            raise UserError(
                f"model.attention is {requested!r}, but {obstacle}, or take 'auto' or 'xla'",
                field="model.attention",
            )
        slow = requested == "pallas" and platform == "cpu"
        return Choice(
            requested, "as configured" + (", interpreted and so very slow on a CPU" if slow else "")
        )
    if platform == "cpu":
        return Choice("xla", "on a CPU the fused kernels do not run")
    if platform == "tpu":
        return Choice(
            "xla", "the kernel for TPUs has not run on one yet; model.attention = 'pallas' takes it"
        )
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


def _obstacle(
    name: str, platform: str, dtype: str, frames: int, head_size: int, dropout: float, triton: bool
) -> str:
    """Why a fused implementation cannot run and what would let it; "" where it can."""
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
        if platform == "gpu" and not triton:
            return (
                "this jax has no Pallas on Triton, which the kernel is written in: install jax 0.10 to 0.12"
            )
        if platform == "gpu" and (head_size < 16 or head_size & (head_size - 1)):
            return f"on a GPU the kernel's head sizes are powers of 2 from 16 on and this is {head_size}"
        if platform == "tpu" and frames > MAX_FRAMES_TPU:
            return (
                f"on a TPU the kernel takes up to {MAX_FRAMES_TPU} frames and these are {frames}: "
                "set data.train_max_seconds"
            )
    return ""


def chosen(spec: AttentionSpec, frames: int, *, training: bool) -> Choice:
    """`choose` on this process's default platform, for rows of `frames`."""
    if references_only():
        if spec.implementation not in ("auto", "xla"):
            raise UserError(
                f"model.attention is {spec.implementation!r}, but kernels are turned off",
                field="model.attention",
                expected="'auto'",
                do=f"or set model.kernels = 'auto', and {VARIABLE} not at all",
            )
        return Choice("reference", "kernels are turned off")
    platform = jax.default_backend()
    return choose(
        spec.implementation,
        platform=platform,
        dtype=spec.dtype,
        frames=frames,
        head_size=spec.head_size,
        dropout=spec.dropout if training else 0.0,
        triton=platform != "gpu" or has_triton(),
    )


def describe(spec: AttentionSpec, frame_counts: Iterable[int]) -> str:
    """What a run with rows of these lengths takes, for its log.

    UserError where `spec.implementation` cannot train here: ask before anything is compiled.
    """
    parts = []
    for phase, training in (("training", True), ("evaluation", False)):
        lengths: dict[Choice, list[int]] = {}
        for frames in sorted(frame_counts):
            lengths.setdefault(chosen(spec, frames, training=training), []).append(frames)
        for (name, reason), counts in lengths.items():
            some = "" if len(lengths) == 1 else f" of {counts[0]} to {counts[-1]} frames"
            parts.append(f"{name} in {phase}{some} ({reason})")
    return "attention: " + "; ".join(parts)

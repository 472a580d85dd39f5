"""The one place that chooses an implementation of an operation.

An operation has a public function (`api.py`), its definition in plain jnp (`reference.py`) and perhaps
kernels (`gpu.py`, `tpu.py`). Which of them a call takes is decided here, while JAX traces it:

- where kernels are off (`switch.py`): the reference, with JAX's automatic gradient;
- else the operation with its custom VJP, computed by a kernel where one has run on the platform that the
  program is compiled for, and by plain jnp elsewhere.

Attention has more choices, which its own `choice.py` weighs by the same rules.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from flax_wavlm.ops.switch import references_only

Array = jax.Array
Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger(__name__)

_also_for_cuda: ContextVar[bool] = ContextVar("also_for_cuda", default=False)


def operation(
    reference: Callable[..., Any],
    *,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    static: tuple[int, ...] = (),
) -> Callable[[Function], Function]:
    """A decorator: the function gets a custom VJP, and where kernels are off the reference takes its place.

    Args:
        reference: the definition, with the same arguments and results.
        forward, backward: as for `jax.custom_vjp`.
        static: the places of arguments that are settings and not arrays.
    """

    def decorate(function: Function) -> Function:
        custom = jax.custom_vjp(function, nondiff_argnums=static)
        custom.defvjp(forward, backward)

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            return (reference if references_only() else custom)(*arguments, **named)

        return call  # type: ignore[return-value]  # it takes what the function takes

    return decorate


# --- The choice ---------------------------------------------------------------------------------------------


class GpuKernel(NamedTuple):
    """A function that needs Pallas on Triton. Its module is imported when it is first taken."""

    module: str
    name: str

    def load(self) -> Callable[..., Any] | None:
        """The function; None where this jax has no Pallas on Triton."""
        return getattr(importlib.import_module(self.module), self.name) if has_triton() else None


@functools.cache
def has_triton() -> bool:
    """Whether this jax has Pallas on Triton, which our kernels for GPUs are written in.

    A jax without it is announced once: then NVIDIA GPUs take plain jnp, and cuDNN for attention.
    """
    try:
        importlib.import_module("jax.experimental.pallas.triton")
    except ImportError as error:
        log.warning(
            "jax %s has no Pallas on Triton (%s): on NVIDIA GPUs plain operations, and cuDNN for attention, "
            "take the place of our kernels",
            jax.__version__,
            error,
        )
        return False
    return True


@functools.cache
def _has_gpu() -> bool:
    try:
        return bool(jax.local_devices(backend="gpu"))
    except RuntimeError:  # there is no such backend
        return False


@contextlib.contextmanager
def compiling_for_cuda() -> Iterator[None]:
    """For programs that are lowered for CUDA in a process without a GPU: kernels are traced there too."""
    token = _also_for_cuda.set(True)
    try:
        yield
    finally:
        _also_for_cuda.reset(token)


def compiles_for_cuda() -> bool:
    """Whether what is traced now may be compiled for CUDA. Where not, tracing kernels would be wasted."""
    return _also_for_cuda.get() or _has_gpu()


def by_platform(
    plain: Callable[..., Any],
    cuda: Callable[..., Any] | GpuKernel,
    settings: tuple[Any, ...],
    *arrays: Array,
) -> Any:
    """`cuda(*settings, *arrays)` in programs for CUDA, `plain(*settings, *arrays)` in all others.

    By the platform that a program is compiled for, since one process may have a CPU and a GPU.
    """
    plain = functools.partial(plain, *settings)
    function = cuda if compiles_for_cuda() else None
    if isinstance(function, GpuKernel):
        function = function.load()
    if function is None:
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, cuda=functools.partial(function, *settings), default=plain)


def rows_by_platform(
    plain: Callable[..., tuple[Array, ...]], cuda: GpuKernel, settings: tuple[Any, ...], *arrays: Array
) -> tuple[Array, ...]:
    """`by_platform` for a kernel that works on the rows of the first array, as norms do.

    No kernel takes float64, or an array without rows: the plain form does.
    """
    x, *others = arrays
    if x.ndim < 2 or x.size == 0 or any(array.dtype == jnp.float64 for array in (x, *others)):
        return plain(*settings, *arrays)

    @jax.custom_batching.custom_vmap
    def either(*arrays: Array) -> tuple[Array, ...]:
        return by_platform(plain, cuda, settings, *arrays)

    @either.def_vmap
    def vmapped(size: int, batched: list[bool], *arrays: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        """By the plain form: JAX cannot batch what is partitioned by hand."""
        axes = [0 if axis else None for axis in batched]
        results = jax.vmap(functools.partial(plain, *settings), in_axes=axes)(*arrays)
        return results, (True,) * len(results)

    return either(*arrays)

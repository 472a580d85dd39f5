"""The switch that turns kernels and custom VJPs off, for debugging and for a first run on a new platform.

With `model.kernels = "reference"`, or the environment variable FLAX_WAVLM_KERNELS=reference, every operation
is its definition in plain jnp, with JAX's automatic gradient. The switch is read while JAX traces a function.
No jax here: flags are checked before it is imported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from flax_wavlm.errors import UserError

VARIABLE = "FLAX_WAVLM_KERNELS"
KERNELS = ("auto", "reference")

_references: ContextVar[bool] = ContextVar("references", default=False)


@contextlib.contextmanager
def kernels(mode: str) -> Iterator[None]:
    """Code that is traced inside takes references only, if `mode` is "reference"; "auto" changes nothing."""
    if mode not in KERNELS:
        raise UserError(field="model.kernels", found=mode, expected=" or ".join(map(repr, KERNELS)))
    token = _references.set(mode == "reference" or _references.get())
    try:
        yield
    finally:
        _references.reset(token)


def references_only() -> bool:
    """Whether calls that are traced now take references, with automatic gradients.

    Raises UserError where FLAX_WAVLM_KERNELS has a value that is not known.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in KERNELS:
        raise UserError(
            f"the environment variable {VARIABLE} is {wanted!r}",
            expected=" or ".join(map(repr, KERNELS)),
            do="set it to one of these, or not at all",
        )
    return wanted == "reference" or _references.get()

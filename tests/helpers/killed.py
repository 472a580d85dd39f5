"""A run that ends within this process as if it had been killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flax_wavlm.parallel import sharding


class Killed(BaseException):
    """Stands for a signal: nothing in the run may catch it."""


@contextmanager
def killed_at(batch: int) -> Iterator[None]:
    """The block ends when it puts its batch of this number, from 1, onto the devices."""
    put_batch, calls = sharding.put_batch, 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == batch:
            raise Killed
        return put_batch(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sharding, "put_batch", dying)
        with pytest.raises(Killed):
            yield

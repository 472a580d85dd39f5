"""What tests look at in a UserError: its parts, and not the sentence that they make."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from flax_wavlm.errors import ABSENT, UserError


@dataclass(frozen=True)
class Parts:
    """The parts that an error must have. Those that are left out may be anything.

    `field` and `found` must be equal; the others are regular expressions that must be found in the part.
    """

    problem: str = ""
    where: str = ""
    field: str = ""
    found: Any = ABSENT
    expected: str = ""
    do: str = ""

    def check(self, error: BaseException) -> None:
        assert isinstance(error, UserError), repr(error)
        assert "\n" not in str(error)
        for name in ("problem", "where", "expected", "do"):
            assert re.search(getattr(self, name), getattr(error, name)), (name, str(error))
        if self.field:
            assert error.field == self.field, str(error)
        if self.found is not ABSENT:
            assert error.found == self.found or both_nan(error.found, self.found), str(error)


def both_nan(one: Any, other: Any) -> bool:
    return all(isinstance(value, float) and math.isnan(value) for value in (one, other))


@contextmanager
def refused(problem: str = "", **parts: Any) -> Iterator[None]:
    """The block must raise a UserError with these parts."""
    with pytest.raises(UserError) as raised:
        yield
    Parts(problem, **parts).check(raised.value)

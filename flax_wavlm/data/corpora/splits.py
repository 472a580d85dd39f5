"""Splits by their roles: which of a corpus's splits to train on, to choose with, and to test on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flax_wavlm.data.corpora.utterance import NoSplit
from flax_wavlm.errors import did_you_mean, some

log = logging.getLogger(__name__)

ROLES: Final = ("train", "dev", "test")
JOINED = "+"  # stands between the names of splits that are read as one

# The usual names of each role's split, the better one first. They count in upper and lower case.
_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val", "development", "eval", "evaluation"),
    "test": ("test-core", "test", "testing"),  # TIMIT's own "test" holds its dev speakers too
}
_EVALUATION = ("eval", "evaluation")  # the test split of those corpora that have another dev split


def splits_by_role(names: Sequence[str]) -> dict[str, str]:
    """Role to the split's name, of the names that a corpus has; a role that it lacks is absent.

    A role has the split with one of its usual names. Where there is none, it has those whose names begin with
    one, such as "train-clean-100" or "train.360": all of them joined by "+" for "train", and a single one for
    the others, one that is called clean if there is one.
    """
    found = {role: split for role in ROLES if (split := _split_of(role, names))}
    unused = [name for name in names if name.lower() in _EVALUATION and name not in found.values()]
    if unused and "dev" in found:
        found.setdefault("test", unused[0])
    return found


def role_of(name: str) -> str:
    """The role whose usual name this is; "" where it is no role's."""
    return next((role for role, usual in _NAMES.items() if name.lower() in usual), "")


def no_such_split(where: str | Path, split: str, there: Sequence[str]) -> NoSplit:
    """The error for a split that is not there, which lists those that are."""
    return NoSplit(
        f"there is no split {split!r}",
        where=where,
        field="split",
        expected=f"one of {some(there)}" if there else "a corpus with splits",
        do=did_you_mean(split, there) if there else "check data.path",
    )


def _split_of(role: str, names: Sequence[str]) -> str:
    """The split of a role, or several joined; "" where there is none."""
    usual = _NAMES[role]
    for exact in usual:
        if same := [name for name in names if name.lower() == exact]:
            return same[0]
    for first in usual:
        if begun := sorted(name for name in names if re.match(rf"{first}[._-]", name, re.IGNORECASE)):
            if role == "train":
                return JOINED.join(begun)
            clean = [name for name in begun if "clean" in name.lower()]
            return (clean or begun)[0]
    return ""

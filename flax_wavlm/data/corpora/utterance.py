"""Utterances, and the clips of a corpus that cannot be used, with the reason.

A reader (`timit`, `manifest`, `kaldi` and so on) finds clips and their text, and decodes no audio. It returns
`(utterances, skipped)`, both sorted by id. It raises NoSplit where a split is missing, and UserError where a
split is empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flax_wavlm.data.corpora.folders import one_line
from flax_wavlm.errors import UserError, some

if TYPE_CHECKING:
    import numpy as np


class Samples(NamedTuple):
    """Audio that a corpus holds as numbers."""

    samples: np.ndarray  # [N], or [N, channels]; floats of full scale 1.0, or int16
    rate: int  # Hz


class NoSplit(UserError):
    """The corpus has no such split; the message lists those that it has."""


# How split names begin, in the order in which people think of them.
_USUAL = ("train", "dev", "val", "eval", "test")
_USUAL_NAME = re.compile(
    r"(train(ing)?|dev(elopment)?|val(id(ation)?)?|eval(uation)?|test(ing)?)(?![a-z])", re.ASCII
)


def is_usual_split(name: str) -> bool:
    """Whether a file or folder of this name is a split: "train", "dev-clean", "validation", "Test"."""
    return _USUAL_NAME.match(name.lower()) is not None


def own_split(folder: Path) -> str:
    """The name of a folder's only split: the folder's own if it is a split's, else "train"."""
    return folder.name if is_usual_split(folder.name) else "train"


def in_usual_order(splits: Iterable[str]) -> list[str]:
    """The names of splits, each once: train, dev, test and their kin first, then the others by name."""
    first = {split: [split.lower().startswith(usual) for usual in _USUAL] for split in splits}
    return sorted(first, key=lambda split: ([not usual for usual in first[split]], split))


def no_split(where: str | Path, split: str, there: Sequence[str], expected: str) -> NoSplit:
    """The error for a split that is not there. `expected` says what it would have been."""
    return NoSplit(
        f"there is no split {split!r}",
        where=where,
        expected=f"one of {some(there)}" if there else expected,
        do="" if there else "check data.path",
    )


@dataclass(frozen=True)
class Utterance:
    """One clip: where its audio is, and its text as the corpus writes it.

    Attributes:
        audio: a file, or a function that gives a file's bytes, or samples with their rate.
        start, end: the part of the recording that was said, in seconds from its beginning; None: from its
            beginning, to its end.
        duration: what the corpus states as the length of that part (or of the whole recording), in seconds;
            None where it states nothing.
    """

    id: str
    audio: Path | Callable[[], bytes | Samples]
    text: str
    speaker: str = ""
    duration: float | None = None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A clip that the corpus holds and that cannot be used, with the reason."""

    id: str
    reason: str


def by_id(clip: Utterance | Skipped) -> str:
    """The key by which readers sort."""
    return clip.id


class EmptySplit(UserError):
    """The split is there, and holds no clip that can be used."""


def empty_split(where: str, expected: str, skipped: list[Skipped]) -> EmptySplit:
    """The error for a split without a usable clip, with the reason of the first that was skipped."""
    found = (
        f"{len(skipped):,} unusable ({one_line(skipped[0].id)}: {one_line(skipped[0].reason)})"
        if skipped
        else "none"
    )
    return EmptySplit(
        f"no usable clip, {found}", where=where, expected=expected, do="check the path and its files"
    )

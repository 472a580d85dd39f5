"""Utterances, and the clips of a corpus that cannot be used, with the reason.

A reader (`timit`, `manifest`, `hub`) finds clips and their text, and decodes no audio. It returns
`(utterances, skipped)`, both sorted by id, and raises UserError where a split is missing or empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flax_wavlm.errors import UserError

if TYPE_CHECKING:
    import numpy as np


class Samples(NamedTuple):
    """Audio that a corpus holds as numbers."""

    samples: np.ndarray  # [N], or [N, channels]; floats of full scale 1.0, or int16
    rate: int  # Hz


class NoSplit(UserError):
    """The corpus has no such split; the message lists those that it has."""


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
    found = f"{len(skipped):,} unusable ({skipped[0].id}: {skipped[0].reason})" if skipped else "none"
    return EmptySplit(
        f"no usable clip, {found}", where=where, expected=expected, do="check the path and its files"
    )

"""Utterances, and the clips of a corpus that cannot be used, with the reason.

A reader (`timit`, `manifest`, `hub`) finds clips and their text, and decodes no audio. It returns
`(utterances, skipped)`, both sorted by id, and raises UserError where a split is missing or empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flax_wavlm.errors import UserError


@dataclass(frozen=True)
class Utterance:
    """One clip: where its audio is, and its text as the corpus writes it.

    `audio` is a file, or a function that gives a file's bytes. `duration` is in seconds, None where the
    corpus does not state it.
    """

    id: str
    audio: Path | Callable[[], bytes]
    text: str
    speaker: str = ""
    duration: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A clip that the corpus holds and that cannot be used, with the reason."""

    id: str
    reason: str


def by_id(clip: Utterance | Skipped) -> str:
    """The key by which readers sort."""
    return clip.id


def empty_split(where: str, expected: str, skipped: list[Skipped]) -> UserError:
    """The error for a split without a usable clip, with the reason of the first that was skipped."""
    found = f"{len(skipped):,} unusable ({skipped[0].id}: {skipped[0].reason})" if skipped else "none"
    return UserError(
        f"no usable clip, {found}", where=where, expected=expected, do="check the path and its files"
    )

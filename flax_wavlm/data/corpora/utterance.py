"""TODO."""

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
    """A clip that the corpus holds and training cannot use."""

    id: str
    reason: str


def by_id(clip: Utterance | Skipped) -> str:
    return clip.id


def empty_split(where: str, expected: str, skipped: list[Skipped]) -> UserError:
    found = f"{len(skipped)} unusable ({skipped[0].id}: {skipped[0].reason})" if skipped else "none"
    return UserError(f"{where}: no usable clip, {found}. Expected {expected}: check the path and its files.")

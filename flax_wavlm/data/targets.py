"""What clips are to be recognised as: the part of a task that the data's preparation knows."""

from __future__ import annotations

from typing import Protocol


class Targets(Protocol):
    """How an utterance's text becomes a clip's labels: what `clips.py` asks of a task.

    `tokenizer.CTCTokenizer` is one.
    """

    def normalise(self, text: str) -> str:
        """The text that hypotheses are compared with; "" where the utterance has none."""

    def encode(self, text: str) -> list[int]:
        """The labels of a normalised text; UserError where it has none."""

    def unknown_characters(self, text: str) -> set[str]:
        """What the labels cannot say of a normalised text; named in the log."""

    def unknown_share(self, text: str) -> float:
        """How much of a normalised text that is: 0 to 1. Above one half, a clip is not trained on."""

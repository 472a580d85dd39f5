"""Sentences to be spoken, drawn from small grammars without replacement.

A template is a sequence of slots, and a slot is a choice of words or phrases. A grammar is several templates.
Its sentences have numbers from 0, so a random choice of numbers is a random choice of sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

Slot = tuple[str, ...]
Template = tuple[Slot, ...]


class Grammar(NamedTuple):
    """Sentences of one language.

    Attributes:
        voice: espeak-ng's name of the language and accent.
        templates: of the sentences that every split may have.
        unseen: of sentences that only dev and test have; each has a word that `templates` lack.
        blank: between the words as they are written.
        end: the mark at the end of a sentence.
        word_times: whether espeak-ng reports the begin of every word.
    """

    voice: str
    templates: tuple[Template, ...]
    unseen: tuple[Template, ...] = ()
    blank: str = " "
    end: str = "."
    word_times: bool = True

    def spell(self, templates: tuple[Template, ...], number: int) -> str:
        """The sentence of a number below `count(templates)`."""
        number = int(number)
        for template in templates:
            if number < (size := _size(template)):
                break
            number -= size
        words = []
        for slot in reversed(template):
            number, choice = divmod(number, len(slot))
            words.append(slot[choice])
        text = self.blank.join(reversed(words))
        return text[:1].upper() + text[1:] + self.end


def count(templates: tuple[Template, ...]) -> int:
    """How many sentences the templates have together."""
    return sum(map(_size, templates))


def draw(rng: np.random.Generator, number: int, possible: int, taken: Iterable[int] = ()) -> np.ndarray:
    """`number` different integers below `possible`, none of them in `taken`: int [number]."""
    taken = sorted(taken)
    drawn = rng.choice(possible - len(taken), number, replace=False)
    for one in taken:  # ranks among those that are left become numbers
        drawn[drawn >= one] += 1
    return drawn


def _size(template: Template) -> int:
    return math.prod(map(len, template))

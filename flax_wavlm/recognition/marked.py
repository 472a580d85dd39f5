"""Transcripts beside their references for a person to read: aligned, with the errors in brackets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jiwer

from flax_wavlm.errors import MOST_CHARACTERS, printable
from flax_wavlm.recognition.evaluate import Prediction

SAMPLES = 3


class Marked(NamedTuple):
    """A clip's two texts, each on one line. Equal parts stand one below the other."""

    id: str
    reference: str
    hypothesis: str

    def __str__(self) -> str:
        return f"{self.id}\n  reference   {self.reference}\n  hypothesis  {self.hypothesis}".rstrip()


def samples(predictions: Sequence[Prediction]) -> list[Marked]:
    """The same few clips of a set at every evaluation: by their ids the first, the middle and the last.

    Words are compared; characters, where most references are a single word.
    """
    by_id = sorted(predictions, key=lambda prediction: prediction.id)
    last = len(by_id) - 1
    places = sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)}) if by_id else []
    single = sum(len(prediction.reference.split()) == 1 for prediction in by_id)
    by_characters = 2 * single > len(by_id)
    return [marked(by_id[place], by_characters=by_characters) for place in places]


def marked(prediction: Prediction, *, by_characters: bool = False) -> Marked:
    """Aligns hypothesis and reference with the fewest errors, as their error rate counts them.

    What differs is in brackets: [his] beside [this] was replaced, [] is where words are missing or too many.
    Long texts are cut, both at the same place.
    """
    compare = jiwer.process_characters if by_characters else jiwer.process_words
    found = compare([printable(prediction.reference)], [printable(prediction.hypothesis)])
    join = ("" if by_characters else " ").join
    references, hypotheses = [], []
    for chunk in found.alignments[0]:
        said = join(found.references[0][chunk.ref_start_idx : chunk.ref_end_idx])
        heard = join(found.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx])
        if chunk.type != "equal":
            said, heard = f"[{said}]", f"[{heard}]"
        width = max(len(said), len(heard))
        references.append(said.ljust(width))
        hypotheses.append(heard.ljust(width))
    return Marked(printable(prediction.id), _cut(join(references)), _cut(join(hypotheses)))


def _cut(text: str) -> str:
    text = text.rstrip()
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."

"""What a corpus's texts are written in: symbols with their counts, what was removed, what is doubtful."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.text import APOSTROPHES, BEFORE
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import some

RARE = 10  # fewer occurrences are shown with a clip
MOST_SHOWN = 60  # on a line of the log; the table has all


class Alphabet(NamedTuple):
    """`summary`: lines for the log. `announced`: what to look at. `table`: everything, tab-separated."""

    summary: str
    announced: list[str]
    table: str


@dataclass
class _Counts:
    """Occurrences over the splits."""

    symbols: Counter[str] = field(default_factory=Counter)
    in_train: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)  # characters as the corpus has them
    example: dict[str, str] = field(default_factory=dict)  # symbol, or what was removed, to a clip


def describe_alphabet(tokenizer: CTCTokenizer, utterances: Mapping[str, Sequence[Utterance]]) -> Alphabet:
    """Counts the texts of each split, as the tokenizer's rule makes them."""
    counts = _count(tokenizer, utterances)
    announced = [*_announced(tokenizer, counts, len(utterances) > 1)]
    lines = [f"the vocabulary: {tokenizer.size} labels; symbols and how often: {_listed(counts.symbols)}"]
    rare = [symbol for symbol, count in counts.symbols.items() if count < RARE]
    if rare:
        shown = [
            f"{_name(s)} {counts.symbols[s]}x ({counts.example[s]})" for s in _by_count(rare, counts.symbols)
        ]
        lines.append(f"rare symbols, fewer than {RARE} times, each with a clip: {some(shown, MOST_SHOWN)}")
    if counts.removed:
        lines.append(f"not in the vocabulary, as the text rule removes them: {_listed(counts.removed)}")
    return Alphabet("\n".join(lines), announced, _table(tokenizer, counts))


def _count(tokenizer: CTCTokenizer, utterances: Mapping[str, Sequence[Utterance]]) -> _Counts:
    counts = _Counts()
    for split, clips in utterances.items():
        for clip in clips:
            text = tokenizer.normalise(clip.text)
            symbols = Counter(tokenizer.symbols(text))
            written = Counter(unicodedata.normalize("NFC", clip.text))
            removed = _removed(written, Counter(text))
            counts.symbols.update(symbols)
            counts.written.update(written)
            counts.removed.update(removed)
            if split == "train":
                counts.in_train.update(symbols)
            for symbol in (*symbols, *removed):
                counts.example.setdefault(symbol, clip.id)
    return counts


def _removed(written: Counter[str], text: Counter[str]) -> Counter[str]:
    """The marks and invisible characters that a text has lost. An apostrophe of another form is not lost."""
    lost = written - text
    apostrophes = sum(text[c] for c in APOSTROPHES) - sum(written[c] for c in APOSTROPHES if c in text)
    for mark in APOSTROPHES:
        taken = min(lost[mark], max(0, apostrophes))
        lost[mark], apostrophes = lost[mark] - taken, apostrophes - taken
    return Counter({c: n for c, n in lost.items() if n > 0 and not c.isspace() and _may_be_removed(c)})


def _may_be_removed(character: str) -> bool:
    return unicodedata.category(character)[0] in "PSC" or unicodedata.category(character) == "Me"


def _announced(tokenizer: CTCTokenizer, counts: _Counts, several: bool) -> Iterator[str]:
    delimiter, rule = tokenizer.delimiter, tokenizer.rule
    if delimiter and counts.written[delimiter]:
        yield (
            f"the text has {counts.written[delimiter]} times {delimiter!r}, the word delimiter, "
            f"which cannot be a label: read as a blank (clip {counts.example.get(delimiter, 'unknown')})"
        )
    for special in tokenizer.specials:
        if spelt := counts.symbols[special]:
            yield (
                f"the text spells {special!r} {spelt} times, which the tokenizer uses for itself (clip "
                f"{counts.example[special]}); to remove it, set text.remove or correct the transcripts"
            )
    dotted = counts.written["İ"] + counts.written["ı"]
    if dotted and rule.language is None and rule.casing != "keep" and rule.preset != BEFORE:
        yield (
            f"the text has İ or ı {dotted} times and text.language is not set: for Turkish or Azeri "
            "set it to tr or az, as I is otherwise read as i"
        )
    if rule.case == "keep" and not tokenizer.by_token and (lacking := tokenizer.lacking_case()):
        yield f"text.case is keep, but the tokenizer's vocabulary has no {lacking}-case letters"
    if outside := [symbol for symbol in counts.symbols if several and not counts.in_train[symbol]]:
        shown = [f"{_name(s)} ({counts.example[s]})" for s in _by_count(outside, counts.symbols)]
        yield f"symbols that no training text has, which cannot be learnt: {some(shown, MOST_SHOWN)}"


def _by_count(symbols: Sequence[str], counts: Counter[str]) -> list[str]:
    return sorted(symbols, key=lambda symbol: (-counts[symbol], symbol))


def _listed(counts: Counter[str]) -> str:
    shown = [f"{_name(symbol)} {counts[symbol]}" for symbol in _by_count(list(counts), counts)]
    return some(shown, MOST_SHOWN)


def _name(symbol: str) -> str:
    """A symbol as it can be read: a blank by name, a combining or invisible character by its code too."""
    if symbol == " ":
        return "blank"
    if len(symbol) == 1 and unicodedata.category(symbol)[0] in "MCZ":
        return f"U+{ord(symbol):04X}"
    return symbol


def _table(tokenizer: CTCTokenizer, counts: _Counts) -> str:
    rows = ["symbol\tcount\tin train\tlabel\texample"]
    for symbol in _by_count(list(counts.symbols), counts.symbols):
        label = "unknown" if tokenizer.unknown_characters(symbol) else "label"
        cells = (
            _name(symbol),
            counts.symbols[symbol],
            counts.in_train[symbol],
            label,
            counts.example[symbol],
        )
        rows.append("\t".join(map(str, cells)))
    for mark in _by_count(list(counts.removed), counts.removed):
        rows.append(f"{_name(mark)}\t{counts.removed[mark]}\t\tremoved\t{counts.example[mark]}")
    return "\n".join(rows) + "\n"

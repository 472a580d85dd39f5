"""The text rule where a vocabulary is there already: texts are spelt in the characters that it has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence

from flax_wavlm.data.text import (
    APOSTROPHES,
    BEFORE,
    TextRule,
    before_0_2,
    folded_blanks,
    in_case,
    is_mark,
    without_marks,
)
from flax_wavlm.data.unicode_form import one_form

_PLACEHOLDER = 0xF0000  # private use: no text has these characters, and no rule touches them
_ARMENIAN_EW = "\u0587"  # the letter that one_form takes apart, as Unicode does


def pattern_of(tokens: Collection[str]) -> re.Pattern[str]:
    """Finds the pieces of a text: the longest token that fits, or else one character."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)


def kept_whole(text: str, tokens: Sequence[str], rule: Callable[[str], str]) -> str:
    """`rule(text)`, where the tokens in the text pass as if each were one letter."""
    present = sorted((token for token in tokens if token in text), key=lambda token: (-len(token), token))
    for number, token in enumerate(present):
        text = text.replace(token, chr(_PLACEHOLDER + number))
    text = rule(text)
    for number, token in enumerate(present):
        text = text.replace(chr(_PLACEHOLDER + number), token)
    return text


class Spelling:
    """A text rule that follows a vocabulary: it gives a text in the vocabulary's characters.

    A character is taken in the first form that the vocabulary knows: itself, in lower case, in upper case,
    taken apart (NFD), in its compatibility form, as another apostrophe. A letter that it does not know in any
    form stays, and is read as unknown. A mark that it does not know is treated as the rule's preset says.
    Tokens of several characters pass whole.
    """

    def __init__(self, rule: TextRule, tokens: frozenset[str], *, spaced: bool):
        """
        Args:
            tokens: the vocabulary, without special tokens and word delimiter.
            spaced: the vocabulary has a word delimiter; without one, blanks are dropped.
        """
        self._rule, self._tokens, self._spaced = rule, tokens, spaced
        self._characters = frozenset(token for token in tokens if len(token) == 1)
        letters = [token for token in self._characters if token.isalpha()]
        has_upper, has_lower = any(map(str.isupper, letters)), any(map(str.islower, letters))
        self._upper_case = has_upper and not has_lower
        # What a rule or a change of case would take apart: "<noise>".
        self._whole = sorted(token for token in tokens if len(token) > 1 and not token.isalpha())
        self._case = rule.chosen_case or (
            "upper" if self._upper_case else "keep" if has_upper else rule.casing
        )
        self._known_marks = frozenset(filter(is_mark, self._characters)) | frozenset(rule.keep or "")
        self._spelled: dict[int, str] = _Table(self._spell)

    @property
    def has_lower(self) -> bool:
        """Whether the vocabulary has lower-case letters."""
        return any(token.islower() for token in self._characters)

    def __call__(self, text: str) -> str:
        """The text in the vocabulary's characters."""
        if self._rule.preset == BEFORE:
            text = before_0_2(text)
            return text.upper() if self._upper_case else text
        if self._rule.by_token:
            return " ".join(map(self._symbol, self._rule(text).split()))
        text = kept_whole(text, self._whole, self._by_characters)
        return text if self._spaced else text.replace(" ", "")

    def _by_characters(self, text: str) -> str:
        text = self._rule.without_removed(one_form(text))
        if self._rule.removes_marks:
            text = without_marks("".join(map(self._known_mark, text)), self._known_marks)
        text = in_case(text, self._case, self._rule.language, "ẞ" in self._characters)
        text = folded_blanks(text)
        if _ARMENIAN_EW in self._characters:
            text = text.replace("եւ", _ARMENIAN_EW)
        return " ".join(text.translate(self._spelled).split())

    def _known_mark(self, mark: str) -> str:
        """A mark in the vocabulary's characters where it has them; itself otherwise."""
        if not is_mark(mark) or mark in self._known_marks:
            return mark
        plain = unicodedata.normalize("NFKC", mark)  # "…" as "..."
        return plain if plain.strip() == plain and self._knows(plain) else mark

    def _spell(self, character: str) -> str:
        for form in self._forms(character):
            if self._knows(form):
                return form
        return character.upper() if self._upper_case else character

    def _forms(self, character: str) -> Iterator[str]:
        language = self._rule.language
        cased = [
            character,
            in_case(character, "lower", language),
            in_case(character, "upper", language, True),
            in_case(character, "upper", language),
        ]
        yield from cased
        yield from (taken_apart for form in cased if (taken_apart := self._taken_apart(form)))
        yield from (unicodedata.normalize("NFKC", form) for form in cased)
        if character in APOSTROPHES:
            yield from APOSTROPHES

    def _taken_apart(self, character: str) -> str:
        """A composed character in known parts, as large as they are known; "" where one is unknown."""
        if self._knows(character):
            return character
        codes = unicodedata.decomposition(character).split() if len(character) == 1 else []
        if not codes or codes[0].startswith("<"):
            return ""
        parts = [self._taken_apart(chr(int(code, 16))) for code in codes]
        return "".join(parts) if all(parts) else ""

    def _knows(self, form: str) -> bool:
        return bool(form) and all(character in self._characters for character in form)

    def _symbol(self, symbol: str) -> str:
        forms = (symbol, unicodedata.normalize("NFD", symbol), symbol.lower(), symbol.upper())
        return next((form for form in forms if form in self._tokens), symbol)


class _Table(dict[int, str]):
    """The table of `str.translate`, filled as characters are met."""

    def __init__(self, spell: Callable[[str], str]):
        super().__init__({ord(" "): " "})
        self._spell = spell

    def __missing__(self, code: int) -> str:
        self[code] = self._spell(chr(code))
        return self[code]

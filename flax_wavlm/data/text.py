"""The text rule: how a corpus's text, a reference and a hypothesis become comparable strings.

One rule holds for all three, is saved with the model (`porting/extras.py`), and is applied by `CTCTokenizer`.
A preset says what the other fields mean where they are None:

auto        own data: lower case, marks of punctuation become blanks, an apostrophe inside a word stays
timit       the seed's recipe: `, ? . ! - ; : "` are deleted, then lower case
written     nothing is removed, the case is kept
tokens      symbols with white space between them, such as phonemes; nothing is removed, the case is kept
before-0.2  what runs before version 0.2 did: timit's rule without the one Unicode form, on references alone
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from flax_wavlm.data.unicode_form import one_form
from flax_wavlm.errors import UserError, did_you_mean

BEFORE = "before-0.2"
PRESETS = ("auto", "timit", "written", "tokens", BEFORE)
CASES = ("auto", "lower", "upper", "keep")
UNITS = ("character", "token")
SEED_DELETES = ',?.!-;:"'

APOSTROPHES = "'\u2019\u2018\u201b\u02bc\u00b4`\u2032\u055a\u1fbd\u1fbf"  # what people type for "'"
_MIDDLE_DOTS = "\u00b7\u2027\u2219\u22c5\u2022"
_DOUBLE_QUOTES = '"\u201c\u201d\u201e\u05f4'
_GERESH, _GERSHAYIM = "\u05f3", "\u05f4"
_HEBREW = re.compile("[\u05d0-\u05ea\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]")
# Armenian marks of emphasis, exclamation and question stand over a vowel, inside the word.
_ARMENIAN_INSIDE = "\u055b\u055c\u055e\u055f"
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
# Scripts that are written without blanks: Thai, Lao, Myanmar, Khmer, Tai, Javanese, Han, kana, Bopomofo.
_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029"
    "\u3031-\u3035\u3038-\u303c\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9ff"
    "\uaa60-\uaa7f\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
_FINAL_SIGMA = re.compile(r"(?<=\w)σ(?!\w)")
_INNER_FINAL_SIGMA = re.compile(r"ς(?=\w)")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*")


@dataclass(frozen=True)
class TextRule:
    """How a text becomes what the model is to write. Called on a text, it gives it; twice is as once.

    The fields are those of `config.text`. Raises UserError, by the field's name, for a value that cannot be.
    """

    preset: str = "auto"
    case: str | None = None
    remove: str | None = None
    keep: str | None = None
    language: str | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("preset", PRESETS), ("case", CASES), ("unit", UNITS)):
            value = getattr(self, name)
            if value not in allowed and (value is not None or name == "preset"):
                near = did_you_mean(str(value), allowed)
                raise UserError(
                    field=f"text.{name}", found=value, expected=f"one of {', '.join(allowed)}", do=near
                )
        for name in ("remove", "keep", "language"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UserError(field=f"text.{name}", found=value, expected="a text")
        if self.language and not _LANGUAGE.fullmatch(self.language):
            raise UserError(field="text.language", found=self.language, expected="a code such as tr or de-CH")
        if both := sorted(set(self.remove or "") & set(self.keep or "")):
            raise UserError(
                f"{''.join(both)!r} is also in text.remove",
                field="text.keep",
                expected="a character in one of the two",
            )
        if self.preset == BEFORE and dataclasses.replace(self, preset="auto") != TextRule():
            raise UserError(
                f"the preset {BEFORE!r} takes no other setting",
                field="text.preset",
                expected="no text.case, text.remove, text.keep, text.language, text.unit beside it",
                do="take text.preset=timit, the same rule in one Unicode form",
            )

    def __call__(self, text: str) -> str:
        """The text for a vocabulary that is made of such texts."""
        if self.preset == BEFORE:
            return before_0_2(text)
        text = self.without_removed(one_form(text))
        if self.removes_marks:
            text = without_marks(text, self.keep or "")
        return folded_blanks(in_case(text, self.casing, self.language))

    @property
    def by_token(self) -> bool:
        """Whether labels are symbols with white space between them."""
        return (self.unit or ("token" if self.preset == "tokens" else "character")) == "token"

    @property
    def removes_marks(self) -> bool:
        """Whether punctuation and symbols become blanks. Among tokens they may be sounds."""
        return self.preset == "auto" and not self.by_token

    @property
    def casing(self) -> str:
        """lower, upper or keep, for a vocabulary that is new."""
        if self.case not in (None, "auto"):
            return str(self.case)
        return "lower" if self.preset == "timit" or self.removes_marks else "keep"

    @property
    def chosen_case(self) -> str | None:
        """The case that the rule insists on; None where it follows an existing vocabulary."""
        if self.case in (None, "auto"):
            return "lower" if self.preset == "timit" else None
        return self.case

    @property
    def removed(self) -> frozenset[str]:
        """The characters that are deleted wherever they stand."""
        chosen = self.remove if self.remove is not None else SEED_DELETES if self.preset == "timit" else ""
        return frozenset(chosen) | frozenset(one_form(chosen)) - {" "} - frozenset(self.keep or "")

    def without_removed(self, text: str) -> str:
        """The text without the characters of `removed`."""
        removed = self.removed - frozenset(self.keep or "")
        return text.translate(dict.fromkeys(map(ord, removed))) if removed else text

    def changed(self, given: Mapping[str, str | None]) -> TextRule:
        """The rule with the given fields in place of its own; None keeps them.

        Another preset begins anew: what belonged to the old one does not stay.
        """
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        base = TextRule() if changes.get("preset", self.preset) != self.preset else self
        return dataclasses.replace(base, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields, those that are None left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def describe(self) -> str:
        """The rule in a few words, for the log."""
        return ", ".join(f"{name} {value!r}" for name, value in self.to_dict().items())


def before_0_2(text: str) -> str:
    """The rule of versions before 0.2: the seed's deletions, `str.lower`, white space folded."""
    return " ".join(text.translate(dict.fromkeys(map(ord, SEED_DELETES))).lower().split())


def folded_blanks(text: str) -> str:
    """The text in NFC, with one blank between words and none at its ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_without_blanks(character: str) -> bool:
    """Whether the character's script is written without blanks between words, as Chinese and Thai are."""
    return _WITHOUT_BLANKS.match(character) is not None


# --- Case ---------------------------------------------------------------------------------------------------


def in_case(text: str, case: str, language: str | None, capital_eszett: bool = False) -> str:
    """The text in lower or upper case as a language has it; case "keep" leaves it.

    Args:
        case: "lower", "upper" or "keep".
        language: a code; tr and az have i with and without a dot, de-CH has no ß.
        capital_eszett: upper case of ß is ẞ, and not SS.
    """
    code = (language or "").replace("_", "-").lower()
    if code in ("de-ch", "gsw") or code.startswith("gsw-"):
        text = text.replace("ß", "ss").replace("ẞ", "SS")
    turkic = code.split("-")[0] in ("tr", "az", "tur", "aze")
    if case == "lower":
        text = text.replace("İ", "i")  # Python gives i and a combining dot
        text = (text.replace("I", "ı") if turkic else text).lower()
        return _FINAL_SIGMA.sub("ς", _INNER_FINAL_SIGMA.sub("σ", text))
    if case == "upper":
        text = text.replace("i", "İ") if turkic else text
        return unicodedata.normalize("NFC", (text.replace("ß", "ẞ") if capital_eszett else text).upper())
    return text


# --- Marks --------------------------------------------------------------------------------------------------


def is_mark(character: str) -> bool:
    """Whether a character is punctuation, a symbol, an enclosing mark, or typed for an apostrophe."""
    category = unicodedata.category(character)
    return category[0] in "PS" or category == "Me" or character in APOSTROPHES


@functools.cache
def _marks_but(kept: frozenset[str]) -> re.Pattern[str]:
    """Matches a run of marks, none of them kept."""
    but = f"(?![{''.join(map(re.escape, sorted(kept)))}])" if kept else ""
    return re.compile(f"(?:{but}[{_all_marks()}])+")


@functools.cache
def _all_marks() -> str:
    """Every mark, as ranges of a regular expression's set. None is assigned above U+1FFFF."""
    ranges: list[list[int]] = []
    for code in range(0x20000):
        if not is_mark(chr(code)):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)


def without_marks(text: str, kept: Collection[str] = "") -> str:
    """The text with a blank for every run of marks, but for what belongs to a word.

    An apostrophe inside a word stays, as "'" whichever way it is typed. So do the middle dot of Catalan and
    the geresh and gershayim of Hebrew. Beside a script that is written without blanks, marks leave no blank.

    Args:
        kept: marks that stay wherever they stand.
    """
    if text.isascii() and text.replace(" ", "").isalnum():
        return text
    return _marks_but(frozenset(kept)).sub(_in_place_of_marks, text)


def _in_place_of_marks(run: re.Match[str]) -> str:
    marks = run[0]
    before = run.string[run.start() - 1] if run.start() else " "
    after = run.string[run.end()] if run.end() < len(run.string) else " "
    if _WITHOUT_BLANKS.match(before) or _WITHOUT_BLANKS.match(after):
        return ""
    if _inside_word(before, after):
        hebrew = _HEBREW.match(before) and _HEBREW.match(after)
        if marks in APOSTROPHES + _GERESH and len(marks) == 1:
            return _GERESH if hebrew else "'" if marks != _GERESH else " "
        if hebrew and (marks in _DOUBLE_QUOTES or marks == "''"):
            return _GERSHAYIM
        if marks in _MIDDLE_DOTS and _LATIN.match(before) and _LATIN.match(after):
            return "\u00b7"
        if all(mark in _ARMENIAN_INSIDE or unicodedata.category(mark) == "Me" for mark in marks):
            return ""
    return " "


def _inside_word(before: str, after: str) -> bool:
    return unicodedata.category(before)[0] in "LMN" and unicodedata.category(after)[0] in "LM"

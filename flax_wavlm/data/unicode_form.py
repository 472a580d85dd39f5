"""One Unicode form for every text: what looks the same to a reader is the same string afterwards.

The form is NFC, without invisible characters, with one blank for any white space, and with compatibility
forms that differ in nothing but their shape (full-width letters, ligatures, Arabic presentation forms)
replaced by the letters that they stand for. Superscripts, fractions and circled numbers mean more than their
parts and stay.

Source: Unicode Standard Annex 15 (normalisation forms), and the tags of decompositions in UnicodeData.txt.
"""

from __future__ import annotations

import re
import unicodedata

# The tags of decompositions that change the shape alone.
_SHAPES = frozenset(
    f"<{tag}>"
    for tag in (
        "wide",
        "narrow",
        "initial",
        "medial",
        "final",
        "isolated",
        "noBreak",
        "font",
        "vertical",
        "small",
    )
)
_SARA_AM = "\u0e33\u0eb3"  # Thai and Lao: one letter on every keyboard
_ARABIC_TATWEEL = "\u0640"  # stretches a word, and is no letter
# Letters by their category that show nothing: Hangul fillers, and the blank pattern of Braille.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"
_JOINERS = "\u200c\u200d"
_MONGOLIAN_SEPARATOR = "\u180e"
# Scripts in which a joiner changes how letters are written: Arabic to Mandaic, the Indic ones, Myanmar,
# Khmer, Mongolian, Tai Tham to Batak, and Javanese.
_JOINED = (
    "\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u17ff\u1800-\u18af\u1a20-\u1bff\ua8e0-\ua8ff\ua980-\ua9ff"
)
_STRAY_JOINER = re.compile(
    rf"(?<![{_JOINED}])[{_JOINERS}{_MONGOLIAN_SEPARATOR}]+|[{_JOINERS}{_MONGOLIAN_SEPARATOR}]+(?![{_JOINED}])"
)
_SEVERAL_JOINERS = re.compile(rf"([{_JOINERS}])[{_JOINERS}]+")
_THAI_AM = re.compile("\u0e4d([\u0e48-\u0e4b]?)\u0e32")
_LAO_AM = re.compile("\u0ecd([\u0ec8-\u0ecb]?)\u0eb2")
# A conjoining consonant without its vowel, or a vowel without its consonant, as NFKC leaves of letters that
# are typed alone.
_LONE_JAMO = re.compile("[\u1100-\u1112](?![\u1160-\u11a7])|(?<![\u1100-\u115f])[\u1161-\u1175]")
_CATALAN = {"\u0140": "l\u00b7", "\u013f": "L\u00b7"}  # "l" with a middle dot as one character


def one_form(text: str) -> str:
    """The text in the one form. Applied again, it changes nothing."""
    if text.isascii():
        return " ".join(text.translate(_FOLDED).split())
    text = unicodedata.normalize("NFD", text).translate(_FOLDED)
    text = _STRAY_JOINER.sub("", _SEVERAL_JOINERS.sub(r"\1", text))
    text = _LAO_AM.sub("\\1\u0eb3", _THAI_AM.sub("\\1\u0e33", text))
    text = unicodedata.normalize("NFC", text)
    return " ".join(_LONE_JAMO.sub(lambda jamo: _LETTER_OF_JAMO[jamo[0]], text).split())


def _folded(character: str) -> str:
    """What stands for a character of a text in NFD: "" where it shows nothing."""
    category = unicodedata.category(character)
    if character in _BLANK or character.isspace():
        return " "
    if category == "Cs":  # half of a pair, which no file can hold
        return "\ufffd"
    if category in ("Cc", "Cf"):
        return character if character in _JOINERS + _MONGOLIAN_SEPARATOR else ""
    if character == _ARABIC_TATWEEL or _is_selector(character):
        return ""
    if character in _CATALAN:
        return _CATALAN[character]
    tag, *codes = unicodedata.decomposition(character).split() or [""]
    if tag in _SHAPES or (tag == "<compat>" and _stands_for_letters(character, category)):
        parts = "".join(chr(int(code, 16)) for code in codes)
        return "".join(map(_folded, unicodedata.normalize("NFD", parts)))
    return character


def _stands_for_letters(character: str, category: str) -> bool:
    """Whether a <compat> character is a letter, a mark, a Roman number or a radical, and made of letters."""
    if (
        character in _SARA_AM or "\u3131" <= character <= "\u318e"
    ):  # Hangul letters would join their neighbours
        return False
    if category[0] not in "LM" and category != "Nl" and not "\u2e80" <= character <= "\u2fdf":
        return False
    return all(unicodedata.category(part)[0] in "LM" for part in unicodedata.normalize("NFKD", character))


def _is_selector(character: str) -> bool:
    """Variation selectors, and the grapheme joiner: marks that show nothing."""
    return (
        "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
        or character == "\u034f"
    )


class _Folded(dict[int, str]):
    """The table of `str.translate`, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = _folded(chr(code))
        return self[code]


_FOLDED = _Folded()
_LETTER_OF_JAMO = {
    unicodedata.normalize("NFKD", letter): letter
    for letter in map(chr, range(0x3131, 0x3164))
    if len(unicodedata.normalize("NFKD", letter)) == 1
}

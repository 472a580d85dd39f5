"""Words as subtitles, in SubRip's (.srt) and WebVTT's (.vtt) format.

A cue ends at a pause. A phrase that does not fit into two lines of 42 characters has several cues, which end
at shorter pauses if there are any. Guides of broadcasters and streaming services have 42 for Latin script. A
character of full width, as Chinese has them, takes the room of two.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pysubs2 import SSAEvent, SSAFile

from flax_wavlm.errors import printable
from flax_wavlm.recognition.timeline import in_order, milliseconds
from flax_wavlm.recognition.transcript import Transcript

LINE = 42  # characters
# Milliseconds between two words. Phonetics counts silence from 250 ms as a pause (Goldman-Eisler 1968). A
# phrase ends at twice that. So a short hesitation is inside of it, and it is read in one piece if it fits.
SHORT_PAUSE, PAUSE = 250, 500
SHOWN = 1000  # milliseconds that a cue is shown at least, unless the next one begins: time to read a word

_JOINER = "\u2060"  # it has no width
# What players, and libraries that read subtitles, take for more than text. SubRip has no escapes.
_OF_BOTH = r"\{|\\|\d(?=:\d\d?[.,]\d)"
_SPECIAL = {"srt": re.compile(rf"{_OF_BOTH}|<|-(?=>)|&(?=#?\w+;)"), "vtt": re.compile(_OF_BOTH)}


class Cue(NamedTuple):
    """A subtitle."""

    start: int  # milliseconds
    end: int
    lines: tuple[str, ...]


class _Piece(NamedTuple):
    """What stays on one line: a word, and the combining marks behind it that are words of their own."""

    text: str
    blank: bool  # whether there is one before it
    start: int
    end: int


def subtitles(transcript: Transcript, format: str) -> str:
    """The content of a file in the format "srt" or "vtt"."""
    file = SSAFile()
    file.events = [
        SSAEvent(cue.start, cue.end, text=r"\N".join(_harmless(line, format) for line in cue.lines))
        for cue in cues(transcript)
    ]
    return file.to_string(format, keep_ssa_tags=True)  # there are none: braces are text


def cues(transcript: Transcript) -> list[Cue]:
    """The transcript's subtitles, none of which overlap."""
    groups = list(_groups(_pieces(transcript)))
    spans = [(group[0].start, max(group[-1].end, group[0].start + SHOWN)) for group in groups]
    spans = in_order(spans, round(1000 * transcript.duration), least=1)  # WebVTT refuses a cue of no length
    return [Cue(*span, _layout(group)) for span, group in zip(spans, groups, strict=True)]


def blanks_before(text: str, words: Sequence[str]) -> list[bool]:
    """Whether the text has white space before each of its words.

    Words that are not there are taken as standing apart where there is white space anywhere in the text.
    """
    blanks, at = [], 0
    for word in words:
        begin = len(text) - len(text[at:].lstrip())
        if text.startswith(word, begin):
            blanks.append(begin > at)
            at = begin + len(word)
        else:
            blanks.append(len(text.split()) > 1)
    return blanks


def on_one_line(word: str) -> str:
    """The word with one blank for white space of any kind, and control characters escaped."""
    return printable(" ".join(word.split()))


def _pieces(transcript: Transcript) -> list[_Piece]:
    words = transcript.words
    spans = milliseconds([(word.start, word.end) for word in words], transcript.duration)
    blanks = blanks_before(transcript.text, [word.word for word in words])
    pieces: list[_Piece] = []
    for word, blank, (start, end) in zip(words, blanks, spans, strict=True):
        text = on_one_line(word.word)
        if pieces and not blank and unicodedata.category(text[:1] or " ")[0] == "M":
            pieces[-1] = pieces[-1]._replace(text=pieces[-1].text + text, end=end)
        elif text:
            pieces.append(_Piece(text, blank, start, end))
    return pieces


def _groups(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """The pieces of each cue."""
    for phrase in _phrases(pieces):
        while phrase:
            fitting = next((n for n in range(1, len(phrase)) if not _breaks(phrase[: n + 1])), len(phrase))
            if fitting < len(phrase):
                fitting = _shorter_pause(phrase, fitting)
            yield phrase[:fitting]
            phrase = phrase[fitting:]


def _phrases(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """The pieces between pauses."""
    pauses = [i for i in range(1, len(pieces)) if _gap(pieces, i) >= PAUSE]
    for begin, end in zip([0, *pauses], [*pauses, len(pieces)], strict=True):
        yield list(pieces[begin:end])


def _shorter_pause(phrase: Sequence[_Piece], fitting: int) -> int:
    """Where a cue of at most so many pieces ends: the longest pause in its second half, or all that fits."""
    longest = max(range((fitting + 1) // 2, fitting + 1), key=lambda i: (_gap(phrase, i), i))
    return longest if _gap(phrase, longest) >= SHORT_PAUSE else fitting


def _gap(pieces: Sequence[_Piece], i: int) -> int:
    """Milliseconds of silence before a piece."""
    return pieces[i].start - pieces[i - 1].end


def _breaks(group: Sequence[_Piece]) -> list[int]:
    """Where the group may be broken into two lines; its length, if it fits into one."""
    if _fits(group):
        return [len(group)]
    return [i for i in range(1, len(group)) if _fits(group[:i]) and _fits(group[i:])]


def _fits(line: Sequence[_Piece]) -> bool:
    return len(line) == 1 or _width(_text(line)) <= LINE


def _layout(group: Sequence[_Piece]) -> tuple[str, ...]:
    """The lines, as even as can be."""
    places = _breaks(group)
    best = min(places, key=lambda i: max(_width(_text(group[:i])), _width(_text(group[i:]))))
    return tuple(_text(line) for line in (group[:best], group[best:]) if line)


def _text(line: Sequence[_Piece]) -> str:
    return "".join(" " * piece.blank + piece.text for piece in line).strip()


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _harmless(line: str, format: str) -> str:
    """The line so that nothing in it is taken for a tag, an escape or a time."""
    text = html.escape(line, quote=False) if format == "vtt" else line
    return _SPECIAL[format].sub(lambda special: special[0] + _JOINER, text)

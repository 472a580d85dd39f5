"""A transcript as the content of a file, in each of the formats that `transcribe` and `align` write.

text      file<TAB>text, a line
json      one object: file, text, duration, confidence, words, characters; times in seconds; by a beam search
          also alternatives, with text, score, ctc_score, and lm_score where there is a language model
jsonl     the same object on one line
tsv       a header, then a word a line: file, start, end, word, confidence
ctm       NIST's: a word a line: file, channel, begin, duration, word, confidence
srt, vtt  subtitles, see `subtitles.py`
textgrid  Praat's: interval tiers "words" and "characters"

A transcript without words has no lines of words, no subtitles, and empty intervals. In all formats, times
are in order, without overlap, and within the recording.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from praatio.utilities.textgrid_io import getTextgridAsStr

from flax_wavlm.errors import printable
from flax_wavlm.recognition.subtitles import on_one_line, subtitles
from flax_wavlm.recognition.timeline import milliseconds
from flax_wavlm.recognition.transcript import Alternative, Character, Transcript, Word

# Each format, and how its files' names end.
FORMATS = {
    "text": ".txt",
    "json": ".json",
    "jsonl": ".jsonl",
    "srt": ".srt",
    "vtt": ".vtt",
    "ctm": ".ctm",
    "textgrid": ".TextGrid",
    "tsv": ".tsv",
}
# In these, what is said of one recording may follow what is said of another.
OF_SEVERAL = ("text", "jsonl", "tsv", "ctm")

# What a terminal obeys, or no UTF-8 file can hold. JSON has the same text with it escaped.
_TO_ESCAPE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLUMNS = ("file", "start", "end", "word", "confidence")


def header(format: str) -> str:
    """What stands once at the beginning of a file or stream."""
    return "\t".join(_COLUMNS) + "\n" if format == "tsv" else ""


def content(transcript: Transcript, format: str) -> str:
    """What stands in a file or stream of this transcript, after the `header`; whole lines.

    Control characters, and what Python has for a name's undecodable bytes, are escaped in it.

    Args:
        transcript: one without an error.
        format: one of `FORMATS`.
    """
    match format:
        case "text":
            return f"{printable(str(transcript.file))}\t{printable(transcript.text)}\n"
        case "json":
            return _indented(_object(transcript))
        case "jsonl":
            return _json(_object(transcript)) + "\n"
        case "tsv":
            return "".join(_tsv_lines(transcript))
        case "ctm":
            return "".join(_ctm_lines(transcript))
        case "textgrid":
            return _textgrid(transcript)
        case "srt" | "vtt":
            return subtitles(transcript, format)
    raise ValueError(f"{format!r} is not one of {', '.join(FORMATS)}")


# --- JSON ---------------------------------------------------------------------------------------------------


def _object(transcript: Transcript) -> dict[str, Any]:
    found = {
        "file": str(transcript.file),
        "text": transcript.text,
        "duration": round(transcript.duration, 3),
        "confidence": None if transcript.confidence is None else round(transcript.confidence, 4),
        "words": _timed(transcript.words, transcript.duration),
        "characters": _timed(transcript.characters, transcript.duration),
    }
    if transcript.alternatives:
        found["alternatives"] = [_scored(alternative) for alternative in transcript.alternatives]
    return found


def _scored(alternative: Alternative) -> dict[str, Any]:
    scores = alternative._asdict()
    text = scores.pop("text")
    return {"text": text} | {name: round(score, 4) for name, score in scores.items() if score is not None}


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _TO_ESCAPE.sub(lambda character: json.dumps(character[0])[1:-1], text)


def _timed(items: Sequence[Word | Character], duration: float) -> list[dict[str, Any]]:
    spans = milliseconds([(item.start, item.end) for item in items], duration)
    return [
        item._asdict()
        | {"start": start / 1000, "end": end / 1000, "confidence": round(float(item.confidence), 4)}
        for item, (start, end) in zip(items, spans, strict=True)
    ]


def _indented(parts: dict[str, Any]) -> str:
    """An object with a field, a word or a character a line."""

    def value(part: Any) -> str:
        if not isinstance(part, list) or not part:
            return _json(part)
        return "[\n" + ",\n".join(f"    {value(item)}" for item in part) + "\n  ]"

    return "{\n" + ",\n".join(f'  "{name}": {value(part)}' for name, part in parts.items()) + "\n}\n"


# --- Tables -------------------------------------------------------------------------------------------------


def _tsv_lines(transcript: Transcript) -> Iterator[str]:
    file = printable(str(transcript.file))
    for word in _timed(transcript.words, transcript.duration):
        yield f"{file}\t{word['start']:.3f}\t{word['end']:.3f}\t{printable(word['word'])}\t{_share(word)}\n"


def _ctm_lines(transcript: Transcript) -> Iterator[str]:
    """Source: the CTM format of NIST's scoring toolkit (SCTK), which puts blanks between fields.

    It has no escapes. White space in a file's name is written as in a URL, "%20", and so are "%" itself, and
    ";" at the beginning of a line, which would make a comment. White space within a word becomes "_".
    """
    file = re.sub(r"[\s%]|^;", _as_in_url, printable(str(transcript.file)))
    for word in _timed(transcript.words, transcript.duration):
        if said := on_one_line(word["word"]).replace(" ", "_"):
            length = word["end"] - word["start"]
            yield f"{file} 1 {word['start']:.3f} {length:.3f} {said} {_share(word)}\n"


def _as_in_url(character: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in character[0].encode())


def _share(word: dict[str, Any]) -> str:
    return f"{word['confidence']:.4f}"


# --- Praat --------------------------------------------------------------------------------------------------


def _textgrid(transcript: Transcript) -> str:
    """Praat has no intervals of no length: each is a millisecond at least."""
    tiers = {
        "words": _intervals(transcript.words, transcript.duration),
        "characters": _intervals(transcript.characters, transcript.duration),
    }
    ends = [entries[-1][1] for entries in tiers.values() if entries]
    end = max([0.001, round(transcript.duration, 3), *ends])
    return getTextgridAsStr(
        {
            "xmin": 0.0,
            "xmax": end,
            "tiers": [
                {"class": "IntervalTier", "name": name, "xmin": 0.0, "xmax": end, "entries": entries}
                for name, entries in tiers.items()
            ],
        },
        format="long_textgrid",
        includeBlankSpaces=True,
    )


def _intervals(items: Sequence[Word | Character], duration: float) -> list[tuple[float, float, str]]:
    labels = [on_one_line(item[0]) for item in items]
    shown = [(label, item.start, item.end) for label, item in zip(labels, items, strict=True) if label]
    spans = milliseconds([(start, end) for _, start, end in shown], duration, least=1)
    return [(start / 1000, end / 1000, label) for (label, *_), (start, end) in zip(shown, spans, strict=True)]

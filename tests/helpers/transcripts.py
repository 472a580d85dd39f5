"""Random transcripts, and what must hold of every file that is written of one."""

import html
import json
import random
import re
from pathlib import Path

from praatio import textgrid
from pysubs2 import SSAFile

from flax_wavlm.files import write_atomically
from flax_wavlm.recognition.formats import FORMATS, content, header
from flax_wavlm.recognition.subtitles import LINE, on_one_line
from flax_wavlm.recognition.transcript import Character, Transcript, Word

PIECES = (
    *("a", "Z", "é", "e\u0301", "我", "ที่", "שלום", "😀", "\u200d", "\ufeff", "\u2060", "7", "-"),
    *("-->", "<i>", "</b>", "&lt;", "&", "{\\an8}", "\\N", "\\h", "{", "}", "00:00:01,000", "00:01.50", "%"),
    *(" ", "\t", "\n", "\r\n", "\x00", "\x1b[31m", "\x85", "\u2028", "\u202e", "\udcff"),
    *(";;", "NOTE", "'", '"', "|", '""', "//", "xmin = 1"),
)  # fmt: skip


def random_text(rng: random.Random) -> str:
    drawn = [
        rng.choice(PIECES) if rng.random() < 0.7 else chr(rng.randrange(0x11000))
        for _ in range(rng.randrange(6))
    ]
    # Half a pair before its other half would be read as the whole pair.
    text = re.sub("[\ud800-\udbff]", "", "".join(drawn))
    # pysubs2 takes a last line of digits for the next cue's number, praatio "intervals [" for the next one.
    return f"n{text}" if re.fullmatch(r"[\d\s]+", text) else text.replace("[", "(")


def random_transcript(rng: random.Random) -> Transcript:
    """Words of any characters, at good times or any: before 0, beyond the end, backwards, of no length."""
    duration = rng.choice([0.0, 0.001, 2.5, 60.0, 7200.0])
    every = duration / 20 if rng.random() < 0.5 else 0.0

    def times(i: int) -> tuple[float, float]:
        if every:
            return i * every, (i + rng.random()) * every
        return rng.uniform(-0.2, 1.2) * duration, rng.uniform(-0.2, 1.2) * duration

    words = tuple(Word(random_text(rng), *times(i), rng.random()) for i in range(rng.choice([0, 1, 2, 20])))
    characters = tuple(Character(word.word[:1], *word[1:]) for word in words)
    text = rng.choice(["", " "]).join(word.word for word in words)
    confidence = words[0].confidence if words else None
    return Transcript(f"x{random_text(rng)}", text, duration, words, characters, confidence)


def check_formats(transcript: Transcript, folder: Path) -> None:
    """Writes all formats, and reads them back by the libraries that read them."""
    for format, suffix in FORMATS.items():
        write_atomically(folder / f"x{suffix}", header(format) + content(transcript, format))
    words = [word for word in map(on_one_line, (word.word for word in transcript.words)) if word]
    _check_tables(transcript, words, folder)
    whole = json.loads((folder / "x.json").read_text(encoding="utf-8"))
    assert whole == json.loads((folder / "x.jsonl").read_text(encoding="utf-8"))
    assert [word["word"] for word in whole["words"]] == [word.word for word in transcript.words]
    for item in whole["words"]:
        assert 0 <= item["start"] <= item["end"] <= transcript.duration
    for format in ("srt", "vtt"):
        _check_subtitles(transcript, words, folder / f"x.{format}")
    _check_textgrid(words, folder / "x.TextGrid", transcript.duration)


def _check_tables(transcript: Transcript, words: list[str], folder: Path) -> None:
    text = (folder / "x.txt").read_text(encoding="utf-8")
    assert (text.count("\t"), text.count("\n")) == (1, 1)
    rows = [line.split("\t") for line in (folder / "x.tsv").read_text(encoding="utf-8").split("\n")[1:-1]]
    assert [float(row[1]) <= float(row[2]) for row in rows] == [True] * len(transcript.words)
    assert all(len(row) == 5 for row in rows)
    lines = (folder / "x.ctm").read_text(encoding="utf-8").splitlines()
    assert [line.split()[4] for line in lines] == [word.replace(" ", "_") for word in words]
    assert all(len(line.split()) == 6 and not line.startswith(";;") for line in lines)


def _check_subtitles(transcript: Transcript, words: list[str], file: Path) -> None:
    read = SSAFile.load(str(file), encoding="utf-8", format_=file.suffix[1:]).events
    said = "".join(event.text.replace("\\N", "") for event in read)
    said = html.unescape(said) if file.suffix == ".vtt" else said
    assert _solid(said) == _solid("".join(words))
    times = [time for event in read for time in (event.start, event.end)]
    assert times == sorted(times)
    assert all(0 <= event.start < event.end for event in read)
    assert not times or times[-1] <= max(1000 * transcript.duration, len(read))
    for event in read:
        lines = [html.unescape(line).replace("\u2060", "") for line in event.text.split("\\N")]
        assert len(lines) <= 2
        assert all(len(line) <= LINE or line in "".join(words).replace("\u2060", "") for line in lines)


def _check_textgrid(words: list[str], file: Path, duration: float) -> None:
    grid = textgrid.openTextgrid(str(file), includeEmptyIntervals=True, reportingMode="error")
    entries = grid.getTier("words").entries
    assert [entry.label for entry in entries if entry.label] == words
    assert [entry.end for entry in entries[:-1]] == [entry.start for entry in entries[1:]]
    assert (entries[0].start, entries[-1].end) == (0, grid.maxTimestamp)
    assert grid.maxTimestamp == max(duration, 0.001, len(words) / 1000)


def _solid(text: str) -> str:
    return "".join(text.replace("\u2060", "").split())

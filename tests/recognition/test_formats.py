"""Each format is what its readers expect, whatever was said and whenever."""

import html
import json
import random
from pathlib import Path

import pytest
from helpers.transcripts import check_formats, random_transcript
from praatio import textgrid
from pysubs2 import SSAFile

from flax_wavlm.errors import printable
from flax_wavlm.recognition.formats import FORMATS, content, header
from flax_wavlm.recognition.subtitles import LINE, PAUSE, blanks_before, cues
from flax_wavlm.recognition.timeline import in_order, milliseconds
from flax_wavlm.recognition.transcript import Character, Transcript, Word


def transcript(text: str, *words: tuple[str, float, float], file: str = "a.wav", **fields) -> Transcript:
    """One whose words have a character each, at the same time; 10 s long."""
    spoken = tuple(Word(*word, 0.875) for word in words)
    letters = tuple(Character(word.word[:1], *word[1:]) for word in spoken)
    return Transcript(
        file, text, **{"duration": 10.0, "confidence": 0.875, **fields}, words=spoken, characters=letters
    )


def even(words: list[str], every: float = 0.3, *, text: str = "", duration: float = 600.0) -> Transcript:
    """Words one after the other, without pauses."""
    timed = [(word, i * every, (i + 1) * every) for i, word in enumerate(words)]
    return transcript(text or " ".join(words), *timed, duration=duration)


TWO = transcript("she had", ("she", 0.52, 0.8), ("had", 0.84, 1.1004))
NOTHING = Transcript("a.wav", duration=2.5)


def read_textgrid(content: str, folder: Path) -> textgrid.Textgrid:
    (folder / "x.TextGrid").write_text(content, encoding="utf-8")
    return textgrid.openTextgrid(
        str(folder / "x.TextGrid"), includeEmptyIntervals=True, reportingMode="error"
    )


def test_text_and_tables():
    assert content(TWO, "text") == "a.wav\tshe had\n"
    assert header("tsv") + content(TWO, "tsv") == (
        "file\tstart\tend\tword\tconfidence\n"
        "a.wav\t0.520\t0.800\tshe\t0.8750\n"
        "a.wav\t0.840\t1.100\thad\t0.8750\n"
    )
    assert content(TWO, "ctm") == "a.wav 1 0.520 0.280 she 0.8750\na.wav 1 0.840 0.260 had 0.8750\n"
    assert {header(format) for format in FORMATS if format != "tsv"} == {""}


def test_json_is_one_object_and_jsonl_one_line():
    whole = json.loads(content(TWO, "json"))
    assert whole == json.loads(content(TWO, "jsonl"))
    assert content(TWO, "jsonl").count("\n") == 1
    assert list(whole) == ["file", "text", "duration", "confidence", "words", "characters"]
    assert whole["words"][1] == {"word": "had", "start": 0.84, "end": 1.1, "confidence": 0.875}
    assert whole["characters"][0] == {"character": "s", "start": 0.52, "end": 0.8, "confidence": 0.875}
    assert (whole["file"], whole["duration"], whole["confidence"]) == ("a.wav", 10.0, 0.875)


def test_subtitles():
    cue = "00:00:00{0}520 --> 00:00:01{0}520\nshe had\n\n"  # shown for a second
    assert content(TWO, "srt") == "1\n" + cue.format(",")
    assert content(TWO, "vtt") == "WEBVTT\n\n1\n" + cue.format(".")


def test_textgrid(tmp_path):
    grid = read_textgrid(content(TWO, "textgrid"), tmp_path)
    assert grid.tierNames == ("words", "characters")
    assert grid.maxTimestamp == 10.0
    assert [tuple(entry) for entry in grid.getTier("words").entries] == [
        (0, 0.52, ""), (0.52, 0.8, "she"), (0.8, 0.84, ""), (0.84, 1.1, "had"), (1.1, 10, ""),
    ]  # fmt: skip


def test_nothing_said(tmp_path):
    assert content(NOTHING, "text") == "a.wav\t\n"
    for format in ("json", "jsonl"):
        found = json.loads(content(NOTHING, format))
        assert (found["confidence"], found["words"], found["characters"]) == (None, [], [])
    assert content(NOTHING, "tsv") == content(NOTHING, "ctm") == content(NOTHING, "srt") == ""
    assert content(NOTHING, "vtt") == "WEBVTT\n\n"
    grid = read_textgrid(content(NOTHING, "textgrid"), tmp_path)
    assert [tuple(entry) for entry in grid.getTier("words").entries] == [(0, 2.5, "")]
    assert "xmax = 0.001" in content(Transcript("a.wav"), "textgrid")


def test_names_that_would_break_a_table():
    odd = transcript("a", ("a", 0, 1), file="my talk\t50%\n.wav")
    assert content(odd, "tsv").split("\t")[0] == content(odd, "text").split("\t")[0] == r"my talk\t50%\n.wav"
    assert content(odd, "ctm").split() == [r"my%20talk\t50%25\n.wav", "1", "0.000", "1.000", "a", "0.8750"]
    comment = transcript("new york", ("new york", 0, 1), (" \n", 1, 2), file=";;x\u00a0y.wav")
    assert content(comment, "ctm") == "%3B;x%C2%A0y.wav 1 0.000 1.000 new_york 0.8750\n"
    undecodable = transcript("a", ("a", 0, 1), file="b\udcff.wav")
    assert json.loads(content(undecodable, "json").encode("utf-8"))["file"] == "b\udcff.wav"


def test_no_terminal_obeys_what_is_written():
    words = [("\x1b[31m", 0, 1), ("\u202eab", 1, 2), ("\x9b", 2, 3)]
    odd = transcript(" ".join(word for word, *_ in words), *words, file="\x07\udcff.wav")
    for format in FORMATS:
        written = content(odd, format).replace("\t", " ").split("\n")
        assert [printable(line) for line in written] == written
    assert json.loads(content(odd, "jsonl"))["text"] == odd.text


HARMFUL = [
    "-->",
    "<i>",
    "a&b",
    "&amp;",
    "{\\an8}",
    "x\\Ny",
    "two\n\nlines",
    "a\u2028b",
    "00:00:01,000-->00:00:02,000",
]
PLAIN = " ".join(
    ["-->", "<i>", "a&b", "&amp;", "{\\an8}", "x\\Ny", "two lines", "a b", "00:00:01,000-->00:00:02,000"]
)


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_no_word_of_a_subtitle_is_a_tag(format):
    written = content(even(HARMFUL, text=" ".join(" ".join(HARMFUL).split())), format)
    read = SSAFile.from_string(written, format_=format)
    texts = [event.text.replace("\\N", " ").replace("\u2060", "") for event in read]
    said = " ".join(texts)
    assert (html.unescape(said) if format == "vtt" else said) == PLAIN
    assert all("{\\" not in event.text for event in read)
    assert written.count("-->") == len(read)
    assert ("<" in written, "a&amp;b" in written) == (format == "srt", format == "vtt")


def test_cues_end_at_pauses_and_lines_at_42_characters():
    found = cues(transcript("a b c", ("a", 0, 1), ("b", 1.499, 2.5), ("c", 3.0, 3.2)))
    assert [cue.lines for cue in found] == [("a b",), ("c",)]
    assert PAUSE == 500
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then"]
    found = cues(even(words * 5))
    assert [word for cue in found for line in cue.lines for word in line.split()] == words * 5
    assert all(len(cue.lines) <= 2 and all(len(line) <= LINE for line in cue.lines) for cue in found)
    assert max(len(" ".join(cue.lines)) for cue in found) > 70  # both lines are made use of
    assert found[0].lines == (
        "the quick brown fox jumps over a lazy dog",
        "and then the quick brown fox jumps over a",
    )


def test_a_long_phrase_is_divided_at_its_shorter_pauses():
    words = [("word", i * 0.5, i * 0.5 + (0.2 if i in (3, 12, 20) else 0.4)) for i in range(30)]
    found = cues(transcript(" ".join(word for word, *_ in words), *words, duration=20.0))
    assert [" ".join(cue.lines).count("word") for cue in found] == [13, 8, 9]


def test_a_long_word_stays_whole():
    long = "x" * 50
    assert [cue.lines for cue in cues(even([long, "a", long]))] == [(long, "a"), (long,)]


def test_languages_without_blanks_break_between_characters():
    text = "我" * 50
    lines = [cue.lines for cue in cues(even(list(text), text=text))]
    assert lines == [("我" * 21, "我" * 21), ("我" * 8,)]  # of double width
    thai = "ที่นี่" * 10  # vowels and tones above are characters of their own
    for cue in cues(even(list(thai), text=thai)):
        assert all(line.startswith("ท") or line.startswith("น") for line in cue.lines)
    mixed = even(["我", "爱", "jax"], text="我爱 jax")
    assert cues(mixed)[0].lines == ("我爱 jax",)


def test_blanks_are_the_texts_own():
    assert blanks_before("a bc d", ["a", "bc", "d"]) == [False, True, True]
    assert blanks_before("abc", ["a", "b", "c"]) == [False, False, False]
    assert blanks_before("a, b c", ["a", "b", "c"]) == [False, True, True]  # the text has more than the words
    assert blanks_before("你好吗", ["你", "号", "吗"]) == [False, False, False]


def test_times_are_put_in_order():
    assert in_order([(5, 9), (7, 12), (40, 30)], 35) == [(5, 7), (7, 12), (35, 35)]
    assert in_order([(5, 9), (9, 12)], 35) == [(5, 9), (9, 12)]
    assert in_order([(-3, -3), (0, 0), (34, 34), (35, 40)], 35, least=1) == [
        (0, 1),
        (1, 2),
        (33, 34),
        (34, 35),
    ]
    assert in_order([(0, 0)] * 3, 0, least=1) == [(0, 1), (1, 2), (2, 3)]
    assert milliseconds([(0.1, 0.25)], 0.2) == [(100, 200)]
    assert in_order([], 10) == []


def test_words_of_no_length_have_intervals_and_cues(tmp_path):
    same = transcript("a b c", ("a", 9.9, 9.9), ("b", 9.9, 9.9), ("c", 10.4, 10.4))
    entries = [
        e for e in read_textgrid(content(same, "textgrid"), tmp_path).getTier("words").entries if e.label
    ]
    assert [tuple(e) for e in entries] == [(9.9, 9.901, "a"), (9.901, 9.902, "b"), (9.999, 10, "c")]
    assert [(cue.start, cue.end) for cue in cues(same)] == [(9900, 10000)]


def test_a_format_that_does_not_exist():
    with pytest.raises(ValueError, match="'docx' is not one of text, json"):
        content(TWO, "docx")


def test_random_speech_is_read_back(tmp_path):
    rng = random.Random(0)
    for _ in range(10):
        check_formats(random_transcript(rng), tmp_path)

"""Where a recording with its text is cut, and what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.utterance import Samples
from flax_wavlm.data.streams import open_stream
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.recognition.align import Aligned
from flax_wavlm.recognition.known_text import known_text
from flax_wavlm.recognition.pauses import all_levels
from flax_wavlm.recognition.segment_folder import Cutting, announce_finished, write_segments
from flax_wavlm.recognition.segments import Segment, segments
from flax_wavlm.recognition.transcript import Transcript, Word

RATE = 16_000
LETTERS = CTCTokenizer.from_texts(["abcdefgh"])


def spoken(*parts: tuple[str, float]) -> tuple[list[Word], np.ndarray, np.ndarray]:
    """Words and absent speech ("*"), with their seconds, and pauses (""), as words, stretches and samples."""
    words, absent, samples, now = [], [], [], 0.0
    rng = np.random.default_rng(0)
    for word, seconds in parts:
        loud = 0.1 if word else 0.0001
        samples.append(loud * rng.standard_normal(round(seconds * RATE)).astype(np.float32))
        if word == "*":
            absent.append((now, now + seconds))
        elif word:
            words.append(Word(word, now, now + seconds, 0.9))
        now += seconds
    return words, np.array(absent).reshape(-1, 2), np.concatenate(samples)


def aligned(words: list[Word], absent: np.ndarray, samples: np.ndarray) -> Aligned:
    text = " ".join(word.word for word in words)
    transcript = Transcript("a.wav", text, len(samples) / RATE, tuple(words))
    return Aligned(transcript, absent, known_text(LETTERS, text))


def level_of(samples: np.ndarray) -> np.ndarray:
    with open_stream(Samples(samples, RATE)) as stream:
        return all_levels(stream.read)


def cut(*parts: tuple[str, float], max_seconds: float = 3.0, **changes: float) -> list[Segment]:
    words, absent, samples = spoken(*parts)
    words = [word._replace(confidence=changes.get(word.word, word.confidence)) for word in words]
    return segments(
        aligned(words, absent, samples), level_of(samples), max_seconds=max_seconds, min_confidence=0.5
    )


def test_it_is_cut_at_the_longest_pauses_into_as_few_clips_as_can_be() -> None:
    found = cut(
        *(("", 0.5), ("a", 0.6), ("", 0.2), ("b", 0.6), ("", 0.6), ("c", 0.6), ("", 0.2), ("d", 0.6)),
        *(("e", 0.6), ("", 0.4)),
    )
    assert [segment.text for segment in found] == ["a b", "c d e"]
    assert [(round(s.start, 2), round(s.end, 2)) for s in found] == [(0.4, 2.0), (2.4, 4.6)]
    assert all(not segment.reason and segment.confidence == pytest.approx(0.9) for segment in found)


def test_a_boundary_that_is_wrong_by_less_than_half_a_word_does_no_harm() -> None:
    words, absent, samples = spoken(("a", 0.6), ("", 0.4), ("b", 0.6))
    early = [word._replace(start=max(0.0, word.start - 0.2), end=word.end - 0.2) for word in words]
    first, second = segments(
        aligned(early, absent, samples), level_of(samples), max_seconds=1, min_confidence=0
    )
    assert (round(first.end, 2), round(second.start, 2)) == (0.7, 0.9)


def test_speech_that_the_text_lacks_is_in_no_clip() -> None:
    found = cut(("a", 0.6), ("", 0.4), ("*", 1.0), ("", 0.4), ("b", 0.6), ("", 0.4), ("c", 0.6))
    assert [segment.text for segment in found] == ["a", "", "b c"]
    assert [segment.reason for segment in found] == ["", "speech that the text lacks", ""]
    # Without a pause beside it, the words up to the next pause may be its own.
    found = cut(("a", 0.6), ("", 0.4), ("b", 0.6), ("*", 1.0), ("c", 0.6), ("", 0.4), ("d", 0.6))
    assert [segment.text for segment in found] == ["a", "b", "", "c", "d"]
    assert [segment.reason[:8] for segment in found] == ["", "no pause", "speech t", "no pause", ""]
    found = cut(("*", 1.0), ("c", 0.6), ("*", 1.0))
    assert [segment.text for segment in found if segment.reason[:8] == "no pause"] == ["c"]


def test_bad_clips_are_named() -> None:
    found = cut(("a", 0.6), ("", 2.5), ("b", 0.6), ("", 2.5), ("c", 0.6), ("", 2.5), ("d", 4), b=0.05, c=0.3)
    assert [segment.reason for segment in found] == [
        "",
        "words that were hardly said: b",
        "confidence below 0.5: 0.300",
        "longer than 3 s: 4.10 s without a place to cut",
    ]


def test_whatever_the_times_are_clips_are_parts_of_the_recording_and_hold_every_word() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        kinds = rng.choice(["a", "", "*"], size=25, p=[0.7, 0.2, 0.1])
        words, absent, samples = spoken(*((str(kind), rng.choice([0.05, 0.3, 0.9])) for kind in kinds))
        wrong = np.sort(rng.uniform(0, len(samples) / RATE, size=2 * len(words))).reshape(-1, 2)
        words = [
            word._replace(start=start, end=max(start, end - 0.1))
            for word, (start, end) in zip(words, wrong.tolist(), strict=True)
        ]
        found = segments(aligned(words, absent, samples), level_of(samples), max_seconds=2, min_confidence=0)
        assert " ".join(segment.text for segment in found if segment.text) == " ".join("a" * len(words))
        for segment in found:
            if not segment.reason:
                assert 0 <= segment.start < segment.end <= len(samples) / RATE + 0.01
                assert segment.end - segment.start <= 2


def test_one_word_in_twenty_may_be_misheard() -> None:
    words = [(letter, 0.2) for letter in "abcdefgh" * 3]
    assert [segment.reason for segment in cut(*words, ("b", 0.2), max_seconds=9, **{"a": 0.0})] != [""]
    once = [*words[1:8], *words[1:8], *words[1:8]]
    assert [segment.reason for segment in cut(*once, ("a", 0.2), max_seconds=9, a=0.0)] == [""]


def test_without_pauses_it_is_cut_between_words() -> None:
    found = cut(*((letter, 0.5) for letter in "abcdefgh"), max_seconds=2.1)
    assert [segment.text for segment in found] == ["a b c d", "e f g h"]
    assert found[0].end == found[1].start == pytest.approx(2.0, abs=0.02)


@pytest.fixture
def cutting(tmp_path: Path) -> Cutting:
    audio = tmp_path / "book.wav"
    soundfile.write(audio, np.zeros(5 * RATE, np.int16), RATE)
    return Cutting(audio, "the text", "a model", speaker="s")


GOOD, BAD = Segment(0.1234567, 2.0, "Good, it is.", 0.9, ""), Segment(2, 3, "bad", 0.2, "confidence: low")
WHOLE = Transcript("book.wav", duration=5.0)


def test_a_folder_of_clips_is_a_manifest_and_a_second_start_says_what_is_there(
    cutting: Cutting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flax_wavlm")
    folder = tmp_path / "deep" / "clips"
    assert not announce_finished(folder, cutting)
    write_segments(folder, cutting, [GOOD, BAD], WHOLE)
    utterances, skipped = load_corpus("manifest", folder, "train")
    assert skipped == []
    [clip] = utterances
    assert (clip.id, clip.audio, clip.text, clip.speaker) == ("book-00001", cutting.audio, GOOD.text, "s")
    assert (clip.start, clip.end) == (0.123, 2.0)
    [row] = map(json.loads, (folder / "rejected.jsonl").read_text().splitlines())
    assert (row["id"], row["text"], row["reason"]) == ("book-00002", "bad", "confidence: low")
    assert "1 clips, 0.0 of 0.1 minutes" in caplog.text

    before = (folder / "train.jsonl").stat().st_mtime_ns
    caplog.clear()
    assert announce_finished(folder, cutting)
    assert "all is there: 1 clips" in caplog.text
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    other = Cutting(cutting.audio, "another text", "a model", max_seconds=3, speaker="s")
    with pytest.raises(UserError, match=r"made otherwise \(text, max_seconds\), .*; give another folder"):
        announce_finished(folder, other)


def test_no_manifest_without_a_good_clip(cutting: Cutting, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"book.wav: none of 1 clips can be used; see .*rejected\.jsonl"):
        write_segments(tmp_path / "clips", cutting, [BAD], WHOLE)
    assert [file.name for file in (tmp_path / "clips").iterdir()] == ["rejected.jsonl"]


def test_what_cannot_be_cut(cutting: Cutting, tmp_path: Path) -> None:
    for field, value in (("max_seconds", 0.0), ("max_seconds", float("nan")), ("min_confidence", 1.5)):
        with pytest.raises(UserError, match=f"^{field} is {value}"):
            Cutting(cutting.audio, "text", "model", **{field: value})
    with pytest.raises(UserError, match=r"none\.wav: cannot be read \(No such file"):
        Cutting(tmp_path / "none.wav", "text", "model").identity()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_segments(tmp_path / "file", cutting, [GOOD], WHOLE)

"""Manifests as other tools write them: formats, names of fields, parts of files, Unicode forms of names."""

import json
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import refused

from flax_wavlm.data.corpora.manifest import read_manifest, splits_of_manifest
from flax_wavlm.data.corpora.utterance import NoSplit, Skipped, Utterance

ROW = {"audio_filepath": "a.wav", "text": "one"}
OTHER = {"audio_filepath": "b.wav", "text": "two"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, content: str, suffix: str = "jsonl") -> list[Utterance]:
    (folder / f"train.{suffix}").write_bytes(content.encode())
    return read_manifest(folder, "train")[0]


def parts(folder: Path, **fields: Any) -> list[tuple]:
    found = read(folder, json.dumps(ROW | fields))
    return [(clip.id, clip.start, clip.end, clip.duration) for clip in found]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("json", f"{json.dumps(ROW)}\n{json.dumps(OTHER)}\n"),  # NeMo
        ("json", json.dumps([ROW, OTHER], indent=2)),
        ("json", json.dumps({"data": [ROW, OTHER]})),
        ("json", json.dumps({"data": [ROW, OTHER]}, indent=2)),
        ("csv", "audio_filepath;text\r\na.wav;one\r\nb.wav;two\r\n"),
        ("csv", "audio_filepath\ttext\na.wav\tone\nb.wav\ttwo\n"),
        ("csv", "text|path\none|a.wav\ntwo|b.wav"),
        ("csv", '"file_name","transcription"\n"a.wav","one"\n\n"b.wav","two"\n'),
        ("csv", 'path, text\na.wav, "one"\nb.wav, two\n,\n'),
        ("csv", "\ufefffile,sentence\ra.wav,one\rb.wav,two\r"),
        ("tsv", "path\tsentence\na.wav\tone\nb.wav\ttwo\n"),
        ("tsv", '"path"\t"sentence"\n"a.wav"\t"one"\n"b.wav"\t"two"\n'),
    ],
)
def test_formats(folder, suffix, content):
    assert read(folder, content, suffix) == [
        Utterance("a.wav", folder / "a.wav", "one"),
        Utterance("b.wav", folder / "b.wav", "two"),
    ]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('a.wav\t"Yes," he said\nb.wav\t"No."\n', ['"Yes," he said', '"No."']),  # as Common Voice writes
        ('a.wav\t"""Yes,"" he said"\nb.wav\tNo\n', ['"Yes," he said', "No"]),  # as pandas does
        ('a.wav\t"\nb.wav\t5" of snow\n', ['"', '5" of snow']),
    ],
)
def test_quotation_marks_in_a_tsv(folder, content, texts):
    assert [clip.text for clip in read(folder, f"path\ttext\n{content}", "tsv")] == texts


def test_a_text_of_two_lines(folder):
    assert read(folder, 'path,text\na.wav,"one\ntwo"\n', "csv")[0].text == "one\ntwo"


def test_usual_names_of_fields(folder):
    row = {
        "wav": "a.wav",
        "transcript": "one",
        "client_id": "anna",
        "utt_id": 7,
        "duration": 2,
        "sentence": None,
    }
    assert read(folder, json.dumps(row)) == [Utterance("7", folder / "a.wav", "one", "anna", 2.0)]


def test_parts(folder):
    assert parts(folder, offset=0, duration=3) == [("a.wav@0.000-3.000", 0, 3, 3)]
    assert parts(folder, offset=2.5, duration=3) == [("a.wav@2.500-5.500", 2.5, 5.5, 3)]
    assert parts(folder, start=3.0, end=6.0) == [("a.wav@3.000-6.000", 3, 6, 3)]
    assert parts(folder, begin_time=1, end_time=2, duration=1.04) == [("a.wav@1.000-2.000", 1, 2, 1.04)]
    assert parts(folder, offset=2) == [("a.wav@2.000-", 2, None, None)]
    assert parts(folder, end=2) == [("a.wav@0.000-2.000", 0, 2, 2)]
    assert parts(folder, duration=3) == [("a.wav", None, None, 3)]
    assert parts(folder, offset=0, duration=None) == [("a.wav", None, None, None)]
    assert parts(folder, offset=1, duration=2, id="x") == [("x", 1, 3, 2)]
    with refused("offset has no duration, and `length`", field="length"):
        parts(folder, offset=1, length=2)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("startTime", "endTime"),
        ("start_s", "end_s"),
        ("START_TIME", "END_TIME"),
        ("segment_start_time", "segment_end_time"),
        ("begin_offset", "end_offset"),
        ("clip_start_sec", "clip_stop_sec"),
        ("starttime", "endtime"),
        ("t_start", "t_end"),
        ("xmin", "xmax"),
    ],
)
def test_other_names_of_times(folder, start, end):
    assert parts(folder, **{start: 1, end: 2.5}) == [("a.wav@1.000-2.500", 1, 2.5, 1.5)]
    with refused(field=f"{start}_ms", expected="in seconds"):
        parts(folder, **{f"{start}_ms": 1000, f"{end}_ms": 2500})


@pytest.mark.parametrize(
    "name", ["start_word", "end_of_turn", "weekend", "offset_mapping", "starter", "tend"]
)
def test_names_of_anything_else_are_no_times(folder, name):
    assert parts(folder, **{name: "x"}) == parts(folder, duration_ms=1500) == [("a.wav", None, None, None)]


def test_times_that_are_not_understood(folder):
    for name, value in (("timestamp", [1.0, 2.5]), ("segment", [1, 2]), ("duration_ms", 1500)):
        with refused(field=name, expected="seconds, in fields named start and end"):
            parts(folder, **{"offset": 1, name: value})


def test_segments(folder):
    segments = [
        {"id": 0, "start": 0.0, "end": 1.5, "text": " one"},
        {"id": 1, "start": 2, "end": 3, "text": "two", "speaker": "ben"},
        {"id": 2, "start": 3, "end": 3, "text": "three"},
        {"id": 3, "start": 3, "end": 4, "text": ""},
    ]
    row = {"audio_filepath": "a.wav", "text": "one two three", "segments": segments, "speaker": "anna"}
    (folder / "train.jsonl").write_text(json.dumps(row))
    utterances, skipped = read_manifest(folder, "train")
    assert utterances == [
        Utterance("a.wav#0001", folder / "a.wav", " one", "anna", 1.5, 0, 1.5),
        Utterance("a.wav#0002", folder / "a.wav", "two", "ben", 1, 2, 3),
    ]
    where = f"{folder}/train.jsonl:1, segment"
    assert skipped == [
        Skipped("a.wav#0003", f"the part has no length ({where} 3)"),
        Skipped("a.wav#0004", f"no text ({where} 4)"),
    ]


def test_a_segment_needs_its_end(folder):
    with refused("the segment has no end", field="segments", where=r"train\.jsonl:1, segment 1$"):
        read(folder, json.dumps(ROW | {"segments": [{"start": 0, "text": "one"}]}))


@pytest.mark.parametrize(("here", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_in_another_form(folder, here, there):
    """In the name of the file, and in that of its folder."""
    name = "Việt/café.wav"
    file = folder / unicodedata.normalize(there, name)
    file.parent.mkdir()
    file.touch()
    [clip] = read(folder, json.dumps(ROW | {"audio_filepath": unicodedata.normalize(here, name)}))
    assert clip.audio == file


def test_splits(folder):
    for name in ("test.csv", "train.json", "extra.tsv", "dev.jsonl", "notes.txt", "._dev.jsonl"):
        (folder / name).touch()
    assert splits_of_manifest(folder) == ["train", "dev", "test", "extra"]
    with pytest.raises(NoSplit, match=r"validation\.jsonl.*it holds .*dev\.jsonl"):
        read_manifest(folder, "validation")


def test_a_large_manifest_is_read_fast(folder):
    lines = "".join(json.dumps(ROW | {"offset": n, "duration": 1}) + "\n" for n in range(5_000))
    start = time.monotonic()
    assert len(read(folder, lines)) == 5_000
    assert time.monotonic() - start < 3

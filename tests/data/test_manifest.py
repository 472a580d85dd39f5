"""Manifests in JSON lines and CSV, and the file and line of whatever is wrong in one."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clips import wav
from helpers.errors import Parts, refused

from flax_wavlm.data.corpora.manifest import read_manifest
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.errors import UserError

TEXTS = {"a.wav": "Hello, you.", "b.wav": "Good-bye!"}
QUIET = np.full(1_600, 7, np.int16)


def write_manifest(folder: Path, rows: list[dict], suffix: str = "jsonl", encoding: str = "utf-8") -> Path:
    for name in TEXTS:
        (folder / name).write_bytes(wav(QUIET))
    manifest = folder / f"train.{suffix}"
    if suffix == "jsonl":
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding=encoding)
    else:
        with open(manifest, "w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return manifest


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_manifests(tmp_path, suffix, encoding):
    rows = [
        {
            "audio_filepath": "b.wav",
            "text": 'naïve, "so"',
            "duration": 1.5,
            "speaker": "s1",
            "id": "z",
            "lang": "en",
        },
        {
            "audio_filepath": str(tmp_path / "a.wav"),
            "text": "x",
            "duration": "",
            "speaker": "",
            "id": "a",
            "lang": "",
        },
    ]
    if suffix == "jsonl":
        rows[1] = {"audio_filepath": str(tmp_path / "a.wav"), "text": "x", "id": "a", "offset": 0.0}
    write_manifest(tmp_path, rows, suffix, encoding)
    assert read_manifest(tmp_path, "train") == (
        [
            Utterance("a", tmp_path / "a.wav", "x"),
            Utterance("z", tmp_path / "b.wav", 'naïve, "so"', "s1", 1.5),
        ],
        [],
    )


def test_manifest_defaults_and_skips(tmp_path):
    (tmp_path / "c.wav").write_bytes(wav(QUIET))
    rows = [{"audio_filepath": name, "text": text} for name, text in {"c.wav": " ", **TEXTS}.items()]
    manifest = write_manifest(tmp_path, rows)
    text = manifest.read_text().replace("Hello", "Hel\u2028lo")  # a line break for splitlines, not for JSON
    manifest.write_text("\n" + text.replace("\n", "\r\n\n"), encoding="utf-8")
    utterances, skipped = read_manifest(tmp_path, "train")
    assert [(u.id, u.text) for u in utterances] == [("a.wav", "Hel\u2028lo, you."), ("b.wav", "Good-bye!")]
    assert skipped == [Skipped("c.wav", f"no text ({manifest}:2)")]


def row(**fields: Any) -> str:
    return json.dumps({"audio_filepath": "a.wav", "text": "t"} | fields, ensure_ascii=False) + "\n"


GOOD = row()


@pytest.mark.parametrize(
    ("content", "line", "parts"),
    [
        (GOOD + '{"audio_filepath": "b.wav", "text": "t"', 2, Parts("not JSON")),
        (GOOD + '["b.wav", "t"]', 2, Parts(found='["b.wav", "t"]', expected="a JSON object")),
        ('{"audio_filepath": "a.wav"}', 1, Parts("missing", field="text", expected="a string")),
        ('{"text": "t"}', 1, Parts("missing", field="audio_filepath")),
        ('{"audio_filepath": "", "text": "t"}', 1, Parts(field="audio_filepath", found="")),
        (row(text=None), 1, Parts(field="text", found=None, expected="a string")),
        (row(text=5), 1, Parts(field="text", found=5, expected="a string")),
        (row(speaker=[]), 1, Parts(field="speaker", found=[])),
        (row(duration="long"), 1, Parts(field="duration", found="long", expected="seconds")),
        (row(duration=-1), 1, Parts(field="duration", found=-1)),
        (row(duration=math.nan), 1, Parts(field="duration", found=math.nan)),
        (row(offset=-3.5), 1, Parts(field="offset", found=-3.5, expected="seconds from 0")),
        (GOOD + "\n" + GOOD, 3, Parts(r"id 'a\.wav' is also at .*train\.jsonl:1$", field="id")),
        (
            GOOD + row(audio_filepath="c.wav"),
            2,
            Parts(field="audio_filepath", found="c.wav", expected=r"there is no file /.*/c\.wav"),
        ),
        (row(audio_filepath="."), 1, Parts(field="audio_filepath", found=".", expected="there is no file")),
        ("\n\n", None, Parts("no usable clip, none")),
        (row(text=""), None, Parts(r"no usable clip, 1 unusable \(a\.wav: no text")),
        (GOOD.encode() + row(text="é").encode("latin-1"), 2, Parts("byte 0xe9 is not UTF-8")),
    ],
)
def test_bad_jsonl(tmp_path, content, line, parts):
    manifest = write_manifest(tmp_path, [])
    manifest.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path, "train")
    parts.check(error.value)
    assert error.value.where == (str(manifest) if line is None else f"{manifest}:{line}")


@pytest.mark.parametrize(
    ("content", "line", "parts"),
    [
        ("", 1, Parts("no column 'audio_filepath'; the header is empty")),
        ("audio_filepath text\na.wav t\n", 1, Parts("no column .*; the header is audio_filepath text$")),
        ("audio_filepath;text\na.wav;t;u\n", 2, Parts("number of fields", do="holds ';' in double quotes")),
        (
            'audio_filepath,text\na.wav,"t\nb.wav,u\nc.wav,v"\n',
            2,
            Parts("ends 2 lines later", found="t\nb.wav,u\nc.wav,v"),
        ),
        ("audio_filepath,text\na.wav,one, two\n", 2, Parts("number of fields", expected="^2 fields")),
        ("audio_filepath,text\na.wav\n", 2, Parts("number of fields", expected="^2 fields")),
        ('audio_filepath,text\na.wav,"t\n', 2, Parts("not CSV")),
        ("audio_filepath,text\na.wav,t\nb.wav,t\na.wav,t\n", 4, Parts(r"id 'a\.wav' is also at .*:2$")),
        ("audio_filepath,text,duration\na.wav,t,1s\n", 2, Parts(field="duration", found="1s")),
        ("audio_filepath,text\n", None, Parts("no usable clip")),
    ],
)
def test_bad_csv(tmp_path, content, line, parts):
    write_manifest(tmp_path, [])
    (tmp_path / "train.jsonl").unlink()
    manifest = tmp_path / "train.csv"
    manifest.write_text(content)
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path, "train")
    parts.check(error.value)
    assert error.value.where == (str(manifest) if line is None else f"{manifest}:{line}")


def test_no_manifest_or_two(tmp_path):
    write_manifest(tmp_path, [{"audio_filepath": "a.wav", "text": "t"}], "jsonl")
    with refused(r"none of test\.jsonl, .*test\.tsv is there; .*train\.jsonl", where=str(tmp_path)):
        read_manifest(tmp_path, "test")
    write_manifest(tmp_path, [{"audio_filepath": "a.wav", "text": "t"}], "csv")
    with refused(r"both train\.jsonl and train\.csv are there", where=str(tmp_path)):
        read_manifest(tmp_path, "train")

"""Transcripts' files: one for each input, in its own place, found again, and never somebody else's."""

import io
import json
import logging
import os
import random
from pathlib import Path

import pytest
from absl import flags

from flax_wavlm.cli.names import in_flags
from flax_wavlm.cli.outputs import FORMAT_NAMES, OUTPUT_FIELDS, define_output_flags, outputs
from flax_wavlm.errors import UserError
from flax_wavlm.recognition.formats import FORMATS
from flax_wavlm.recognition.outputs import Outputs, plan_outputs
from flax_wavlm.recognition.transcript import Transcript, Word


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def said(file: str | Path, text: str = "a") -> Transcript:
    return Transcript(file, text, 2.0, (Word(text, 0.5, 1.0, 0.5),), (), 0.5)


def places(*inputs: str | Path, format: str = "srt", folder: str = "out", **settings: bool) -> list[str]:
    """The files of a plan, relative to the working folder."""
    files = plan_outputs(inputs, format, folder=folder, **settings).files
    assert files is not None
    return [os.path.relpath(file) for file in files.values()]


def message(*inputs: str | Path, format: str = "srt", **settings: object) -> str:
    """The error of a plan, as the commands print it."""
    with pytest.raises(UserError) as raised:
        plan_outputs(inputs, format, **settings)
    text = str(in_flags(raised.value, OUTPUT_FIELDS))
    assert "\n" not in text
    return text


def test_equal_names_have_files_of_their_own():
    assert places("a/x.wav", "b/x.wav", "x.flac") == ["out/a/x.srt", "out/b/x.srt", "out/x.srt"]
    assert places("b/x.wav") == ["out/b/x.srt"]  # whatever else is given
    assert places("./x.wav", "x.wav") == ["out/x.srt"]
    assert places("-", format="textgrid") == ["out/stdin.TextGrid"]


def test_names_never_leave_the_folder(here):
    elsewhere = Path(*here.parts[1:-1])
    assert places("../x.wav", "a/../../y.wav") == [f"out/{elsewhere}/x.srt", f"out/{elsewhere}/y.srt"]
    assert places("/x.wav", "a/../z.wav", str(here / "w.wav")) == ["out/x.srt", "out/z.srt", "out/w.srt"]
    (here / "out" / "link").symlink_to(here.parent)
    assert "leads to" in (text := message("link/x.wav", folder="out"))
    assert "outside of out" in text
    (here / "out" / "loop").symlink_to("loop")
    assert "cannot be written" in message("loop/x.wav", folder="out")


def test_random_names_never_leave_the_folder(here):
    rng = random.Random(0)
    pieces = (
        "..",
        ".",
        "/",
        "//",
        "a",
        "x.wav",
        "~",
        "-",
        " ",
        "\n",
        "C:",
        "\\",
        "\0",
        "é",
        "\udcff",
        "a" * 300,
        "",
    )
    refused = 0
    for _ in range(300):
        names = ["/".join(rng.choices(pieces, k=rng.randrange(1, 6))) or "x" for _ in range(3)]
        try:
            files = plan_outputs(names, "json", folder="out").files or {}
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either end is right
            refused += 1
            continue
        for file in files.values():
            assert Path(os.path.abspath(file)).is_relative_to(here / "out")
            assert file.name.endswith(".json")
    assert 30 < refused < 270
    assert os.listdir(here) == ["out"]
    assert os.listdir("out") == []


def test_recordings_of_one_stem_keep_their_suffixes(here):
    for name in ("x.wav", "X.FLAC", "y.wav", "y.txt", "z.wav", "z.wav.wav", "No. 1"):
        (here / name).touch()
    assert places("x.wav") == ["out/x.wav.srt"]
    assert places("X.FLAC", "y.wav", "z.wav", "z.wav.wav") == [
        "out/X.FLAC.srt",
        "out/y.srt",
        "out/z.srt",
        "out/z.wav.srt",
    ]
    assert places("No. 1", "No. 2") == ["out/No. 1.srt", "out/No. 2.srt"]
    assert "would be the file of 'a' and of 'a.wav'" in message("a", "a.wav", folder="out")
    assert "would be the file of '-' and of 'stdin.wav'" in message("-", "stdin.wav", folder="out")


def test_a_file_of_each_is_whole_and_found_again(here, caplog):
    plan = plan_outputs(["a/x.wav", "./b/x.wav"], "tsv", folder="new/out")
    assert not plan.done("a/x.wav")
    plan.write(said("a/x.wav"))
    plan.write(said(Path("b/x.wav")))
    lines = (here / "new/out/b/x.tsv").read_text().splitlines()
    assert lines[0].startswith("file\tstart")
    assert lines[1:] == ["b/x.wav\t0.500\t1.000\ta\t0.5000"]
    assert sorted(os.listdir("new/out/a")) == ["x.tsv"]

    again = "2 of 3 files to write are there already: 'new/out/a/x.tsv', 'new/out/b/x.tsv'"
    text = message("a/x.wav", "b/x.wav", "c.wav", format="tsv", folder="new/out")
    assert text.startswith(again)
    assert "--resume to skip their recordings, or --overwrite to replace them" in text
    with caplog.at_level(logging.INFO):
        plan = plan_outputs(["c.wav", "a/x.wav"], "tsv", folder="new/out", resume=True)
    assert [plan.done(name) for name in ("c.wav", "./a/x.wav")] == [False, True]
    assert "1 of 2 recordings have their file already" in caplog.text
    plan = plan_outputs(["a/x.wav"], "tsv", folder="new/out", overwrite=True)
    assert not plan.done("a/x.wav")
    plan.write(said("a/x.wav", "b"))
    assert "\tb\t" in (here / "new/out/a/x.tsv").read_text()


def test_beside_recordings_nothing_is_overwritten(here):
    (here / "a").mkdir()
    (here / "a/x.txt").write_text("the user's own\n")
    assert places("a/x.wav", folder="", beside=True) == ["a/x.srt"]
    assert "1 of 2 files" in message("a/x.wav", "a/y.wav", format="text", beside=True)
    text = message("a/x.wav", "a/x.txt", format="text", beside=True, overwrite=True)
    assert "x.txt: would take the place of a recording" in text
    plan_outputs(["a/y.wav"], "text", beside=True).write(said("a/y.wav"))
    assert (here / "a/y.txt").read_text() == "a/y.wav\ta\n"
    assert (here / "a/x.txt").read_text() == "the user's own\n"
    assert "--beside is True, expected no standard input" in message("-", beside=True)


def test_long_and_undecodable_names(here):
    long = "我" * 80 + ".wav"  # 244 bytes
    odd = os.fsdecode(b"b\xff.wav")
    plan = plan_outputs([long, odd], "json", folder="out")
    for name in (long, odd):
        plan.write(said(name))
    assert sorted(os.listdir("out")) == sorted(["我" * 80 + ".json", os.fsdecode(b"b\xff.json")])
    assert json.loads((here / "out" / os.fsdecode(b"b\xff.json")).read_text())["file"] == odd
    assert "the name is too long" in message("x" * 250 + ".wav", format="textgrid", folder="out")
    assert "cannot be" in message("nul\0.wav", folder="out")


def test_what_stands_in_the_way(here):
    (here / "file").touch()
    assert "cannot be written (File exists)" in message("x.wav", folder="file")
    assert "cannot be written" in message("x.wav", folder="file/out")
    (here / "out/x.srt").mkdir(parents=True)
    assert "out/x.srt: is no file" in message("x.wav", folder="out", resume=True)
    (here / "out/a").touch()
    assert "out/a: is no folder" in message("a/b/x.wav", folder="out")
    plan = plan_outputs(["b/x.wav"], "srt", folder="out")
    (here / "out/b").touch()
    with pytest.raises(UserError, match=r"x\.srt: cannot be written"):
        plan.write(said("b/x.wav"))


def test_one_stream():
    for format in ("text", "jsonl", "ctm", "tsv"):
        assert plan_outputs(["a.wav", "b.wav"], format).files is None
    stream = io.StringIO()
    plan = Outputs("tsv", None, stream=stream)
    for name in ("a.wav", "b.wav"):
        assert not plan.done(name)
        plan.write(said(name))
    assert [line.split("\t")[0] for line in stream.getvalue().splitlines()] == ["file", "a.wav", "b.wav"]
    for format in ("json", "srt", "vtt", "textgrid"):
        assert plan_outputs(["a.wav"], format).files is None
        assert message("a.wav", "-", format=format) == (
            f"2 recordings cannot be one {format} file on standard output; give --output_dir for a file of "
            "each, or --format=jsonl"
        )


def test_json_in_a_stream_of_another_encoding():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="backslashreplace")
    Outputs("jsonl", None, stream=stream).write(said("é😀.wav"))
    assert json.loads(stream.buffer.getvalue())["file"] == "é😀.wav"


def test_stream_that_is_closed():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        with pytest.raises(UserError, match=r"standard output: cannot be written \(Broken pipe\)"):
            Outputs("text", None, stream=stream).write(said("a.wav"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_settings_that_contradict_each_other():
    assert "--output_dir and --beside are both" in message("a.wav", folder="out", beside=True)
    assert "--resume and --overwrite are both" in message("a.wav", folder="o", resume=True, overwrite=True)
    assert "--resume is about files" in message("a.wav", resume=True)
    assert message("a.wav", format="str").startswith("--format is 'str', expected one of text, json")
    assert not Path("out").exists()  # nothing was made


def test_flags():
    values = flags.FlagValues()
    define_output_flags(values)
    values(["transcribe", "--format=vtt", "--output_dir", "out", "--resume"])
    assert outputs(values, ["x.wav"]).files == {"x.wav": Path("out/x.vtt")}
    assert tuple(FORMATS) == FORMAT_NAMES
    assert set(OUTPUT_FIELDS.values()) == {
        f"--{name}" for name in ("format", "output_dir", "beside", "resume", "overwrite")
    }

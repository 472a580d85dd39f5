"""Manifests: lines, fields, paths and permissions that cannot be used."""

from pathlib import Path

import pytest
from helpers.bad_input import GOOD, Case, check, each, forbidden, manifest, read_split, row
from helpers.errors import Parts
from helpers.reference import Reference

CASES = [
    Case(
        "JSON that is cut off",
        manifest(GOOD + '{"audio_filepath": "b.wav", "text"'),
        error=Parts(r"not JSON", where=r"train\.jsonl:2$", expected="one JSON object a line"),
    ),
    Case(
        "JSON of brackets a hundred thousand deep",
        manifest("[" * 100_000),
        error=Parts(r"not JSON \(nested too deep\)", where=r"train\.jsonl:1$"),
    ),
    Case(
        "a list for a row",
        manifest('["a.wav", "one"]'),
        error=Parts(where=r"train\.jsonl:1$", found='["a.wav", "one"]', expected="a JSON object"),
    ),
    Case(
        "no text field",
        manifest(GOOD + '{"audio_filepath": "b.wav"}'),
        error=Parts(r"missing", where=r"train\.jsonl:2$", field="text"),
    ),
    Case(
        "no audio_filepath field",
        manifest('{"text": "t"}'),
        error=Parts(r"missing", where=r"train\.jsonl:1$", field="audio_filepath"),
    ),
    Case(
        "a number for a text",
        manifest(row(text=5)),
        error=Parts(where=r"train\.jsonl:1$", field="text", found=5, expected="a string"),
    ),
    Case(
        "a field twice in a row",
        manifest('{"audio_filepath": "a.wav", "text": "one", "text": "two"}'),
        error=Parts(r"not JSON \('text' is there twice", where=r"train\.jsonl:1$"),
    ),
    Case(
        "the same id twice",
        manifest(row(id="x") + row(id="x")),
        error=Parts(r"id 'x' is also at .*train\.jsonl:1", where=r"train\.jsonl:2$"),
    ),
    Case(
        "the same clip twice",
        manifest(GOOD + GOOD),
        error=Parts(r"id 'a\.wav' is also at", where=r"train\.jsonl:2$"),
    ),
    Case(
        "a relative path that dangles",
        manifest(GOOD + row(audio_filepath="c/c.wav")),
        error=Parts(
            where=r"train\.jsonl:2$",
            field="audio_filepath",
            found="c/c.wav",
            expected=r"there is no file /.*/c/c\.wav",
        ),
    ),
    Case(
        "an absolute path that dangles",
        manifest(row(audio_filepath="/no/c.wav")),
        error=Parts(
            where=r"train\.jsonl:1$",
            field="audio_filepath",
            found="/no/c.wav",
            expected=r"there is no file /no/c\.wav",
        ),
    ),
    Case("a relative and an absolute path", manifest(GOOD + row(audio_filepath="FOLDER/b.wav")), used=2),
    Case(
        "a folder for an audio file",
        manifest(row(audio_filepath=".")),
        error=Parts(where=r"train\.jsonl:1$", field="audio_filepath", found=".", expected="there is no file"),
    ),
    Case(
        "a path too long for the system",
        manifest(row(audio_filepath="a" * 5000)),
        error=Parts(
            r"cannot be used: .*File name too long", where=r"train\.jsonl:1$", field="audio_filepath"
        ),
    ),
    Case(
        "a null character in a path",
        manifest(row(audio_filepath="a\0.wav")),
        error=Parts(r"cannot be used: .*null byte", where=r"train\.jsonl:1$", field="audio_filepath"),
    ),
    Case(
        "a negative duration",
        manifest(row(duration=-1)),
        error=Parts(where=r"train\.jsonl:1$", field="duration", found=-1, expected="seconds"),
    ),
    Case(
        "a duration of 400 digits",
        manifest('{"audio_filepath": "a.wav", "text": "t", "duration": 1' + "0" * 400 + "}"),
        error=Parts(where=r"train\.jsonl:1$", field="duration", found=10**400, expected="seconds"),
    ),
    Case(
        "true for a duration",
        manifest(row(duration=True)),
        error=Parts(where=r"train\.jsonl:1$", field="duration", found=True, expected="seconds"),
    ),
    Case(
        "a part that ends before it begins",
        manifest(row(start=3.5, end=1)),
        error=Parts(r"end lies before start, 3\.5 s", where=r"train\.jsonl:1$", field="end", found=1),
    ),
    Case(
        "an end and a duration that contradict each other",
        manifest(row(start=1, end=2, duration=3)),
        error=Parts(r"contradicts end, which makes 1 s", where=r"train\.jsonl:1$", field="duration", found=3),
    ),
    Case(
        "two starts of one part",
        manifest(row(offset=1, start=2, duration=1)),
        error=Parts(r"offset is 1\.0 and start is 2\.0", where=r"train\.jsonl:1$", field="start"),
    ),
    Case(
        "a part in samples",
        manifest(row(start_sample=16000, end_sample=32000)),
        error=Parts(where=r"train\.jsonl:1$", field="start_sample", expected="in seconds"),
    ),
    Case(
        "two texts of one clip",
        manifest(row(sentence="three")),
        error=Parts(r"text is 'two' and sentence is 'three'", where=r"train\.jsonl:1$", field="sentence"),
    ),
    Case(
        "segments that are no objects",
        manifest(row(segments=[1, 2])),
        error=Parts(where=r"train\.jsonl:1$", field="segments", expected="start, end and text"),
    ),
    Case(
        "UTF-16, as Windows programs save it",
        manifest(GOOD.encode("utf-16")),
        error=Parts("is UTF-16", where=r"train\.jsonl$", do="iconv -f utf-16 "),
    ),
    Case(
        "a quotation mark that swallows lines",
        manifest('audio_filepath,text\na.wav,"one\nb.wav,two\nb.wav,"\n', "csv"),
        error=Parts("a quoted field that begins here ends 2 lines later", where=r"train\.csv:2$"),
    ),
    Case(
        "a name in other letters' case",
        manifest(row(audio_filepath="B.WAV")),
        error=Parts(where=r"train\.jsonl:1$", found="B.WAV", do="the folder has 'b.wav'"),
    ),
    Case(
        "twelve missing files",
        manifest(GOOD + "".join(row(audio_filepath=f"no{n:02}.wav") for n in range(12))),
        error=Parts(
            r"12 of 13 audio files are not there: 'no00.wav', .*'no09.wav' and 2 more$",
            where=r"train\.jsonl:2$",
            expected=r"there is no file /.*no00\.wav$",
        ),
    ),
    Case(
        "CSV without a header",
        manifest("a.wav,one\n", "csv"),
        error=Parts(r"no column 'audio_filepath'; the header is a\.wav, one$", where=r"train\.csv:1$"),
    ),
    Case(
        "CSV with a comma in a text",
        manifest("audio_filepath,text\na.wav,one, two\n", "csv"),
        error=Parts(r"number of fields", where=r"train\.csv:2$", expected="2 fields"),
    ),
    Case(
        "CSV with a column twice",
        manifest("audio_filepath,text,text\na.wav,one,two\n", "csv"),
        error=Parts(r"the column 'text' is there twice", where=r"train\.csv:1$", field="text"),
    ),
    Case(
        "CSV with an open quote",
        manifest('audio_filepath,text\na.wav,"one\n', "csv"),
        error=Parts(r"not CSV", where=r"train\.csv:2$"),
    ),
    Case(
        "a manifest and its CSV",
        lambda folder, tiny: (
            [(folder / f"train.{s}").touch() for s in ("jsonl", "csv")] and read_split(folder)
        ),
        error=Parts(r"both train\.jsonl and train\.csv", expected="one"),
    ),
    Case(
        "no manifest",
        lambda folder, tiny: read_split(folder),
        error=Parts(r"none of train\.jsonl, .* is there; it holds nothing"),
    ),
    Case(
        "a folder named train.jsonl",
        lambda folder, tiny: (folder / "train.jsonl").mkdir() or read_split(folder),
        error=Parts(r"cannot be read \(Is a directory\)", where=r"train\.jsonl$"),
    ),
    Case(
        "a folder that does not exist",
        lambda folder, tiny: read_split(folder / "no"),
        error=Parts(field="data.path", expected="a folder with train.jsonl"),
    ),
    Case(
        "a manifest for its folder",
        lambda folder, tiny: (folder / "train.jsonl").touch() or read_split(folder / "train.jsonl"),
        error=Parts(field="data.path", expected="a folder with train.jsonl"),
    ),
    Case(
        "a misspelt corpus",
        lambda folder, tiny: read_split(folder, "manifst"),
        error=Parts(field="data.corpus", found="manifst", do="did you mean 'manifest'"),
    ),
    Case(
        "a manifest without permission",
        forbidden(0, "train.jsonl"),
        error=Parts(r"cannot be read \(Permission denied\)", where=r"train\.jsonl$"),
    ),
    Case(
        "a manifest's folder without permission",
        forbidden(0o600, "."),
        error=Parts(r"cannot be read \(Permission denied\)", where="train.jsonl"),
    ),
    Case(
        "an audio folder without permission",
        forbidden(0, "data"),
        error=Parts(
            r"cannot be used: .*a\.wav'.*Permission denied", where=r"train\.jsonl:1$", field="audio_filepath"
        ),
    ),
]


@each(CASES)
def test_bad_manifest(
    case: Case,
    tiny: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    check(case, tiny, tmp_path, caplog, capfd)

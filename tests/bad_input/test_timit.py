"""TIMIT with files missing, doubled, damaged or forbidden."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_input import Case, check, each, read_split
from helpers.errors import Parts
from helpers.fake_timit import build_fake_timit
from helpers.permissions import without_roots_rights
from helpers.reference import Reference


def timit(change: Callable[[Path], object], split: str = "train") -> Callable[[Path, Reference], Any]:
    """A miniature TIMIT, 40 clips in train and 20 in test, after `change(its first speaker's folder)`."""

    def give(folder: Path, tiny: Reference) -> Any:
        root = build_fake_timit(folder, "flat_upper")
        with without_roots_rights():
            change(root / "TRAIN" / "DR1" / "FCJF0")
            return read_split(root, "timit", split)

    return give


CASES = [
    Case(
        "TIMIT without its test split",
        timit(lambda speaker: shutil.rmtree(speaker.parents[2] / "TEST"), "test"),
        error=Parts(r"no TEST folder in it.*it holds TRAIN$", expected="TIMIT's layout"),
    ),
    Case(
        "an empty train split",
        timit(lambda speaker: (shutil.rmtree(speaker.parents[1]), speaker.mkdir(parents=True))),
        error=Parts(r"no usable clip, none", where="TRAIN$"),
    ),
    Case(
        ".TXT files without .WAV",
        timit(lambda speaker: [(speaker / f"SA{n}.WAV").unlink() for n in (1, 2)]),
        skipped=(r"no audio file beside .*SA1\.TXT", r"no audio file beside .*SA2\.TXT"),
        used=38,
    ),
    Case(
        "a .WAV file without .TXT",
        timit(lambda speaker: (speaker / "SA1.TXT").unlink()),
        skipped=(r"no \.TXT file beside .*SA1\.WAV",),
        used=39,
    ),
    Case(
        "a .TXT file in Latin-1",
        timit(lambda speaker: (speaker / "SA1.TXT").write_bytes(b"0 9 na\xefve")),
        skipped=(r"SA1\.TXT:1: byte 0xef is not UTF-8",),
        used=39,
    ),
    Case(
        "a .TXT file without samples",
        timit(lambda speaker: (speaker / "SA1.TXT").write_text("She had.")),
        skipped=(r"SA1\.TXT: .*found 'She had\.', expected a line 'begin end sentence'",),
        used=39,
    ),
    Case(
        "a .TXT file without permission",
        timit(lambda speaker: (speaker / "SA1.TXT").chmod(0)),
        skipped=(r"SA1\.TXT: cannot be read \(Permission denied\)",),
        used=39,
    ),
    Case(
        "a folder named SA1.WAV",
        timit(lambda speaker: ((speaker / "SA1.WAV").unlink(), (speaker / "SA1.WAV").mkdir())),
        skipped=(r"unreadable audio: .*SA1\.WAV: cannot be read \(Is a directory\)",),
        used=39,
    ),
    Case(
        "a dangling link",
        timit(lambda speaker: ((speaker / "SA1.WAV").unlink(), (speaker / "SA1.WAV").symlink_to("gone"))),
        skipped=(r"unreadable audio: .*SA1\.WAV: cannot be read \(No such file",),
        used=39,
    ),
    Case(
        "a clip in two cases",
        timit(lambda speaker: shutil.copy(speaker / "SA1.WAV", speaker / "sa1.wav")),
        error=Parts(r"a second copy of one TIMIT file, .*SA1\.WAV", where=r"sa1\.wav$"),
    ),
    Case(
        "a speaker's folder that cannot be listed",
        timit(lambda speaker: speaker.chmod(0o300)),
        error=Parts(r"cannot be read \(Permission denied\)", where="FCJF0$"),
    ),
    Case(
        "a region's folder that cannot be entered",
        timit(lambda speaker: speaker.parent.chmod(0o600)),
        error=Parts(r"cannot be read \(Permission denied\)", where="DR1/FCJF0"),
    ),
    Case(
        "NLTK's sample in place of TIMIT",
        lambda folder, tiny: (folder / "dr1-mcpm0").mkdir() or read_split(folder, "timit"),
        error=Parts(r"looks like NLTK's TIMIT sample"),
    ),
    Case(
        "another split than TIMIT has",
        timit(lambda speaker: None, "valid"),
        error=Parts("no split 'valid'", where="[a-z]", field="split", expected="one of train, test"),
    ),
]


@each(CASES)
def test_bad_timit(
    case: Case,
    tiny: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    check(case, tiny, tmp_path, caplog, capfd)

"""What the tables of bad input share: a case, how its end is checked, and what is given to the readers.

Each case must end in a UserError of one readable line that names the file or the field, or else in a known
number of skipped clips with their reasons. Anything else, a foreign exception or a clip that is used in
silence, fails.
"""

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flax_wavlm import UserError, WavLMConfig
from flax_wavlm.data.clips import usable_clips
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import ABSENT
from helpers.errors import Parts
from helpers.permissions import without_roots_rights
from helpers.reference import Reference

RATE = 16_000
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
NOISE = (np.random.default_rng(0).standard_normal(2 * RATE) * 3000).astype(np.int16)


@dataclass(frozen=True)
class Case:
    """`give(folder, tiny)` puts the bad input into an empty folder and calls the entry point.

    `error`: the parts of the UserError, or a regular expression for the line that the user sees. Or, where a
    split was read: `skipped`, a reason for each clip that was left out, `used`, how many were not, and `log`,
    what was said about those that are used all the same.
    """

    given: str
    give: Callable[[Path, Reference], Any]
    error: Parts | str = ""
    skipped: tuple[str, ...] = ()
    used: int = 1
    log: str = ""


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.given)


def check(
    case: Case,
    tiny: Reference,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    """Gives the input, and looks at what comes of it."""
    if case.error:
        check_error(case, tiny, folder)
    else:
        check_skipped(case, tiny, folder, caplog)
    assert "Traceback" not in capfd.readouterr().err


def check_error(case: Case, tiny: Reference, folder: Path) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - its type and parts are looked at below
        case.give(folder, tiny)
    error = raised.value
    assert isinstance(error, UserError), repr(error)
    assert "\n" not in str(error)
    if isinstance(case.error, Parts):
        case.error.check(error)
        # The file or the field is named; what is in no file and no field is shown as the user gave it.
        assert error.where or error.field or error.found is not ABSENT or "empty" in error.problem, str(error)
    else:
        assert re.search(case.error, str(error)), str(error)
        named = (str(folder), "--", "flag", "data.", "mesh.", "optim.", "train", "seed", "config:", "nobody/")
        assert any(name in str(error) for name in named) or error.where or error.field, str(error)


def check_skipped(case: Case, tiny: Reference, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    used, reasons = case.give(folder, tiny)
    assert len(reasons) == len(case.skipped), reasons
    for reason, expected in zip(reasons, case.skipped, strict=True):
        assert re.search(expected, reason), reason
        assert "\n" not in reason
    assert used == case.used
    assert re.search(case.log, caplog.text), caplog.text


def encoded(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=format, subtype=subtype)
    return stream.getvalue()


TEN_MINUTES = encoded(np.tile(NOISE, 300))


def read_split(
    folder: Path, corpus: str = "manifest", split: str = "train", **how: Any
) -> tuple[int, list[str]]:
    """What training and evaluation do with a split: the number of clips used, and why others are not."""
    utterances, unusable = load_corpus(corpus, folder, split)
    clips, skipped = usable_clips(
        utterances,
        CTCTokenizer.from_texts([LETTERS]),
        name=split,
        frame_count=WavLMConfig().frame_count,
        **how,
    )
    return len(clips), [clip.reason for clip in (*unusable, *skipped)]


def clip(audio: bytes, text: str = "she had", **how: Any) -> Callable[[Path, Reference], Any]:
    """A manifest of a good clip and this one."""

    def give(folder: Path, tiny: Reference) -> Any:
        (folder / "bad.wav").write_bytes(audio)
        (folder / "good.wav").write_bytes(encoded(NOISE))
        rows = [{"audio_filepath": "good.wav", "text": "good"}, {"audio_filepath": "bad.wav", "text": text}]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_split(folder, **how)

    return give


def manifest(content: str | bytes, suffix: str = "jsonl") -> Callable[[Path, Reference], Any]:
    """A manifest of this content, beside a.wav and b.wav."""

    def give(folder: Path, tiny: Reference) -> Any:
        for name in ("a.wav", "b.wav"):
            (folder / name).write_bytes(encoded(NOISE))
        content_here = content.replace("FOLDER", str(folder)) if isinstance(content, str) else content
        data = content_here.encode("utf-8") if isinstance(content_here, str) else content_here
        (folder / f"train.{suffix}").write_bytes(data)
        return read_split(folder)

    return give


GOOD = '{"audio_filepath": "a.wav", "text": "one"}\n'


def row(**fields: Any) -> str:
    return json.dumps({"audio_filepath": "b.wav", "text": "two"} | fields) + "\n"


def forbidden(mode: int, name: str) -> Callable[[Path, Reference], Any]:
    """A good manifest of data/a.wav, where `name` has these permissions."""

    def give(folder: Path, tiny: Reference) -> Any:
        (folder / "data").mkdir()
        (folder / "data" / "a.wav").write_bytes(encoded(NOISE))
        (folder / "good.wav").write_bytes(encoded(NOISE))
        lines = row(audio_filepath="data/a.wav") + row(audio_filepath="good.wav")
        (folder / "train.jsonl").write_text(lines)
        (folder / name).chmod(mode)
        try:
            with without_roots_rights():
                return read_split(folder)
        finally:
            (folder / name).chmod(0o700)

    return give

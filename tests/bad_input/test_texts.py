"""Texts that are empty, in another script, in another encoding, or too long for their clip."""

from pathlib import Path

import pytest
from helpers.bad_input import GOOD, NOISE, Case, check, clip, each, encoded, manifest, row
from helpers.errors import Parts
from helpers.reference import Reference

CASES = [
    Case("an empty text", clip(encoded(NOISE), ""), skipped=(r"no text \(.*train\.jsonl:2\)",)),
    Case("white space for a text", clip(encoded(NOISE), " \t\u00a0"), skipped=(r"no text",)),
    Case(
        "punctuation alone",
        clip(encoded(NOISE), "?! ..."),
        skipped=(r"no text after normalisation: '\?! \.\.\.'",),
    ),
    Case(
        "another script, for training",
        clip(encoded(NOISE), "привет"),
        skipped=(r"text outside the vocabulary: 100% of 'привет'",),
    ),
    Case(
        "another script, for evaluation",
        clip(encoded(NOISE), "привет", drop_infeasible=False),
        used=2,
        log=r"kept in the evaluation 1 - text outside the vocabulary: bad\.wav",
    ),
    Case(
        "a few characters outside the vocabulary",
        clip(encoded(NOISE), "naïve 4"),
        used=2,
        log=r"characters outside the vocabulary, read as unknown: \['4', 'ï'\]",
    ),
    Case(
        "a text that spells the blank", clip(encoded(NOISE), "a [PAD]"), used=2
    ),  # brackets are removed: "pad"
    Case(
        "labels longer than frames",
        clip(encoded(NOISE[:1600]), "she had your dark suit"),
        skipped=(r"labels longer than frames: 22 frames needed, 4 there",),
    ),
    Case(
        "labels longer than frames, for evaluation",
        clip(encoded(NOISE[:1600]), "she had your dark suit", drop_infeasible=False),
        used=2,
        log=r"kept in the evaluation 1 - labels longer",
    ),
    Case(
        "a manifest in Latin-1",
        manifest(GOOD.encode() + '{"audio_filepath": "b.wav", "text": "é"}'.encode("latin-1")),
        error=Parts("byte 0xe9 is not UTF-8", where=r"train\.jsonl:2$"),
    ),
    Case(
        "a manifest in UTF-16",
        manifest(GOOD.encode("utf-16")),
        error=Parts("is UTF-16", where=r"train\.jsonl$", expected="UTF-8", do="iconv -f utf-16"),
    ),
    Case(
        "half a surrogate pair",
        manifest(GOOD + '{"audio_filepath": "b.wav", "text": "\\ud800"}'),
        error=Parts(r"not JSON \(half of a surrogate pair", where=r"train\.jsonl:2$"),
    ),
    Case(
        "no text at all",
        manifest(row(text="")),
        error=Parts(r"no usable clip, 1 unusable \(b\.wav: no text", where=r"train\.jsonl$"),
    ),
    Case(
        "punctuation in every text",
        manifest(row(text="...")),
        error=Parts("none of the 1 clips can be used", where="^train$"),
    ),
]


@each(CASES)
def test_bad_text(
    case: Case,
    tiny: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    check(case, tiny, tmp_path, caplog, capfd)

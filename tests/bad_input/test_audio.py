"""Audio files that are damaged, empty, silent, too short or too long; and odd ones that can be read."""

from pathlib import Path

import numpy as np
import pytest
from helpers.bad_input import NOISE, RATE, TEN_MINUTES, Case, check, clip, each, encoded, forbidden
from helpers.reference import Reference

HALF = len(encoded(NOISE)) // 2
SHORT_FLAC_HEADER = bytearray(encoded(NOISE, format="FLAC", subtype="PCM_16"))
SHORT_FLAC_HEADER[21] |= 0x0F  # STREAMINFO's total samples: 64 billion
SLOW = bytearray(encoded(NOISE))
SLOW[24:28] = (1).to_bytes(4, "little")  # a sample a second

CASES = [
    Case(
        "a truncated RIFF file",
        clip(encoded(NOISE)[:HALF]),
        skipped=(r"unreadable audio: .*bad\.wav: the audio is cut short, found \d+, expected the 32000",),
    ),
    Case(
        "a truncated SPHERE file",
        clip(encoded(NOISE, format="NIST")[:HALF]),
        skipped=(r"unreadable audio: .*bad\.wav: the audio is cut short, found \d+, expected the 32000",),
    ),
    Case(
        "a truncated FLAC file",
        clip(encoded(NOISE, format="FLAC")[:HALF]),
        skipped=(r"unreadable audio: .*bad\.wav: (the audio is cut short|libsndfile cannot decode it)",),
    ),
    Case(
        "a FLAC file that promises 64 billion samples",
        clip(bytes(SHORT_FLAC_HEADER)),
        skipped=(r"unreadable audio: .*bad\.wav: (the audio is cut short, found 32000|libsndfile cannot)",),
    ),
    Case("an empty file", clip(b""), skipped=(r"unreadable audio: .*bad\.wav: the file is empty",)),
    Case(
        "a header without samples",
        clip(encoded(NOISE[:0])),
        skipped=(r"unreadable audio: .*bad\.wav: the audio file has 0 samples",),
    ),
    Case(
        "samples without a header",
        clip(NOISE.tobytes()),
        skipped=(r"unreadable audio: .*bad\.wav: libsndfile cannot decode it",),
    ),
    Case(
        "half a header",
        clip(encoded(NOISE)[:20]),
        skipped=(r"unreadable audio: .*bad\.wav: libsndfile cannot decode it",),
    ),
    Case(
        "a NaN among the samples",
        clip(encoded(np.array([0, np.nan, 0.1] * 900), subtype="FLOAT")),
        skipped=(r"unreadable audio: .*bad\.wav: 900 samples are NaN or Inf",),
    ),
    Case(
        "an Inf among the samples",
        clip(encoded(np.array([0, np.inf, 0.1] * 900), subtype="DOUBLE")),
        skipped=(r"unreadable audio: .*bad\.wav: 900 samples are NaN or Inf",),
    ),
    Case(
        "integers written as floats",
        clip(encoded(NOISE.astype(np.float32), subtype="FLOAT")),
        skipped=(r"unreadable audio: .*bad\.wav: samples of up to 1\.\d+e\+04, expected floats with",),
    ),
    Case(
        "a text file named .wav",
        clip(b"She had your dark suit in greasy wash water.\n" * 50),
        skipped=(r"unreadable audio: .*bad\.wav: libsndfile cannot decode it",),
    ),
    Case(
        "one sample a second",
        clip(bytes(SLOW)),
        skipped=(r"unreadable audio: .*bad\.wav: sample rate is 1, expected 4000 to 768000",),
    ),
    Case(
        "a clip shorter than a frame",
        clip(encoded(NOISE[:399])),
        skipped=(r"too short: 399 samples make no frame",),
    ),
    Case(
        "all zeros, for training",
        clip(encoded(np.zeros(RATE, np.int16))),
        skipped=(r"silent: 16000 samples",),
    ),
    Case("dither alone, for training", clip(encoded(NOISE[:RATE] % 2)), skipped=(r"silent: 16000 samples",)),
    Case(
        "all zeros, for evaluation",
        clip(encoded(np.zeros(RATE, np.int16)), drop_infeasible=False),
        used=2,
        log=r"kept in the evaluation 1 - silent: bad\.wav",
    ),
    Case(
        "ten minutes, for training with a limit",
        clip(TEN_MINUTES, max_seconds=15.0),
        skipped=(r"too long: 600\.00 s, must be under 15 s",),
    ),
    Case(
        "ten minutes, without a limit",
        clip(TEN_MINUTES),
        used=2,
        log=r"1 clips of more than 60 s, such as bad\.wav: memory",
    ),
    Case("an MP3 named .wav", clip(encoded(NOISE / 32768, format="MP3")), used=2),
    Case("8 kHz", clip(encoded(NOISE[::2], 8_000)), used=2),
    Case("44.1 kHz stereo", clip(encoded(np.stack([NOISE, NOISE], 1), 44_100)), used=2),
    Case("24 bits", clip(encoded(NOISE / 32768, subtype="PCM_24")), used=2),
    Case("floats", clip(encoded(NOISE / 32768, subtype="FLOAT")), used=2),
    Case(
        "an audio file without permission",
        forbidden(0, "data/a.wav"),
        skipped=(r"unreadable audio: .*a\.wav: cannot be read \(Permission denied\)",),
    ),
]


@each(CASES)
def test_bad_audio(
    case: Case,
    tiny: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    check(case, tiny, tmp_path, caplog, capfd)

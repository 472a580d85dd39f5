"""Recordings with several channels: the mean, except where it is not the speech."""

import numpy as np
import pytest
from helpers.clips import frame_count
from helpers.errors import refused
from helpers.recordings import by_libsndfile, sweep

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.channels import to_mono
from flax_wavlm.data.clips import usable_clips
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.tokenizer import CTCTokenizer

RATE = 16_000
X, Y = sweep(RATE), sweep(RATE, low=900.0)
RNG = np.random.default_rng(0)
HISS = (0.003 * RNG.standard_normal((len(X), 2))).astype(np.float32)  # 35 dB below
HUM = (0.1 * np.sin(2 * np.pi * 50 * np.arange(len(X)) / RATE)).astype(np.float32)[:, None]


def stereo(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels, 1).astype(np.float32)


CANCELLED, EMPTY, DIFFER = "channels that cancel", "empty channels", "channels that differ"
NOTES = {
    "the same": (stereo(X, X), "", (X + X) / 2),
    "one louder": (stereo(X, 0.3 * X), "", 0.65 * X),
    "10 ms apart": (stereo(X, np.roll(X, 100)), "", None),
    "inverted": (stereo(X, -X), CANCELLED, X),
    "inverted, the right louder": (stereo(-0.9 * X, X), CANCELLED, X),
    "inverted with hiss": (stereo(X, -X) + HISS, CANCELLED, X + HISS[:, 0]),
    "inverted with hum": (stereo(X, -X) + HUM, CANCELLED, X + HUM[:, 0]),
    "inverted with an offset": (stereo(X, -X) + 0.5, CANCELLED, X + 0.5),
    "left alone": (stereo(X, 0 * X), EMPTY, X),
    "right alone, with hiss": (stereo(0.01 * HISS[:, 0], X), EMPTY, X),
    "a call": (stereo(X, Y), DIFFER, (X + Y) / 2),
    "a call, one after the other": (
        stereo(np.r_[X[:16_000], np.zeros(16_000)], np.r_[np.zeros(16_000), Y[16_000:]]),
        DIFFER,
        None,
    ),
    "silence": (stereo(0 * X, 0 * X), "", 0 * X),
    "three with one empty": (stereo(X, 0 * X, X), EMPTY, X),
}


@pytest.mark.parametrize("kind", NOTES)
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_auto(kind, rate):
    samples, note, expected = NOTES[kind]
    found = to_mono(samples, rate, "auto", "clip")
    assert found.note.startswith(note)
    assert bool(found.note) == bool(note)
    if expected is not None:
        np.testing.assert_allclose(found.samples, expected, atol=1e-6)
    np.testing.assert_array_equal(to_mono(samples, rate, "mean", "clip").samples, samples.mean(axis=1))


def test_channels_by_name_and_number():
    data = by_libsndfile(stereo(X, -X), RATE, "WAV", "FLOAT")
    for channel, expected in (("left", X), ("0", X), ("right", -X), ("1", -X), ("mean", 0 * X)):
        np.testing.assert_array_equal(read_audio(data, channel=channel), expected)
    with refused("has no channel 2", where="^clip$", expected="2 channels, 0 to 1", do="data.channel"):
        read_audio(data, "clip", channel="2")
    mono = by_libsndfile(X, RATE)
    assert read_audio(mono, channel="left").dtype == np.int16
    with refused("has no channel 1", expected="one channel"):
        read_audio(mono, channel="right")
    with refused(field="data.channel", found="middle", expected="auto, mean, left, right"):
        read_audio(data, channel="middle")


def test_decisions_are_gathered_also_from_the_cache(tmp_path, caplog):
    (tmp_path / "inverted.wav").write_bytes(by_libsndfile(stereo(X, -X), RATE))
    (tmp_path / "good.wav").write_bytes(by_libsndfile(X, RATE))
    utterances = [
        Utterance(f"{name}{i}", tmp_path / f"{name}.wav", "a")
        for name in ("inverted", "good")
        for i in range(9)
    ]
    for _ in range(2):
        caplog.clear()
        clips, _ = usable_clips(
            utterances, CTCTokenizer.from_texts(["a"]), frame_count=frame_count, cache=tmp_path / "cache"
        )
        assert len(clips) == 18
        [message] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert message.startswith(
            "clips: decided for 9 - channels that cancel each other out: inverted0, inverted1, inverted2, "
            "... (the first: channel 0 of 2 is taken"
        )

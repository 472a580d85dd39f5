"""Reading audio: exactness, channels and rates, and every way in which a file can be no clip."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.errors import Parts, refused

from flax_wavlm.data.audio import duration_seconds, read_audio
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError

NOISE = (np.random.default_rng(0).standard_normal(8_000) * 3000).astype(np.int16)


def encoded(
    samples: np.ndarray, rate: int = SAMPLE_RATE, format: str = "WAV", subtype: str | None = None
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=format, subtype=subtype)
    return stream.getvalue()


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("format", ["WAV", "NIST", "FLAC", "AIFF", "AU"])
@pytest.mark.parametrize("extension", [".WAV", ".wav.wav", ".raw", ""])
def test_16_bit_mono_16_khz_is_exact_whatever_the_name(tmp_path, format, extension):
    data = encoded(NOISE, format=format, subtype="PCM_16")
    file = tmp_path / f"clip{extension}"
    file.write_bytes(data)
    for source in (file, data):
        samples = read_audio(source, "clip")
        assert samples.dtype == np.int16
        np.testing.assert_array_equal(samples, NOISE)
        assert duration_seconds(source) == 0.5


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "PCM_U8")])
def test_other_subtypes_are_float32_of_full_scale_one(format, subtype):
    samples = read_audio(encoded(tone(SAMPLE_RATE), format=format, subtype=subtype))
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, tone(SAMPLE_RATE), atol=1 / 128)


@pytest.mark.parametrize("format", ["MP3", "OGG"])
def test_lossy_formats(format):
    samples = read_audio(encoded(tone(SAMPLE_RATE), format=format))
    assert (samples.dtype, len(samples)) == (np.float32, 8_000)
    np.testing.assert_allclose(samples[800:-800], tone(SAMPLE_RATE)[800:-800], atol=0.05)


def test_stereo_is_the_mean_of_its_channels():
    left, right = NOISE, (NOISE[::-1] // 2).astype(np.int16)
    samples = read_audio(encoded(np.stack([left, right], axis=1), subtype="PCM_16"))
    assert samples.dtype == np.float32
    expected = (left.astype(np.float64) + right) / 2 / 32768
    np.testing.assert_allclose(samples, expected, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampled_tone_is_the_tone_at_16_khz(rate):
    samples = read_audio(encoded(tone(rate), rate, subtype="PCM_16"))
    assert samples.dtype == np.float32
    assert abs(len(samples) - 8_000) <= 1
    middle = slice(1_000, 7_000)  # the filter rings at the ends
    np.testing.assert_allclose(samples[middle], tone(SAMPLE_RATE)[middle], atol=1e-3)


def test_resampling_does_not_alias():
    samples = read_audio(encoded(tone(48_000, hertz=11_000), 48_000, subtype="FLOAT"))  # above 8 kHz
    assert np.abs(samples[1_000:7_000]).max() < 1e-3


def test_streamed_files_leave_their_length_open():
    wav = bytearray(encoded(NOISE, subtype="PCM_16"))
    wav[4:8] = wav[40:44] = b"\xff\xff\xff\xff"  # what ffmpeg writes into a pipe
    np.testing.assert_array_equal(read_audio(bytes(wav)), NOISE)
    flac = bytearray(encoded(NOISE, format="FLAC", subtype="PCM_16"))
    flac[21] &= 0xF0  # the 36 bits of STREAMINFO's total samples
    flac[22:26] = bytes(4)
    with refused("the header leaves the length open", where="^pipe.flac$", do="ffmpeg"):
        read_audio(bytes(flac), "pipe.flac")
    assert duration_seconds(bytes(flac)) is None


@pytest.mark.parametrize("format", ["WAV", "NIST", "FLAC", "AIFF", "AU", "MP3"])
def test_truncated_body(tmp_path, format):
    data = encoded(NOISE, format=format, subtype=None if format == "MP3" else "PCM_16")
    file = tmp_path / "cut.wav"
    file.write_bytes(data[: len(data) * 2 // 3])
    with refused("the audio is cut short|libsndfile cannot decode", where=r"cut\.wav$"):
        read_audio(file)


@pytest.mark.parametrize("format", ["WAV", "NIST", "FLAC", "MP3", "OGG"])
def test_truncated_header(format):
    with refused(r"libsndfile cannot decode it \([^<]*\)", where="^clip 7$"):
        read_audio(encoded(NOISE, format=format)[:20], "clip 7")


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", Parts("the file is empty")),
        (b"She had your dark suit in greasy wash water.\n" * 50, Parts("libsndfile cannot decode it")),
        (encoded(NOISE[:0], subtype="PCM_16"), Parts("0 samples", expected="speech")),
        (encoded(np.zeros((0, 2), np.int16), 8_000), Parts("0 samples", expected="speech")),
        (encoded(np.array([0, np.nan, 0.1]), subtype="FLOAT"), Parts("^1 samples are NaN or Inf")),
        (encoded(np.array([[0, np.inf]] * 3), 8_000, subtype="DOUBLE"), Parts("^3 samples are NaN or Inf")),
    ],
    ids=["empty", "text", "no samples", "no samples in stereo", "nan", "infinity"],
)
def test_files_that_are_no_clip(tmp_path, data, parts):
    file = tmp_path / "clip.wav"
    file.write_bytes(data)
    for source, name in ((file, str(file)), (data, f"<{len(data)} bytes>")):
        with pytest.raises(UserError) as error:
            read_audio(source)
        parts.check(error.value)
        assert error.value.where == name


def test_paths_that_cannot_be_read(tmp_path):
    for read in (read_audio, duration_seconds):
        with refused(r"cannot be read \(No such file or directory\)", where=r"missing\.wav$"):
            read(tmp_path / "missing.wav")
        with refused(r"cannot be read \(Is a directory\)", where=str(tmp_path)):
            read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_no_permission(tmp_path):
    file = tmp_path / "clip.wav"
    file.write_bytes(encoded(NOISE))
    file.chmod(0)
    with refused(r"cannot be read \(Permission denied\)", where=r"clip\.wav$"):
        read_audio(file)


@pytest.mark.skipif(
    "TIMIT_SAMPLE_DIR" not in os.environ, reason="set TIMIT_SAMPLE_DIR to NLTK's TIMIT sample"
)
def test_real_sphere_files():
    """Whole files are exact. Copies of the sample are about that lost bytes: those files are refused."""
    files = sorted(Path(os.environ["TIMIT_SAMPLE_DIR"]).glob("dr*/*.wav"))
    assert len(files) == 160
    for file in files:
        header, body = file.read_bytes()[:1024], file.read_bytes()[1024:]
        count = int(re.search(rb"sample_count -i (\d+)", header)[1])
        if len(body) < 2 * count:
            with refused("the audio is cut short", where=str(file)):
                read_audio(file)
        else:
            np.testing.assert_array_equal(read_audio(file), np.frombuffer(body, "<i2"))
            assert duration_seconds(file) == count / SAMPLE_RATE


def test_few_missing_samples_may_be_forgiven(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "cut.wav"
    soundfile.write(file, np.zeros(1000, np.int16), 16_000)
    file.write_bytes(file.read_bytes()[:-20])
    with refused("the audio is cut short", found=990, expected="^the 1000 samples"):
        read_audio(file, missing_ok=9)
    assert len(read_audio(file, missing_ok=10)) == 990
    assert "cut short" in caplog.text

"""Parts of recordings are what the whole has there; and lengths that files state are not believed."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.clips import frame_count
from helpers.errors import refused
from helpers.recordings import by_libsndfile, sweep

from flax_wavlm.data import audio as audio_module
from flax_wavlm.data.audio import OutsideFile, Part, duration_seconds, read_audio, read_parts
from flax_wavlm.data.clips import usable_clips
from flax_wavlm.data.corpora.utterance import Samples, Utterance
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.tokenizer import CTCTokenizer

PARTS = (
    Part(1.0, 2.0),
    Part(0.12345, 0.54321),
    Part(None, 0.5),
    Part(2.5, None),
    Part(1.5, 1.9),
    Part(2, 3.05),
)


def floats(samples: np.ndarray) -> np.ndarray:
    return samples / np.float32(32768) if samples.dtype == np.int16 else samples


@pytest.mark.parametrize(
    ("format", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 16_000),
        ("WAV", "PCM_24", 44_100),
        ("WAV", "IMA_ADPCM", 16_000),
        ("WAV", "GSM610", 8_000),
        ("WAV", "PCM_16", 15_999),
        ("FLAC", "PCM_16", 22_050),
        ("MP3", None, 44_100),
        ("OGG", "VORBIS", 16_000),
        ("OGG", "OPUS", 48_000),
    ],
)
def test_parts_are_slices_of_the_whole(format, subtype, rate, tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(by_libsndfile(sweep(rate, 3.0), rate, format, subtype))
    whole = read_audio(file)
    together = read_parts(file, PARTS)
    for part, found in zip(PARTS, together, strict=True):
        end = None if part.end is None else round(part.end * SAMPLE_RATE)
        expected = whole[round((part.start or 0) * SAMPLE_RATE) : end]
        alone = read_audio(file.read_bytes(), start=part.start, end=part.end)
        for samples in (found.samples, alone):
            assert (samples.dtype, samples.shape) == (whole.dtype, expected.shape)
            np.testing.assert_allclose(floats(samples), floats(expected), atol=2e-6)


def test_many_parts_open_and_decode_a_file_once(tmp_path, monkeypatch):
    file = tmp_path / "long.mp3"
    file.write_bytes(by_libsndfile(sweep(16_000, 20.0), 16_000, "MP3"))
    read = 0

    class Counted(audio_module.SoundFiles):
        def read(self, count):
            nonlocal read
            block = super().read(count)
            read += len(block)
            return block

    monkeypatch.setattr("flax_wavlm.data.soundfiles.SoundFiles", Counted)
    utterances = [Utterance(f"{i:02}", file, "a", start=float(i), end=i + 1.0) for i in reversed(range(20))]
    tokenizer = CTCTokenizer.from_texts(["a"])
    clips, skipped = usable_clips(utterances, tokenizer, frame_count=frame_count)
    assert skipped == []
    assert [clip.id for clip in clips] == [utterance.id for utterance in utterances]
    assert read <= 20 * 16_000
    np.testing.assert_array_equal(clips[0].samples, read_audio(file)[19 * 16_000 :])


def test_a_seekable_file_is_not_decoded_up_to_the_part(monkeypatch):
    data = by_libsndfile(sweep(16_000, 20.0), 16_000, "FLAC")
    counts = []
    monkeypatch.setattr(
        audio_module.SoundFiles,
        "read",
        lambda self, count, read=audio_module.SoundFiles.read: counts.append(count) or read(self, count),
    )
    assert len(read_audio(data, start=19.0, end=19.5)) == 8_000
    assert sum(counts) <= 16_000


@pytest.mark.parametrize(
    ("start", "end"),
    [(3.5, 4.0), (2.0, 3.5), (3.0, None), (-1.0, 1.0), (2.0, 2.0), (2, 1), (float("nan"), 2)],
)
def test_parts_outside_the_file(start, end):
    for format in ("WAV", "MP3"):
        with pytest.raises(OutsideFile, match=r"^clip: from "):
            read_audio(by_libsndfile(sweep(16_000, 3.0), 16_000, format), "clip", start=start, end=end)


def test_parts_of_a_file_that_is_cut_short_are_refused():
    data = by_libsndfile(sweep(16_000, 3.0), 16_000)[:50_000]
    with refused("the audio is cut short"):
        read_audio(data, start=1.0, end=2.0)


def test_stated_durations_that_the_audio_contradicts_are_skipped(tmp_path):
    file = tmp_path / "meeting.wav"
    file.write_bytes(by_libsndfile(sweep(16_000, 20.0), 16_000))
    stated = [
        Utterance("whole", file, "a", duration=20.05),
        Utterance("part", file, "a", duration=3.0),
        Utterance("right part", file, "a", start=3.0, end=6.0, duration=3.0),
        Utterance("wrong part", file, "a", start=3.0, end=6.0, duration=9.0),
        Utterance("beyond", file, "a", start=19.0, end=25.0),
        Utterance("not a number", file, "a", duration=float("nan")),
    ]
    clips, skipped = usable_clips(stated, CTCTokenizer.from_texts(["a"]), frame_count=frame_count)
    assert [clip.id for clip in clips] == ["whole", "right part"]
    reasons = {clip.id: clip.reason for clip in skipped}
    assert reasons["part"].startswith("stated duration: 3.00 s stated, 20.00 s in the file, ")
    assert reasons["wrong part"].startswith("stated duration: 9.00 s stated, 3.00 s in the part, ")
    assert reasons["beyond"].startswith(f"part outside the file: {file}: from 19 s to 25 s")
    assert reasons["not a number"].startswith("stated duration")


def test_cache_depends_on_parts_and_channel(tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(by_libsndfile(np.stack([sweep(16_000), sweep(16_000, low=500)], 1), 16_000))
    tokenizer = CTCTokenizer.from_texts(["a"])
    for start, channel in ((0.5, "left"), (1.0, "left"), (1.0, "right"), (1.0, "right")):
        [clip], _ = usable_clips(
            [Utterance("a", file, "a", start=start)],
            tokenizer,
            frame_count=frame_count,
            cache=tmp_path / "cache",
            channel=channel,
        )
        expected = read_audio(file, start=start, channel=channel)
        np.testing.assert_array_equal(clip.samples, expected)
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("kind", ["int16", "float64", "stereo"])
def test_samples_that_a_corpus_holds(rate, kind):
    samples = sweep(rate)
    held = {
        "int16": (samples * 32767).astype(np.int16),
        "float64": samples.astype(np.float64),
        "stereo": np.stack([samples, samples], 1),
    }[kind]
    found = read_audio(Samples(held, rate), "row 1")
    assert found.dtype == (np.int16 if (kind, rate) == ("int16", 16_000) else np.float32)
    expected = read_audio(by_libsndfile(samples, rate, "WAV", "FLOAT"))
    np.testing.assert_allclose(floats(found), expected, atol=1e-4)
    part = read_audio(Samples(held, rate), start=0.5, end=1.0)
    np.testing.assert_allclose(floats(part), floats(found)[8_000:16_000], atol=2e-6)


# --- Lengths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
@pytest.mark.parametrize("both", [True, False])
def test_wav_from_a_pipe_is_read_to_its_end(size, both, tmp_path):
    data = bytearray(by_libsndfile(sweep(16_000), 16_000))
    data[40:44] = struct.pack("<I", size)
    if both:
        data[4:8] = data[40:44]
    file = tmp_path / "pipe.wav"
    file.write_bytes(data)
    for source in (file, bytes(data)):
        assert len(read_audio(source)) == 32_000


def test_an_empty_wav_is_not_taken_for_a_pipes():
    data = by_libsndfile(sweep(16_000)[:0], 16_000) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with refused("0 samples"):
        read_audio(data)


def without_info(mp3: bytes) -> bytes:
    """The MP3 without its first frame, which says how many there are."""
    size = mp3.index(mp3[:2], 100)
    assert b"Info" in mp3[:size] or b"Xing" in mp3[:size]
    return mp3[size:]


ID3 = b"ID3\x03\0\0\0\0\x08\0" + bytes(1024)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("kind", ["MP3", "MP3 after ID3", "MP3 of unknown length", "VORBIS", "FLAC"])
def test_joined_streams_are_read_to_their_end(kind, rate, tmp_path):
    # Noise and then silence: by the first frames' bit rate, the file would be a third of its length.
    first = np.random.default_rng(0).standard_normal(3 * rate).astype(np.float32) * 0.1
    first[rate // 2 :] = 0
    format = {"VORBIS": "OGG", "FLAC": "FLAC"}.get(kind, "MP3")
    pieces = [by_libsndfile(piece, rate, format) for piece in (first, sweep(rate))]
    if kind == "MP3 of unknown length":
        pieces = [without_info(piece) for piece in pieces]
    before = ID3 if kind == "MP3 after ID3" else b""
    data = b"".join(before + piece for piece in pieces)
    file = tmp_path / "joined"
    file.write_bytes(data)
    samples = read_audio(file)
    np.testing.assert_array_equal(samples, read_audio(data))
    assert 5.0 * 16_000 <= len(samples) <= 5.2 * 16_000
    tail = floats(samples)[-32_000:]
    assert np.sqrt(np.square(tail[-8_000:]).mean()) > 0.1  # the second piece is heard
    part = read_audio(file, start=3.2, end=4.7)
    np.testing.assert_allclose(floats(part), floats(samples)[51_200:75_200], atol=2e-6)
    assert duration_seconds(file) in (5.0, None)


def test_joined_streams_of_two_rates_are_refused():
    data = by_libsndfile(sweep(16_000), 16_000, "FLAC") + by_libsndfile(sweep(8_000), 8_000, "FLAC")
    with refused("joined streams of different kinds"):
        read_audio(data)


def test_more_than_fits_is_refused(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(audio_module, "MOST_SAMPLES", 48_000)
    soundfile.write(tmp_path / "a.wav", sweep(16_000, 4.0), 16_000)
    with refused("more than 0.0 hours", do="cut it up"):
        read_audio(tmp_path / "a.wav")
    assert len(read_audio(tmp_path / "a.wav", start=1.0, end=3.0)) == 32_000

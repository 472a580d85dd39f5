"""Windows of recordings: every frame once, pauses where they are, and the same whatever shares a batch."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.errors import refused

from flax_wavlm.data.corpora.utterance import Samples
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.extras import TrainingSeconds
from flax_wavlm.progress import Bar
from flax_wavlm.recognition import recordings
from flax_wavlm.recognition import windows as windows_module
from flax_wavlm.recognition.recordings import Source, WindowBatches, joined, read_windows
from flax_wavlm.recognition.windows import Window, Windowing, windows

HOP, FIELD = 320, 400
RNG = np.random.default_rng(0)
SPEECH = Windowing(HOP, FIELD, usual=100, longest=120)


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return (level * RNG.standard_normal(round(16_000 * seconds))).astype(np.float32)


def reader(samples: np.ndarray) -> Callable[[int], np.ndarray]:
    at = 0

    def read(count: int) -> np.ndarray:
        nonlocal at
        block = samples[at : at + count]
        at += len(block)
        return block

    return read


def cut(samples: np.ndarray, windowing: Windowing = SPEECH) -> list[Window]:
    return list(windows(reader(samples), windowing))


@pytest.mark.parametrize("seconds", [0.025, 1.0, 2.4, 2.425, 7.77, 95.0])
@pytest.mark.parametrize("at_pauses", [True, False])
def test_without_pauses_every_frame_counts_once(seconds: float, at_pauses: bool) -> None:
    windowing = Windowing(HOP, FIELD, 100, 120, at_pauses)
    samples = noise(seconds)
    found = cut(samples, windowing)
    counted = [window.first + frame for window in found for frame in range(window.begin, window.end)]
    assert counted == list(range(windowing.frames(len(samples))))
    for window in found:
        assert windowing.frames(len(window.samples)) >= window.end
        assert windowing.frames(len(window.samples)) <= windowing.longest
        begin = window.first * HOP
        np.testing.assert_array_equal(window.samples, samples[begin : begin + len(window.samples)])
    assert found[-1].closes
    stretches = sum(window.closes for window in found)
    assert stretches == (2 if seconds > windows_module.STRETCH else 1)


def test_a_short_recording_is_one_window_whole() -> None:
    samples = np.concatenate([np.zeros(8_000, np.float32), noise(1.0), np.zeros(14_000, np.float32)])
    [window] = cut(samples)
    np.testing.assert_array_equal(window.samples, samples)
    assert cut(samples[:399]) == []


@pytest.mark.parametrize("floor", [0.0, 0.003])
def test_windows_end_at_pauses(floor: float) -> None:
    """Bursts of 1.5 s, which have no room for a second one, with pauses of 0.3 s."""
    bursts = [1.5, 1.2, 1.9, 1.5, 1.7]
    samples, places = [], []
    for seconds in bursts:
        samples.append(np.zeros(4_800, np.float32))
        places.append((sum(map(len, samples)), sum(map(len, samples)) + round(seconds * 16_000)))
        samples.append(noise(seconds))
    recording = np.concatenate(samples)
    recording += floor * RNG.standard_normal(len(recording)).astype(np.float32)
    found = cut(recording)
    assert len(found) == len(bursts)
    for window, (begin, end) in zip(found, places, strict=True):
        assert window.closes
        assert window.begin == 0
        margin = windows_module.MARGIN * 16_000
        assert abs(begin - window.first * HOP - margin) <= HOP
        assert abs(window.first * HOP + len(window.samples) - end - margin) <= 2 * HOP or window is found[-1]


def test_a_quiet_speaker_is_not_a_pause() -> None:
    """20 dB below another one, and 40 dB above the pauses."""
    loud, quiet = noise(1.5, 0.2), noise(1.5, 0.02)
    gap = noise(0.4, 0.0002)
    found = cut(np.concatenate([part for i in range(8) for part in (quiet if i % 2 else loud, gap)]))
    assert len(found) == 8


def test_silence_is_left_out_and_no_word_goes_on_behind_it() -> None:
    silence = np.zeros(16_000 * 100, np.int16)
    burst = (noise(0.5) * 32768).astype(np.int16)
    assert cut(silence) == []
    found = cut(np.concatenate([silence, burst, silence, burst[:4_000], silence[: 16_000 * 2], burst]))
    assert [window.closes for window in found] == [True] * 3
    assert sum(len(window.samples) for window in found) < 16_000 * 2.2
    assert found[0].samples.dtype == np.int16


def test_in_need_a_short_pause_is_taken() -> None:
    parts = [noise(1.1), np.zeros(1_920, np.float32), noise(0.6), np.zeros(640, np.float32), noise(1.9)]
    first, *_ = cut(np.concatenate(parts))
    assert first.closes
    assert 16_000 * 1.1 <= len(first.samples) <= 16_000 * 1.2


def evidence_of(batches: WindowBatches) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """What a device would find that hears of each frame its first sample alone."""
    for batch in batches:
        frames = (batch["samples"].shape[1] - FIELD) // HOP + 1
        yield batch["clip"], {"first_sample": batch["samples"][:, : frames * HOP : HOP]}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evidence_of_windows_is_joined_in_its_place(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POOL_SECONDS", "FIRST_SECONDS"):
        monkeypatch.setattr(recordings, name, 6.0)
    clips = [noise(seconds) for seconds in (9.0, 0.5, 0.02, 31.0, 2.0)]
    sources = [Source(str(i), Samples(clip, 16_000)) for i, clip in enumerate(clips)]

    def pieces(source: Source) -> Iterator[Window | recordings.Ended]:
        return read_windows(source, SPEECH, channel="auto", max_seconds=30.0)

    batches = WindowBatches(sources, pieces, batch_size, False, SPEECH)

    def first_samples(first: int, evidence: recordings.Evidence) -> tuple[int, np.ndarray]:
        return first, evidence["first_sample"]

    heard = list(joined(batches, evidence_of(batches), first_samples, Bar(None)))
    assert [found.source.name for found in heard] == ["0", "1", "2", "3", "4"]
    for found, clip in zip(heard, clips, strict=True):
        if found.ended.error is not None:
            continue
        assert found.ended.seconds == len(clip) / 16_000
        [(first, firsts)] = found.stretches
        assert first == 0
        np.testing.assert_array_equal(firsts, clip[: SPEECH.frames(len(clip)) * HOP : HOP])
    errors = {found.source.name: str(found.ended.error) for found in heard if found.ended.error}
    assert errors.keys() == {"2", "3"}
    assert "320 samples at 16 kHz, expected at least 400" in errors["2"]
    assert "31.0 s or more, expected at most 30 s" in errors["3"]
    assert len(batches.buckets) <= recordings.BUCKETS + 1
    assert not batches.order


def test_windows_that_cannot_be(tmp_path: Path) -> None:
    assert Windowing.of(WavLMConfig(), TrainingSeconds(2.0, 2.5)) == Windowing(HOP, FIELD, 99, 124)
    with refused(field="window", found=0.03, expected="at least 0.045 s"):
        Windowing.of(WavLMConfig(), TrainingSeconds(0.03, 0.03))
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000)
    found = list(read_windows(Source("a", tmp_path / "a.wav"), SPEECH, channel="7", max_seconds=9.0))
    assert [type(piece).__name__ for piece in found] == ["Ended"]

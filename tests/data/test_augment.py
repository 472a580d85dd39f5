"""Other speeds and noise: what they do to a clip, and that seed, epoch and step alone say which."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.clips import make_clips, tone
from helpers.errors import refused
from hypothesis import given
from hypothesis import strategies as st

from flax_wavlm.data.augment import Augmentation, Noise, at_speed, change_speed
from flax_wavlm.data.batches import Batches
from flax_wavlm.data.noise import read_noise
from flax_wavlm.data.preprocessor import full_scale

SPEEDS = (0.9, 1.0, 1.1)


def with_noise(
    *recordings: np.ndarray, share: float = 1.0, snr: tuple[float, float] = (10, 20)
) -> Augmentation:
    return Augmentation(noise=Noise(recordings, share, snr))


def heard(augmentation: Augmentation, samples: np.ndarray, step: int = 0, row: int = 0) -> np.ndarray:
    [clip] = make_clips([len(samples)])
    object.__setattr__(clip, "samples", samples)
    return augmentation(clip, 1.0, seed=0, step=step, row=row).samples


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_speed_changes_length_and_pitch(speed):
    samples = full_scale(tone(16_000))  # 0.05 radians a sample
    changed = change_speed(samples, speed)
    assert changed.dtype == np.float32
    assert len(changed) == at_speed(16_000, speed) == round(16_000 / speed)
    inside = slice(200, -200)  # away from the ends
    expected = 8000 / 32768 * np.sin(np.arange(len(changed)) * 0.05 * speed)
    np.testing.assert_allclose(changed[inside], expected[inside], atol=1e-3)


@given(st.integers(1, 5000), st.sampled_from([0.5, 0.83, 0.9, 1.1, 1.37, 2.0]))
def test_a_clip_has_the_length_that_was_planned(samples, speed):
    assert len(change_speed(np.ones(samples, np.float32), speed)) == at_speed(samples, speed)


def test_every_speed_has_the_same_share_and_epochs_differ():
    augmentation = Augmentation(SPEEDS)
    epochs = [augmentation.speeds_in(300, seed=1, epoch=epoch) for epoch in range(40)]
    for speeds in epochs:
        assert [np.count_nonzero(speeds == speed) for speed in SPEEDS] == [100, 100, 100]
    mean = np.mean(epochs, axis=0)
    assert np.all(mean > 0.94)
    assert np.all(mean < 1.06)  # no clip has one speed in all epochs
    assert not np.array_equal(epochs[0], augmentation.speeds_in(300, seed=2, epoch=0))


def test_a_clip_keeps_its_speed_where_its_labels_would_not_fit():
    possible = np.array([[True, True, False], [True, True, True]])
    speeds = {tuple(Augmentation(SPEEDS, possible).speeds_in(2, seed=0, epoch=epoch)) for epoch in range(60)}
    assert {first for first, _ in speeds} == {0.9, 1.0}
    assert {second for _, second in speeds} == {0.9, 1.0, 1.1}
    assert Augmentation(SPEEDS, possible).every_length(np.array([900, 99])).tolist() == [
        *(1000, 900, 900),
        *(110, 99, 90),
    ]


@pytest.mark.parametrize(
    "recordings", [[], [tone(700)], [tone(90_000), tone(5)]], ids=["white", "one", "two"]
)
def test_noise_has_the_power_that_was_asked_for(recordings):
    samples = full_scale(np.random.default_rng(0).integers(-3000, 3000, 8000, dtype=np.int16))
    augmentation = with_noise(*recordings)
    levels = []
    for step in range(50):
        added = heard(augmentation, samples, step) - samples
        levels.append(10 * np.log10(np.mean(samples**2) / np.mean(added**2)))
    assert min(levels) > 9.9
    assert max(levels) < 20.1
    assert np.ptp(levels) > 7  # all of the range


def test_white_noise_is_white():
    samples = full_scale(tone(65_536))
    added = heard(with_noise(), samples) - samples
    power = np.abs(np.fft.rfft(added)) ** 2
    bands = np.array([band.mean() for band in np.array_split(power[1:], 16)])
    np.testing.assert_allclose(bands, bands.mean(), rtol=0.1)
    assert abs(added.mean()) < 0.02 * added.std()


def test_share_of_the_clips_that_get_noise():
    samples = full_scale(tone(1000))
    augmentation = with_noise(share=0.3)
    noisy = [not np.array_equal(heard(augmentation, samples, step), samples) for step in range(500)]
    assert 0.25 < np.mean(noisy) < 0.35


def test_silence_stays_finite():
    assert np.array_equal(heard(with_noise(), np.zeros(500, np.float32)), np.zeros(500))
    silent_part = with_noise(np.zeros(600, np.int16))
    assert np.array_equal(heard(silent_part, full_scale(tone(500))), full_scale(tone(500)))


def batches_of(process: int = 0, processes: int = 1, rows=(12, 6, 4), **changes) -> Batches:
    lengths = np.random.default_rng(0).integers(2000, 9000, 50)
    how = {"steps": 1000, "seed": 3, "do_normalize": True} | changes
    return Batches(
        make_clips(lengths),
        rows,
        [3200, 6400, 10240],
        augmentation=Augmentation(SPEEDS, noise=Noise([], 0.5, (5, 10))),
        process_index=process,
        process_count=processes,
        **how,
    )


def test_a_step_is_the_same_alone_and_over_processes():
    whole, halves = batches_of(), [batches_of(process, 2) for process in range(2)]
    for step in (57, 3, 56):
        batch = whole[step]
        for name, array in batch.items():
            own = np.concatenate([half[step][name] for half in halves])
            np.testing.assert_array_equal(array, own, err_msg=name, strict=True)
        assert batch["samples"].dtype == np.float32
        # Each clip is normalised as it is heard.
        for row in np.flatnonzero(batch["valid"]):
            samples = batch["samples"][row, : batch["lengths"][row]]
            assert batch["mean"][row] == pytest.approx(samples.mean(), abs=1e-6)
            assert batch["scale"][row] == pytest.approx(1 / np.sqrt(samples.var() + 1e-7), rel=1e-5)


def test_epochs_of_other_lengths_have_every_clip_once():
    batches = batches_of(rows=(5, 2, 1))
    numbers, step = [], 0
    for epoch in range(8):
        seen: list[int] = []
        while batches.epochs(step) < epoch + 1:
            seen += [clip for clip in batches[step]["clip"].tolist() if clip >= 0]
            step += 1
        numbers.append(step)
        assert sorted(seen) == list(range(50))
    assert len(set(np.diff([0, *numbers]))) > 1  # not as many batches in each
    assert len(batches_of(rows=(5, 2, 1), steps=0, epochs=8)) == numbers[-1]
    assert batches_of(rows=(5, 2, 1)).epochs(numbers[3]) == 4  # asked for at once


def test_a_noise_folder(tmp_path: Path, caplog):
    with refused(field="data.augment.noise", expected="there is no such folder"):
        read_noise(tmp_path / "none", cache=None)
    with refused(field="data.augment.noise", found=str(tmp_path), expected="recordings of noise"):
        read_noise(tmp_path, cache=None)
    (tmp_path / "deep").mkdir()
    (tmp_path / "broken.wav").write_bytes(b"RIFF, or not")
    with refused("none of the 1 recordings", field="data.augment.noise"):
        read_noise(tmp_path, cache=None)
    soundfile.write(tmp_path / "deep" / "hum.flac", tone(4000), 16_000)
    soundfile.write(tmp_path / "off.wav", np.zeros(100), 16_000)
    (tmp_path / "LICENSE.txt").write_text("no noise")
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        [hum] = read_noise(tmp_path, cache=cache)
        assert np.array_equal(hum, tone(4000))
    assert "unreadable audio: broken.wav" in caplog.text
    assert "silent: off.wav" in caplog.text


def test_augmentation_never_changes():
    """A run that is resumed under another NumPy must go on with the same clips."""
    assert Augmentation(SPEEDS).speeds_in(8, seed=42, epoch=3).tolist() == [
        1.0,
        1.1,
        0.9,
        0.9,
        1.0,
        1.0,
        1.1,
        0.9,
    ]
    samples = heard(with_noise(), np.full(4, 0.5, np.float32), step=5, row=2)
    assert samples.tolist() == pytest.approx([0.544828, 0.488761, 0.59243, 0.496618], abs=1e-6)

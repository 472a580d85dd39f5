"""Arrays and decoded clips on the disk: whole or absent, made once, and the same as without a cache."""

import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.cache import ARRAYS, write_at_once, write_for_ever

from flax_wavlm import files
from flax_wavlm.data import cache as cache_module
from flax_wavlm.data import clips as clips_module
from flax_wavlm.data.batches import eval_batches
from flax_wavlm.data.cache import cached
from flax_wavlm.data.clips import usable_clips
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.tokenizer import CTCTokenizer


def never():
    raise AssertionError("made although it is in the cache")


def assert_same(found, expected=ARRAYS) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
        else:
            np.testing.assert_array_equal(one, other, strict=True)


def fill(folder: Path) -> Path:
    """A cache of ARRAYS; its place."""
    assert_same(cached(folder, "name", ["x", 1], lambda: ARRAYS))
    [place] = folder.iterdir()
    return place


def test_arrays_come_back_in_type_and_shape_and_are_made_once(tmp_path):
    fill(tmp_path / "new" / "folder")
    found = cached(tmp_path / "new" / "folder", "name", ["x", 1], never)
    assert_same(found)
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 1


def test_what_depends_on_something_else_is_something_else(tmp_path):
    fill(tmp_path)
    other = cached(tmp_path, "name", ["x", 2], lambda: ARRAYS[:1])
    assert_same(other, ARRAYS[:1])
    assert len(list(tmp_path.iterdir())) == 2
    assert_same(cached(tmp_path, "name", ["x", 1], never))


NAMES = (
    "train",
    "train[:95%]",
    "train[:95$]",
    "a/b",
    "a_b",
    "../x",
    "..",
    "",
    "/tmp",
    "a\n\x1b",
    "訓練",
    "\udcff",
    "x" * 300,
)


def test_names_are_any_and_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for number, name in enumerate(NAMES):
        assert_same(
            cached(folder, name, ["x"], lambda number=number: [np.full(2, number)]), [np.full(2, number)]
        )
        assert_same(cached(folder, name, ["x"], never), [np.full(2, number)])
    assert list(tmp_path.iterdir()) == [folder]
    places = [place.name for place in folder.iterdir()]
    assert len(places) == len(NAMES)
    assert all(re.fullmatch(r"[\w.-]{1,110}", place, re.ASCII) for place in places)
    assert any(re.fullmatch("train-[0-9a-f]{16}", place) for place in places)  # as before


def cut(place: Path) -> None:
    with (place / "arrays").open("r+b") as file:
        file.truncate((place / "arrays").stat().st_size - 1)


def change_index(place: Path) -> None:
    index = json.loads((place / "index.json").read_text())
    index["entries"][0][0] += 64  # would read other samples
    (place / "index.json").write_text(json.dumps(index))


DAMAGE = {
    "arrays cut short": cut,
    "arrays missing": lambda place: (place / "arrays").unlink(),
    "index changed": change_index,
    "index cut short": lambda place: (place / "index.json").write_text('{"entries": ['),
    "index of another kind": lambda place: (place / "index.json").write_text("[]"),
    "index missing": lambda place: (place / "index.json").unlink(),
    "another cache's index": lambda place: (place / "index.json").write_bytes(
        (fill_other(place.parent.parent / "other") / "index.json").read_bytes()
    ),
}


def fill_other(folder: Path) -> Path:
    cached(folder, "name", ["other"], lambda: ARRAYS)
    [place] = folder.iterdir()
    return place


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_mended(tmp_path, damage, caplog):
    place = fill(tmp_path / "cache")
    DAMAGE[damage](place)
    assert_same(cached(tmp_path / "cache", "name", ["x", 1], lambda: ARRAYS))
    assert "damaged" in caplog.text
    assert str(place) in caplog.text
    assert_same(cached(tmp_path / "cache", "name", ["x", 1], never))
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_error_while_making_leaves_nothing(tmp_path):
    def broken():
        yield ARRAYS[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        cached(tmp_path, "name", ["x", 1], broken)
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    writer = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(tmp_path,))
    writer.start()
    while not any(path.stat().st_size for path in tmp_path.glob(".*/arrays")):
        assert writer.is_alive()
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    [left] = tmp_path.iterdir()
    cached(tmp_path, "name", ["x", 1], lambda: ARRAYS)
    assert_same(cached(tmp_path, "name", ["x", 1], never))
    assert left.exists()  # it could be a slow writer's

    monkeypatch.setattr(files, "ABANDONED", -1)
    DAMAGE["index missing"](next(tmp_path.glob("name-*")))
    cached(tmp_path, "name", ["x", 1], lambda: ARRAYS)
    assert not left.exists()


def test_many_writers_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    writers = [context.Process(target=write_at_once, args=(tmp_path, start, results)) for _ in range(3)]
    for writer in writers:
        writer.start()
    sums = [results.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sums == [[None if array is None else array.astype(np.float32).sum() for array in ARRAYS]] * 3
    assert len(list(tmp_path.iterdir())) == 1
    assert_same(cached(tmp_path, "name", ["x", 1], never))


def test_folder_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert_same(cached(tmp_path / "file" / "cache", "name", ["x", 1], lambda: ARRAYS))
    assert "cannot be written" in caplog.text
    assert "data.cache" in caplog.text


def test_full_disk(tmp_path, caplog, monkeypatch):
    def full(file) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "flush_to_disk", full)
    assert_same(cached(tmp_path, "name", ["x", 1], lambda: ARRAYS))
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


# --- Decoded clips ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> CTCTokenizer:
    return CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz"])


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """16-bit, 24-bit, another rate, two channels, not audio, missing, too long."""
    noise = np.random.default_rng(0).uniform(-1, 1, (64_000, 2)).astype(np.float32)
    folder = tmp_path / "audio"
    folder.mkdir()
    soundfile.write(folder / "exact.wav", noise[:8000, 0], 16_000, subtype="PCM_16")
    soundfile.write(folder / "deep.wav", noise[:8000, 0], 16_000, subtype="PCM_24")
    soundfile.write(folder / "rate.wav", noise[:8000, 0], 22_050, subtype="PCM_16")
    soundfile.write(folder / "stereo.wav", noise[:8000], 16_000, subtype="PCM_16")
    (folder / "text.wav").write_text("not audio")
    soundfile.write(folder / "long.wav", noise[:, 0], 16_000, subtype="PCM_16")
    names = ["exact", "deep", "rate", "stereo", "text", "missing", "long"]
    return [Utterance(name, folder / f"{name}.wav", name, "speaker") for name in names]


def decode(utterances, tokenizer, folder, **changes):
    settings = {"frame_count": lambda samples: samples // 320, "max_seconds": 4.0} | changes
    return usable_clips(utterances, tokenizer, cache=folder, **settings)


def test_cached_clips_are_the_decoded_ones(utterances, tokenizer, tmp_path, monkeypatch):
    expected, skipped = decode(utterances, tokenizer, None)
    assert [clip.samples.dtype.name for clip in expected] == ["int16", "float32", "float32", "float32"]
    reads = []

    def counted(*arguments, **settings):
        reads.append(arguments[0])
        return read_parts(*arguments, **settings)

    read_parts = clips_module.read_parts
    monkeypatch.setattr(clips_module, "read_parts", counted)
    for start in ("first", "second", "third"):
        reads.clear()
        clips, unusable = decode(utterances, tokenizer, tmp_path / "cache")
        assert unusable == skipped
        for clip, other in zip(clips, expected, strict=True):
            assert (clip.id, clip.text, clip.speaker) == (other.id, other.text, other.speaker)
            np.testing.assert_array_equal(clip.samples, other.samples, strict=True)
            np.testing.assert_array_equal(clip.labels, other.labels, strict=True)
        if start != "first":  # what could not be read is tried again: it may have been the disk
            assert [file.stem for file in reads] == ["text", "missing"]


def test_other_settings_use_the_same_audio(utterances, tokenizer, tmp_path, monkeypatch):
    good = [u for u in utterances if u.id not in ("text", "missing")]
    decode(good, tokenizer, tmp_path / "cache")
    monkeypatch.setattr(clips_module, "read_parts", never)
    clips, skipped = decode(good, tokenizer, tmp_path / "cache", max_seconds=None)
    assert [clip.id for clip in clips] == ["exact", "deep", "rate", "stereo", "long"]
    assert skipped == []
    renamed = [Utterance(u.id, u.audio, "other text", u.speaker) for u in good]
    assert {clip.text for clip in decode(renamed, tokenizer, tmp_path / "cache")[0]} == {"other text"}


def test_changed_audio_is_decoded_again(utterances, tokenizer, tmp_path):
    decode(utterances, tokenizer, tmp_path / "cache")
    file = utterances[0].audio
    samples = soundfile.read(file, dtype="int16")[0]
    soundfile.write(file, samples[::-1], 16_000, subtype="PCM_16")  # the same size
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    clips, _ = decode(utterances, tokenizer, tmp_path / "cache")
    np.testing.assert_array_equal(clips[0].samples, samples[::-1])
    clips, _ = decode(utterances[1:], tokenizer, tmp_path / "cache")
    assert [clip.id for clip in clips] == ["deep", "rate", "stereo"]


def test_audio_that_is_not_in_files_is_not_cached(utterances, tokenizer, tmp_path, caplog):
    data = utterances[0].audio.read_bytes()
    hub = [Utterance("row", lambda: data, "text", "")]
    with caplog.at_level("INFO", "flax_wavlm"):
        clips, _ = decode(hub, tokenizer, tmp_path / "cache")
    assert len(clips) == 1
    assert "decoded in memory" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_batches_of_mixed_types_are_exact(utterances, tokenizer, tmp_path):
    clips, _ = decode(utterances, tokenizer, tmp_path / "cache")
    made = next(eval_batches(clips, 4, [16_000], do_normalize=True))
    assert made["samples"].dtype == np.float32
    for row, index in enumerate(made["clip"]):
        clip = clips[index].samples
        exact = clip / np.float32(32768) if clip.dtype == np.int16 else clip
        np.testing.assert_array_equal(made["samples"][row, : len(clip)], exact)

"""TIMIT and its sample: every layout gives the same clips, and whatever is wrong is named."""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import Parts, refused
from helpers.fake_timit import (
    CLIP_SAMPLES,
    FOUR_SECONDS,
    LAYOUTS,
    SPEAKERS,
    build_fake_sample,
    build_fake_timit,
    fake_clips,
    fake_samples,
)

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.load import find_splits, load_corpus
from flax_wavlm.data.corpora.timit import (
    CORE_TEST_SPEAKERS,
    DEV_SPEAKERS,
    read_timit,
    read_timit_sample,
    splits_of_timit,
)
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.tokenizer import normalise, vocabulary
from flax_wavlm.errors import UserError


@pytest.fixture(scope="module")
def timit(tmp_path_factory) -> Path:
    """One fake TIMIT that tests may read; those that change it copy it first."""
    root = tmp_path_factory.mktemp("timit")
    build_fake_timit(root, "data_level_both")
    return root


@pytest.fixture
def changed(timit, tmp_path) -> Path:
    shutil.copytree(timit, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def sample(tmp_path) -> Path:
    return build_fake_sample(tmp_path / "sample")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_alike(tmp_path, layout):
    top = build_fake_timit(tmp_path, layout)
    for split, clips, speakers in (("train", 40, 4), ("test", 20, 2)):
        expected = fake_clips(split)
        for root in {tmp_path, top, top.parent if top != tmp_path else top}:
            utterances, skipped = read_timit(root, split)
            assert {u.id: u.text for u in utterances} == {id: text for id, (text, _) in expected.items()}
            assert [u.id for u in utterances] == sorted(expected)
            assert skipped == []
        assert len(utterances) == clips
        assert {u.speaker for u in utterances} == {name.split("/")[1] for name in SPEAKERS[split]}
        assert len({u.speaker for u in utterances}) == speakers
        suffix = ".wav" if LAYOUTS[layout].sphere else ".wav.wav"
        assert {u.audio.name.lower().partition(".")[2] for u in utterances} == {suffix[1:]}
    for utterance in (utterances[0], utterances[-1]):
        samples = expected[utterance.id][1]
        np.testing.assert_array_equal(read_audio(utterance.audio), fake_samples(utterance.id, samples))


def test_fake_timit_is_the_recipe_in_miniature():
    texts = {split: [text for text, _ in fake_clips(split).values()] for split in SPEAKERS}
    letters = vocabulary(normalise(text) for split in texts for text in texts[split])
    assert "".join(letters) == "abcdefghijklmnopqrstuvwxyz'|[UNK][PAD]"
    assert sum(samples < FOUR_SECONDS for _, samples in fake_clips("train").values()) == 32
    assert {FOUR_SECONDS - 1, FOUR_SECONDS} < set(CLIP_SAMPLES)
    shortest = (min(CLIP_SAMPLES) - 400) // 320 + 1
    for text in texts["train"] + texts["test"]:
        labels = normalise(text)
        assert len(labels) + sum(a == b for a, b in itertools.pairwise(labels)) <= shortest


def test_sphere_file_is_read_before_its_riff_copy(changed):
    speaker = changed / "data" / "TRAIN" / "DR1" / "FCJF0"
    (speaker / "SA2.WAV").unlink()
    found = {u.id: u.audio.name for u in read_timit(changed, "train")[0]}
    assert found["train/dr1/fcjf0/sa1"] == "SA1.WAV"
    assert found["train/dr1/fcjf0/sa2"] == "SA2.WAV.wav"
    assert len(found) == 40


@pytest.mark.parametrize(("original", "copy"), [("SA1.WAV", "sa1.wav"), ("SA1.TXT", "SA1.txt")])
def test_copies_in_another_case_are_refused(changed, original, copy):
    speaker = changed / "data" / "TRAIN" / "DR1" / "FCJF0"
    shutil.copy(speaker / original, speaker / copy)
    with pytest.raises(UserError) as error:
        read_timit(changed, "train")
    Parts("a second copy of one TIMIT file", expected="one").check(error.value)
    assert str(speaker / original) in str(error.value)
    assert str(speaker / copy) in str(error.value)


def test_whole_trees_in_two_cases_are_refused(tmp_path):
    build_fake_timit(tmp_path, "flat_upper")
    build_fake_timit(tmp_path, "flat_lower")
    with refused("a second copy.*/TRAIN/", where="/train/"):
        read_timit(tmp_path, "train")


def test_clips_without_audio_or_text_are_skipped_by_name(changed):
    speaker = changed / "data" / "TEST" / "DR1" / "FAKS0"
    (speaker / "SA1.TXT").unlink()
    for file in speaker.glob("SA2.WAV*"):
        file.unlink()
    (speaker / "SX37.TXT").write_text("0 16000 \n")
    (speaker / "SX127.TXT").write_text("She had no samples.\n")
    (speaker / "SX217.TXT").write_bytes(b"0 16000 na\xefve\n")
    (speaker / "._SX307.WAV").write_bytes(b"macOS")
    utterances, skipped = read_timit(changed, "test")
    reasons = {clip.id.removeprefix("test/dr1/faks0/"): clip.reason for clip in skipped}
    assert list(reasons) == ["sa1", "sa2", "sx127", "sx217", "sx37"]
    assert "no .TXT file beside" in reasons["sa1"]
    assert "no audio file beside" in reasons["sa2"]
    assert "found '0 16000 \\n', expected a line 'begin end sentence'" in reasons["sx37"]
    assert "found 'She had no samples" in reasons["sx127"]
    assert "SX217.TXT:1: byte 0xef is not UTF-8" in reasons["sx217"]
    assert len(utterances) == 15
    assert {u.id for u in utterances}.isdisjoint({clip.id for clip in skipped})


def test_missing_and_empty_splits(changed, tmp_path):
    shutil.rmtree(changed / "data" / "TEST")
    with refused("no TEST folder in it.*it holds data$", expected=r"TEST/DR1/FCJF0/SA1\.WAV"):
        read_timit(changed, "test")
    (changed / "data" / "TEST" / "DR1").mkdir(parents=True)
    with refused("no usable clip, none", where="TEST$"):
        read_timit(changed, "test")
    for file in (changed / "data" / "TRAIN").rglob("*.TXT"):
        file.unlink()
    with refused(r"no usable clip, 40 unusable \(train/dr1/fcjf0/sa1: no \.TXT", where="TRAIN$"):
        read_timit(changed, "train")
    with refused(field="split", found="valid", expected="one of train, dev, test, test-core"):
        read_timit(changed, "valid")
    with refused("no speaker of 'dev' in it", field="split", expected="one of train, test"):
        read_timit(changed, "dev")


def test_dev_and_core_test_speakers(tmp_path):
    """The field's lists: 50 and 24 of TEST's 168 speakers, none in both, two men and a woman a region."""
    assert (len(DEV_SPEAKERS), len(CORE_TEST_SPEAKERS)) == (50, 24)
    assert not DEV_SPEAKERS & CORE_TEST_SPEAKERS
    assert sum(name.startswith("f") for name in CORE_TEST_SPEAKERS) == 8
    root = build_fake_timit(tmp_path / "TIMIT", "ldc_upper")
    assert splits_of_timit(root) == ["train", "test"]  # its TEST has no speaker of the core test
    speaker = next(iter(root.glob("**/TEST/DR5/MRPP0")))
    speaker.rename(speaker.with_name("MJDH0"))
    assert splits_of_timit(root) == ["train", "test", "dev", "test-core"]
    found = {split: read_timit(root, split)[0] for split in splits_of_timit(root)}
    assert {u.speaker for u in found["dev"]} == {"faks0"}
    assert {u.speaker for u in found["test-core"]} == {"mjdh0"}
    assert [u.id for u in found["dev"] + found["test-core"]] == [u.id for u in found["test"]]
    assert find_splits("timit", root) == {"train": "train", "dev": "dev", "test": "test-core"}
    assert len(load_corpus("timit", root, "test")[0]) == 20  # the whole folder, as evaluate.py reads it


@pytest.mark.parametrize("held_out", [("dr1-mcpm0",), ("mcpm0",), ("MCPM0", "dr1-MCPM0")])
def test_sample_is_split_by_speaker(sample, held_out):
    test, skipped = read_timit_sample(sample, "test", held_out)
    assert [(u.id, u.text, u.speaker) for u in test] == [
        ("dr1-mcpm0/sa1", "dr1-mcpm0 says sa1.", "mcpm0"),
        ("dr1-mcpm0/sx9", "dr1-mcpm0 says sx9.", "mcpm0"),
    ]
    train, skipped_train = read_timit_sample(sample, "train", held_out)
    assert {u.speaker for u in train} == {"fvmh0", "mbcg0"}
    assert (len(train), skipped, skipped_train) == (4, [], [])
    (sample / "dr8-mbcg0" / "sa1.wav").unlink()
    assert [clip.id for clip in read_timit_sample(sample, "train", held_out)[1]] == ["dr8-mbcg0/sa1"]


@pytest.mark.parametrize(
    ("held_out", "split", "problem", "expected"),
    [
        (("mcpm1",), "train", "names mcpm1, which is not there", "dr1-fvmh0, dr1-mcpm0, dr8-mbcg0$"),
        ((), "test", "names 0 of 3 speakers, which leaves none for 'test'", "some but not all"),
        (("mcpm0", "fvmh0", "mbcg0"), "train", "names 3 of 3 .* none for 'train'", "some but not all"),
    ],
)
def test_held_out_speakers_must_make_sense(sample, held_out, split, problem, expected):
    with refused(problem, field="data.held_out_speakers", expected=expected):
        read_timit_sample(sample, split, held_out)


def test_timit_and_its_sample_are_told_apart(sample, timit):
    with refused("looks like NLTK's TIMIT sample", do=r"data\.corpus to timit_sample"):
        read_timit(sample, "train")
    with refused(do=r"looks like the whole TIMIT: set data\.corpus to timit "):
        read_timit_sample(timit, "train", ["mcpm0"])
    with refused("no speaker folder such as dr1-mcpm0; it holds DR1", do="the sample's own folder"):
        read_timit_sample(timit / "data" / "TEST", "train", ["mcpm0"])


@pytest.mark.skipif(
    "TIMIT_SAMPLE_DIR" not in os.environ, reason="set TIMIT_SAMPLE_DIR to NLTK's TIMIT sample"
)
def test_real_sample():
    root = os.environ["TIMIT_SAMPLE_DIR"]
    train, skipped = read_timit_sample(root, "train", ["dr1-mcpm0", "fvmh0"])
    test, skipped_test = read_timit_sample(root, "test", ["dr1-mcpm0", "fvmh0"])
    assert (len(train), len(test), skipped, skipped_test) == (140, 20, [], [])
    assert test[0] == Utterance(
        "dr1-fvmh0/sa1",
        Path(root) / "dr1-fvmh0" / "sa1.wav",
        "She had your dark suit in greasy wash water all year.",
        "fvmh0",
    )
    letters = vocabulary(normalise(u.text) for u in train + test)
    assert "".join(letters) == "abcdefghijklmnopqrstuvwxyz'|[UNK][PAD]"

"""Corpora by name, and where a missing one is to be had."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.clips import wav
from helpers.errors import refused
from helpers.fake_timit import build_fake_sample, build_fake_timit

from flax_wavlm.data.corpora.load import clip_weights, find_splits, load_corpus, load_parts
from flax_wavlm.data.corpora.manifest import read_manifest
from flax_wavlm.data.corpora.splits import splits_by_role
from flax_wavlm.data.corpora.timit import read_timit, read_timit_sample
from flax_wavlm.data.corpora.utterance import NoSplit, Skipped
from flax_wavlm.errors import UserError

SOUND = wav(np.full(1_600, 7, np.int16))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def timit(tmp_path_factory) -> Path:
    return build_fake_timit(tmp_path_factory.mktemp("timit"), "flat_upper")


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return build_fake_sample(tmp_path_factory.mktemp("sample") / "sample")


def test_load_corpus_reads_each_corpus(tmp_path, timit, sample):
    assert load_corpus("timit", timit, "test") == read_timit(timit, "test")
    assert load_corpus("synthetic", str(timit), "test") == read_timit(timit, "test")
    held_out = ["mcpm0"]
    assert load_corpus("timit_sample", sample, "test", held_out_speakers=held_out) == read_timit_sample(
        sample, "test", held_out
    )
    (tmp_path / "a.wav").write_bytes(SOUND)
    (tmp_path / "train.jsonl").write_text('{"audio_filepath": "a.wav", "text": "t"}\n')
    assert load_corpus("manifest", tmp_path, "train") == read_manifest(tmp_path, "train")
    rows = datasets.Dataset.from_dict(
        {"audio": [{"bytes": SOUND, "path": "a.wav"}] * 2, "said": ["One.", ""]}
    )
    rows = rows.cast_column("audio", datasets.Audio())  # a cast, as making Audio takes torchcodec
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
    [utterance], skipped = load_corpus("hub", tmp_path / "saved", "train", text_column="said")
    assert (utterance.id, utterance.text, utterance.audio()) == ("train/000000", "One.", SOUND)
    assert skipped == [Skipped("train/000001", "no text")]


def test_environment_says_where_timit_is(monkeypatch, timit, sample):
    monkeypatch.setenv("TIMIT_DIR", str(timit))
    monkeypatch.setenv("TIMIT_SAMPLE_DIR", str(sample))
    assert len(load_corpus("timit", "", "train")[0]) == 40
    assert len(load_corpus("timit_sample", "", "train", held_out_speakers=["mcpm0"])[0]) == 4
    with refused(field="data.path", found="/nowhere"):  # the path given comes first
        load_corpus("timit", "/nowhere", "train")


@pytest.mark.parametrize("path", ["", "/no/such/folder"])
def test_without_timit_the_error_is_the_way_on(monkeypatch, path):
    monkeypatch.delenv("TIMIT_DIR", raising=False)
    with pytest.raises(UserError) as error:
        load_corpus("timit", path, "train")
    assert (error.value.field, error.value.found) == ("data.path", path)
    for fact in (
        "LDC93S1",
        "https://catalog.ldc.upenn.edu/LDC93S1",
        "set data.path",
        "TIMIT_DIR",
        "configs/demo.py",
        "configs/timit_sample.py",
        "python -m nltk.downloader timit",
    ):
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("corpus", "path", "parts"),
    [
        ("timit_sample", "", {"expected": "folder", "do": r"nltk\.downloader timit.*TIMIT_SAMPLE_DIR"}),
        ("timit_sample", "/nowhere", {"expected": "folder", "do": "TIMIT_SAMPLE_DIR"}),
        ("manifest", "", {"expected": r"train\.jsonl"}),
        ("hub", "", {"expected": "hub id"}),
        ("synthetic", "/nowhere", {"do": r"configs/demo\.py"}),
    ],
)
def test_wrong_paths(monkeypatch, corpus, path, parts):
    monkeypatch.delenv("TIMIT_SAMPLE_DIR", raising=False)
    with refused(field="data.path", found=path, **parts):
        load_corpus(corpus, path, "train")


@pytest.mark.parametrize(("corpus", "do"), [("timt", r"^did you mean 'timit'\?$"), ("voxpopuli", "^$")])
def test_wrong_names(corpus, do):
    with refused(field="data.corpus", found=corpus, expected="one of timit, ", do=do):
        load_corpus(corpus, "", "train")


# --- Splits by role, and several corpora --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        ("train dev test", {"train": "train", "dev": "dev", "test": "test"}),
        ("train validation", {"train": "train", "dev": "validation"}),
        ("Train Valid TEST", {"train": "Train", "dev": "Valid", "test": "TEST"}),
        ("train eval", {"train": "train", "dev": "eval"}),
        ("train dev eval", {"train": "train", "dev": "dev", "test": "eval"}),
        ("train validation evaluation test", {"train": "train", "dev": "validation", "test": "test"}),
        ("training development testing", {"train": "training", "dev": "development", "test": "testing"}),
        (
            "dev-other dev-clean test-other test-clean train-other-500 train-clean-100",
            {"train": "train-clean-100+train-other-500", "dev": "dev-clean", "test": "test-clean"},
        ),
        (
            "train.clean.100 train.360 validation.other validation.clean",
            {"train": "train.360+train.clean.100", "dev": "validation.clean"},
        ),
        ("train train-extra validated trainer devious testimony", {"train": "train"}),
        ("validated other", {}),
    ],
)
def test_splits_by_their_roles(names, roles):
    assert splits_by_role(names.split()) == roles


def manifests(folder: Path, **splits: list[str]) -> Path:
    """A manifest for each split, a clip for each text."""
    folder.mkdir(exist_ok=True)
    for split, texts in splits.items():
        lines = []
        for number, text in enumerate(texts):
            (folder / f"{split}{number}.wav").write_bytes(SOUND)
            lines.append(json.dumps({"audio_filepath": f"{split}{number}.wav", "text": text}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def test_a_role_reads_what_the_corpus_calls_otherwise(tmp_path, caplog):
    folder = manifests(tmp_path, training=["a"], valid=["b"], other=["c"])
    assert find_splits("manifest", folder) == {"train": "training", "dev": "valid"}
    with caplog.at_level("INFO"):
        for asked in ("valid", "dev", "validation"):
            [clip], _ = load_corpus("manifest", folder, asked)
            assert clip.text == "b"
    assert "'validation' is not there, and 'valid' is read" in caplog.text
    joined, _ = load_corpus("manifest", folder, "train + other")
    assert [clip.text for clip in joined] == ["c", "a"]
    with pytest.raises(NoSplit, match="no split 'test', expected one of training, valid, other"):
        load_corpus("manifest", folder, "test")
    with pytest.raises(NoSplit, match="did you mean 'other'"):
        load_corpus("manifest", folder, "othr")
    with refused("1 clips are there twice: other0", field="split", found="other+other"):
        load_corpus("manifest", folder, "other+other")


def test_a_split_without_usable_clips_counts_as_absent(tmp_path, caplog):
    folder = manifests(tmp_path, train=["a"], dev=[], validation=["b"], test=[""])
    assert find_splits("manifest", folder) == {"train": "train", "dev": "validation"}
    assert "'dev' counts as absent" in caplog.text
    assert "'test' counts as absent" in caplog.text


def test_several_corpora(tmp_path, caplog):
    one = manifests(tmp_path / "vi", train=["a", "b"], dev=["c"])
    two = manifests(tmp_path / "tr", train=["d"], test=["e"])
    paths = f"{one}, {two}"
    assert find_splits("manifest", paths) == {"train": "train,train", "dev": "dev,", "test": ",test"}
    assert f"dev: none of its clips are from {two}" in caplog.text
    utterances, skipped = load_corpus("manifest", paths, "train")
    assert [clip.id for clip in utterances] == ["tr/train0.wav", "vi/train0.wav", "vi/train1.wav"]
    assert skipped == []
    [clip], _ = load_corpus("manifest,manifest", paths, "dev,")
    assert (clip.id, clip.text, clip.audio) == ("vi/dev0.wav", "c", one / "dev0.wav")
    parts = load_parts("manifest", paths, "train")
    assert [(part.name, len(part.utterances)) for part in parts] == [("vi", 2), ("tr", 1)]
    assert clip_weights(parts, [1, 0.5]) == {"vi/train0.wav": 1, "vi/train1.wav": 1, "tr/train0.wav": 0.5}
    with refused(field="data.weights", found=[1], expected="2, one for each"):
        clip_weights(parts, [1])
    with pytest.raises(NoSplit):
        load_corpus("manifest", paths, "dev")
    with refused(field="data.corpus", found="manifest,timit,timit", expected="each of the 2 corpora"):
        load_corpus("manifest,timit,timit", paths, "train")
    with refused(field="data.path", found="", expected="folder"):
        load_corpus("manifest", f"{one},", "train")


def test_names_of_several_corpora_differ(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        manifests(tmp_path / parent / "data", train=["x"])
    paths = f"{tmp_path}/a/data,{tmp_path}/b/data"
    ids = [clip.id for clip in load_corpus("manifest", paths, "train")[0]]
    assert ids == ["1-data/train0.wav", "2-data/train0.wav"]
    comma = manifests(tmp_path / "vi,tr", train=["x"])  # a folder of this name is one corpus
    assert [clip.id for clip in load_corpus("manifest", comma, "train")[0]] == ["train0.wav"]


def test_a_folder_of_another_kind_is_named(tmp_path, timit, sample):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "wav.scp").write_text("a a.wav\n")
    with refused(do="looks like the kind kaldi: set data.corpus to kaldi"):
        load_corpus("manifest", tmp_path, "train")
    with refused(do="set data.corpus to timit"):
        load_corpus("manifest", timit, "train")
    with refused(do="set data.corpus to timit_sample"):
        load_corpus("common_voice", sample, "train")
    folder = manifests(tmp_path / "m", train=["x"])
    with refused(do="set data.corpus to manifest"):
        load_corpus("kaldi", folder, "train")
    with refused(do="set data.corpus to manifest"):
        load_corpus("hub", folder, "tset")

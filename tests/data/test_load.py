"""Corpora by name, and where a missing one is to be had."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.clips import wav
from helpers.errors import refused
from helpers.fake_timit import build_fake_sample, build_fake_timit

from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.manifest import read_manifest
from flax_wavlm.data.corpora.timit import read_timit, read_timit_sample
from flax_wavlm.data.corpora.utterance import Skipped
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

"""Datasets of the Hugging Face hub, from the disk; columns and rows that cannot be used are named."""

import pickle
from importlib.util import find_spec

import datasets
import numpy as np
import pytest
from helpers.clips import wav
from helpers.errors import refused

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.hub import read_hub
from flax_wavlm.data.corpora.utterance import Skipped, Utterance


def quiet(samples: int = 1_600) -> bytes:
    return wav(np.full(samples, 7, np.int16))


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def rows() -> datasets.Dataset:
    audio = [{"bytes": quiet(1_600 + n), "path": f"{n}.wav"} for n in range(3)]
    dataset = datasets.Dataset.from_dict({"audio": audio, "text": ["One.", "", "Two."]})
    return dataset.cast_column("audio", datasets.Audio())  # a cast, as making Audio takes torchcodec


def check_hub(utterances: list[Utterance], skipped: list[Skipped]) -> None:
    assert [(u.id, u.text) for u in utterances] == [("train/000000", "One."), ("train/000002", "Two.")]
    assert skipped == [Skipped("train/000001", "no text")]
    assert [len(read_audio(u.audio())) for u in utterances] == [1_600, 1_602]


def test_dataset_saved_to_disk(tmp_path, rows):
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
    utterances, skipped = read_hub(str(tmp_path / "saved"), "train")
    check_hub(utterances, skipped)
    check_hub(pickle.loads(pickle.dumps(utterances)), skipped)  # as grain's workers get them
    with refused("datasets cannot load it", where="saved', config None, split 'test'$"):
        read_hub(str(tmp_path / "saved"), "test")


def test_parquet_folder_with_other_column_names(tmp_path, rows):
    (tmp_path / "parquet").mkdir()
    renamed = rows.rename_columns({"audio": "speech", "text": "sentence"})
    renamed.to_parquet(tmp_path / "parquet" / "train.parquet")
    name = str(tmp_path / "parquet")
    check_hub(*read_hub(name, "train", audio_column="speech", text_column="sentence"))
    with refused(field="data.audio_column", found="audio", expected="the columns speech, sentence$"):
        read_hub(name, "train", text_column="sentence")
    with refused(field="data.text_column", found="speech", expected=r"text, not of Audio\("):
        read_hub(name, "train", audio_column="speech", text_column="speech")


def test_audio_that_is_outside_the_dataset(tmp_path):
    paths = [tmp_path / f"{n}.wav" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_bytes(quiet(1_600 + n))
    dataset = datasets.Dataset.from_dict(
        {"audio": [str(path) for path in paths], "text": ["One.", "", "Two."]}
    )
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / "saved")
    utterances, skipped = read_hub(str(tmp_path / "saved"), "train")
    check_hub(utterances, skipped)
    paths[0].unlink()
    with refused(r"no audio in it, and the file '.*0\.wav' cannot be read", where="row train/000000$"):
        utterances[0].audio()


@pytest.mark.skipif(find_spec("torchcodec") is not None, reason="datasets can load it with torchcodec")
def test_folder_of_audio_files_says_what_is_missing(tmp_path):
    (tmp_path / "clips" / "train").mkdir(parents=True)
    (tmp_path / "clips" / "train" / "a.wav").write_bytes(quiet())
    (tmp_path / "clips" / "train" / "metadata.csv").write_text("file_name,text\na.wav,One.\n")
    with refused("No module named 'torchcodec'", where="clips'", do=r"data\.corpus to manifest"):
        read_hub(str(tmp_path / "clips"), "train")


def test_unusable_datasets(tmp_path, rows):
    with refused(field="data.path", where="dataset 'nobody/no-such-dataset'"):
        read_hub("nobody/no-such-dataset", "train")
    numbers = rows.remove_columns("audio").add_column("audio", [1, 2, 3])
    datasets.DatasetDict(train=numbers).save_to_disk(tmp_path / "numbers")
    with refused(field="data.audio_column", found="audio", expected="audio files, not of .*int64"):
        read_hub(str(tmp_path / "numbers"), "train")
    datasets.DatasetDict(train=rows.select([1])).save_to_disk(tmp_path / "silent")
    with refused(r"no usable clip, 1 unusable \(train/000000: no text"):
        read_hub(str(tmp_path / "silent"), "train")

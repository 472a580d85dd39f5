"""Datasets of the Hugging Face hub, from the disk; columns and rows that cannot be used are named."""

import pickle

import datasets
import numpy as np
import pytest
from helpers.clips import wav
from helpers.errors import refused

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.hub import read_hub, splits_of_hub
from flax_wavlm.data.corpora.utterance import EmptySplit, NoSplit, Skipped, Utterance


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
    with pytest.raises(NoSplit, match=r"expected one of train"):
        read_hub(str(tmp_path / "saved"), "test")
    datasets.DatasetDict(train=rows, test=rows.select([])).save_to_disk(tmp_path / "empty")
    check_hub(*read_hub(str(tmp_path / "empty"), "train"))
    with pytest.raises(EmptySplit):
        read_hub(str(tmp_path / "empty"), "test")


def test_parquet_folder_with_other_column_names(tmp_path, rows):
    (tmp_path / "parquet").mkdir()
    renamed = rows.rename_columns({"audio": "speech", "text": "sentence"})
    renamed.to_parquet(tmp_path / "parquet" / "train.parquet")
    name = str(tmp_path / "parquet")
    check_hub(*read_hub(name, "train", audio_column="speech", text_column="sentence"))
    check_hub(*read_hub(name, "train"))
    with refused(field="data.audio_column", found="audio", expected="the columns speech, sentence$"):
        read_hub(name, "train", audio_column="audio")
    with pytest.raises(NoSplit, match=r"no split 'valid', expected one of train"):
        read_hub(name, "valid")
    with refused(field="data.hub_config", found="vi", expected="one of default$"):
        read_hub(name, "train", config="vi")
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
    rows = datasets.Dataset.from_dict({"audio": [None, {"bytes": quiet(), "path": None}], "text": ["A", "B"]})
    rows.cast_column("audio", datasets.Audio()).save_to_disk(tmp_path / "none")
    with refused("^no audio in it$", where="row train/000000$"):
        read_hub(str(tmp_path / "none"), "train")[0][0].audio()
    paths[0].unlink()
    with refused(r"no audio in it, and the file '.*0\.wav' cannot be read", where="row train/000000$"):
        utterances[0].audio()


def ids(read: tuple[list[Utterance], list[Skipped]]) -> list[str]:
    return [clip.id for clip in read[0]]


@pytest.mark.parametrize("single", [False, True])
def test_parts_of_a_split(tmp_path, rows, single):
    rows = rows.select([0, 2, 0, 2])
    saved = rows if single else datasets.DatasetDict({"train.clean": rows})
    saved.save_to_disk(tmp_path / "saved")
    name, split = str(tmp_path / "saved"), "train" if single else "train.clean"
    assert splits_of_hub(name) == [split]
    assert ids(read_hub(name, f"{split}[:50%]")) == [f"{split}/000000", f"{split}/000001"]
    assert ids(read_hub(name, f"{split}[50%:]")) == [f"{split}/000002", f"{split}/000003"]
    assert ids(read_hub(name, f"{split}[1:3]")) == [f"{split}/000001", f"{split}/000002"]
    assert ids(read_hub(name, f"{split}[-1:]")) == [f"{split}/000003"]
    for part in ("[a:b]", "[:200%]", "[]"):
        with refused(field="split", found=split + part, expected=r"train\[:95%\]"):
            read_hub(name, split + part)
    with pytest.raises(EmptySplit):
        read_hub(name, f"{split}[3:1]")


def dataset_of(folder, **columns) -> str:
    datasets.DatasetDict(train=datasets.Dataset.from_dict(columns)).save_to_disk(folder)
    return str(folder)


WAVE = np.linspace(-0.5, 0.5, 800, dtype=np.float32)


@pytest.mark.parametrize(
    ("columns", "rate"),
    [
        ({"audio": [{"array": WAVE, "sampling_rate": 48_000, "path": "x.wav"}]}, 48_000),
        ({"speech": [WAVE], "sampling_rate": [8_000]}, 8_000),
        ({"input_values": [WAVE], "embedding": [[0.5]]}, 16_000),
        ({"audio": [{"array": [WAVE, -WAVE], "sampling_rate": 16_000}]}, 16_000),
    ],
)
def test_audio_as_samples(tmp_path, caplog, columns, rate):
    [utterance], _ = read_hub(dataset_of(tmp_path / "d", **columns, sentence=["One."]), "train")
    samples = pickle.loads(pickle.dumps(utterance)).audio()
    assert (samples.rate, samples.samples.dtype) == (rate, np.float32)
    expected = np.stack([WAVE, -WAVE], axis=1) if samples.samples.ndim == 2 else WAVE
    np.testing.assert_array_equal(samples.samples, expected)
    assert ("is taken as 16000 Hz" in caplog.text) == ("input_values" in columns)


def test_audio_as_bytes_beside_a_path_and_speakers(tmp_path):
    columns = {"audio": [quiet()] * 3, "path": ["x.wav"] * 3, "speaker_id": [7, None, 8]}
    name = dataset_of(tmp_path / "d", **columns, text=["None", None, " "])
    utterances, skipped = read_hub(name, "train")
    assert [(u.text, u.speaker, u.audio()) for u in utterances] == [("None", "7", quiet())]
    assert skipped == [Skipped("train/000001", "no text"), Skipped("train/000002", "no text")]


def test_two_columns_that_may_be_meant(tmp_path):
    name = dataset_of(tmp_path / "d", audio=[WAVE], other=[1], raw_text=["A"], normalized_text=["a"])
    with refused(
        "raw_text, normalized_text may be the text", field="data.text_column", do=r"set data\.text_column"
    ):
        read_hub(name, "train")
    assert read_hub(name, "train", text_column="raw_text")[0][0].text == "A"
    name = dataset_of(tmp_path / "e", audio=[WAVE], caption=["A"])
    with refused("no column of text", field="data.text_column", expected="audio, caption$"):
        read_hub(name, "train")
    both = {"near": [{"bytes": quiet(), "path": None}], "far": [{"bytes": quiet(), "path": None}]}
    with refused("near, far may be the audio", field="data.audio_column"):
        read_hub(dataset_of(tmp_path / "f", **both, text=["A"]), "train")


@pytest.mark.parametrize("layout", ["split folders", "common table"])
def test_folder_of_audio_files_with_metadata(tmp_path, layout):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.wav").write_bytes(quiet())
    if layout == "split folders":
        (tmp_path / "train" / "metadata.csv").write_text("file_name,transcription\na.wav,One.\n")
        (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "Two."}\n')
    else:
        (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/a.wav,One.\ntest/a.wav,Two.\n")
    name = str(tmp_path)
    assert splits_of_hub(name) == ["test", "train"]
    for split, text in (("train", "One."), ("test", "Two.")):
        [utterance], _ = read_hub(name, split)
        path = tmp_path / split / "a.wav"
        assert (utterance.id, utterance.text, utterance.audio) == (f"{split}/a.wav", text, path)
    with pytest.raises(NoSplit):
        read_hub(name, "dev")
    if layout == "common table":
        with (tmp_path / "metadata.csv").open("a") as table:
            table.write("train/a.wav,Once more.\n")
        with refused("is also at .*:2", where=":4$", field="file_name"):
            read_hub(name, "train")


def test_the_text_column_of_a_metadata_file(tmp_path):
    (tmp_path / "a.wav").write_bytes(quiet())
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.wav,One.\n")
    with refused("no column of text", field="data.text_column", do=r"set data\.text_column"):
        read_hub(str(tmp_path), "train")
    assert read_hub(str(tmp_path), "train", text_column="caption")[0][0].text == "One."


def test_parts_of_a_folder_of_audio_files(tmp_path):
    """And a row without text, the first one too, is skipped."""
    for name in "abcd":
        (tmp_path / f"{name}.wav").write_bytes(quiet())
    rows = "a.wav,\nb.wav,Two.\nc.wav,Three.\nd.wav,\n"
    (tmp_path / "metadata.csv").write_text(f"file_name,transcription\n{rows}")
    read = {part: read_hub(str(tmp_path), f"train{part}") for part in ("", "[:50%]", "[50%:]")}
    assert ids(read[""]) == ["b.wav", "c.wav"]
    assert [(ids(read[part]), read[part][1][0].id) for part in ("[:50%]", "[50%:]")] == [
        (["b.wav"], "a.wav"),
        (["c.wav"], "d.wav"),
    ]
    with refused("no usable clip, 1 unusable"):
        read_hub(str(tmp_path), "train[3:]")
    with refused(field="split", found="train[:200%]"):
        read_hub(str(tmp_path), "train[:200%]")


def test_times_in_metadata_are_not_used_and_named(tmp_path, caplog):
    (tmp_path / "a.wav").write_bytes(quiet())
    (tmp_path / "metadata.csv").write_text("file_name,text,start_time,end_time\na.wav,One.,0,1\n")
    [utterance], _ = read_hub(str(tmp_path), "train")
    assert (utterance.start, utterance.end) == (None, None)
    assert "end_time, start_time: not used" in caplog.text


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", ""])
def test_metadata_does_not_lead_out_of_its_folder(tmp_path, name):
    (tmp_path / "metadata.csv").write_text(f'file_name,text\n"{name}",One.\n')
    with refused(field="file_name", expected="in the metadata file's folder"):
        read_hub(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("error", "do"),
    [
        ("Dataset 'o/n' is a gated dataset on the Hub. Visit the page", r"ask for access .*datasets/o/n"),
        ("Dataset 'o/n' doesn't exist on the Hub or cannot be accessed.", "private data set needs"),
        ("Couldn't reach 'o/n' on the Hub (OfflineModeIsEnabled)", "HF_HUB_OFFLINE"),
        ("Dataset scripts are no longer supported, but found n.py", "not run"),
    ],
)
def test_what_to_do_about_the_hub(monkeypatch, error, do):
    def load(*args, **kwargs):
        raise RuntimeError(error)

    monkeypatch.setattr(datasets, "load_dataset", load)
    with refused("datasets cannot load it", where="'o/n'", field="data.path", do=do):
        read_hub("o/n", "train")


def test_a_missing_configuration_lists_those_there_are(monkeypatch):
    def load(*args, **kwargs):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['vi', 'tr']")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with refused(field="data.hub_config", found="", expected="one of vi, tr"):
        read_hub("o/n", "train")


def test_a_program_beside_the_data_is_not_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with refused("datasets cannot load it", field="data.path"):
        read_hub(str(folder), "train")
    assert not (tmp_path / "ran").exists()


def test_unusable_datasets(tmp_path, rows):
    with refused(field="data.path", where="dataset 'nobody/no-such-dataset'"):
        read_hub("nobody/no-such-dataset", "train")
    numbers = rows.remove_columns("audio").add_column("audio", [1, 2, 3])
    datasets.DatasetDict(train=numbers).save_to_disk(tmp_path / "numbers")
    with refused("no column of audio", field="data.audio_column", expected="columns text, audio"):
        read_hub(str(tmp_path / "numbers"), "train")
    with refused(field="data.audio_column", found="audio", expected="files or samples, not of .*int64"):
        read_hub(str(tmp_path / "numbers"), "train", audio_column="audio")
    datasets.DatasetDict(train=rows.select([1])).save_to_disk(tmp_path / "silent")
    with refused(r"no usable clip, 1 unusable \(train/000000: no text"):
        read_hub(str(tmp_path / "silent"), "train")

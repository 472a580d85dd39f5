"""corpora.py: every layout gives the same clips, and whatever is wrong is named."""

import csv
import io
import itertools
import json
import os
import pickle
import shutil
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from helpers.fake_timit import (
    CLIP_SAMPLES,
    FOUR_SECONDS,
    LAYOUTS,
    SPEAKERS,
    build_fake_timit,
    fake_clips,
    fake_samples,
)

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.hub import read_hub
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.manifest import read_manifest
from flax_wavlm.data.corpora.timit import read_timit, read_timit_sample
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.data.tokenizer import normalise, vocabulary
from flax_wavlm.errors import UserError

TEXTS = {"a.wav": "Hello, you.", "b.wav": "Good-bye!"}


def wav(samples: int = 1_600) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(samples, 7, np.int16), 16_000, format="WAV")
    return stream.getvalue()


# TIMIT


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
    with pytest.raises(UserError, match="Two copies of one TIMIT file") as error:
        read_timit(changed, "train")
    assert str(speaker / original) in str(error.value)
    assert str(speaker / copy) in str(error.value)


def test_whole_trees_in_two_cases_are_refused(tmp_path):
    build_fake_timit(tmp_path, "flat_upper")
    build_fake_timit(tmp_path, "flat_lower")
    with pytest.raises(UserError, match=r"Two copies.*TRAIN.*train"):
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
    assert "holds '0 16000 \\n', expected a line 'begin end sentence'" in reasons["sx37"]
    assert "holds 'She had no samples" in reasons["sx127"]
    assert "SX217.TXT:1: byte 0xef is not UTF-8" in reasons["sx217"]
    assert len(utterances) == 15
    assert {u.id for u in utterances}.isdisjoint({clip.id for clip in skipped})


def test_missing_and_empty_splits(changed, tmp_path):
    shutil.rmtree(changed / "data" / "TEST")
    with pytest.raises(UserError, match=r"no TEST folder in it.*Found data\..*TEST/DR1/FCJF0/SA1\.WAV"):
        read_timit(changed, "test")
    (changed / "data" / "TEST" / "DR1").mkdir(parents=True)
    with pytest.raises(UserError, match="no usable clip, none"):
        read_timit(changed, "test")
    for file in (changed / "data" / "TRAIN").rglob("*.TXT"):
        file.unlink()
    with pytest.raises(UserError, match=r"no usable clip, 40 unusable \(train/dr1/fcjf0/sa1: no \.TXT"):
        read_timit(changed, "train")
    with pytest.raises(UserError, match="'dev' is not one that TIMIT has"):
        read_timit(changed, "dev")


# The NLTK sample


@pytest.fixture
def sample(tmp_path) -> Path:
    for speaker in ("dr1-mcpm0", "dr1-fvmh0", "dr8-mbcg0"):
        folder = tmp_path / "sample" / speaker
        folder.mkdir(parents=True)
        for name in ("sa1", "sx9"):
            soundfile.write(folder / f"{name}.wav", np.ones(800, np.int16), 16_000, format="NIST")
            (folder / f"{name}.txt").write_text(f"0 800 {speaker} says {name}.\n")
            (folder / f"{name}.wrd").write_text("0 800 says\n")
    (tmp_path / "sample" / "README").write_text("TIMIT CORPUS SAMPLE")
    return tmp_path / "sample"


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
    ("held_out", "split", "message"),
    [
        (("mcpm1",), "train", "does not have: mcpm1. Expected some of dr1-fvmh0, dr1-mcpm0, dr8-mbcg0"),
        ((), "test", "leaves no speaker for 'test': it names 0 of 3"),
        (("mcpm0", "fvmh0", "mbcg0"), "train", "leaves no speaker for 'train': it names 3 of 3"),
    ],
)
def test_held_out_speakers_must_make_sense(sample, held_out, split, message):
    with pytest.raises(UserError, match=message):
        read_timit_sample(sample, split, held_out)


def test_timit_and_its_sample_are_told_apart(sample, timit):
    with pytest.raises(UserError, match=r"looks like NLTK's TIMIT sample.*corpus=timit_sample"):
        read_timit(sample, "train")
    with pytest.raises(UserError, match=r"looks like the whole TIMIT: use --config\.data\.corpus=timit "):
        read_timit_sample(timit, "train", ["mcpm0"])
    with pytest.raises(UserError, match=r"no speaker folder such as dr1-mcpm0.*Found DR1"):
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


# Manifests


def write_manifest(folder: Path, rows: list[dict], suffix: str = "jsonl", encoding: str = "utf-8") -> Path:
    for name in TEXTS:
        (folder / name).write_bytes(wav())
    manifest = folder / f"train.{suffix}"
    if suffix == "jsonl":
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding=encoding)
    else:
        with open(manifest, "w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return manifest


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_manifests(tmp_path, suffix, encoding):
    rows = [
        {
            "audio_filepath": "b.wav",
            "text": 'naïve, "so"',
            "duration": 1.5,
            "speaker": "s1",
            "id": "z",
            "lang": "en",
        },
        {
            "audio_filepath": str(tmp_path / "a.wav"),
            "text": "x",
            "duration": "",
            "speaker": "",
            "id": "a",
            "lang": "",
        },
    ]
    if suffix == "jsonl":
        rows[1] = {"audio_filepath": str(tmp_path / "a.wav"), "text": "x", "id": "a", "offset": 0.0}
    write_manifest(tmp_path, rows, suffix, encoding)
    assert read_manifest(tmp_path, "train") == (
        [
            Utterance("a", tmp_path / "a.wav", "x"),
            Utterance("z", tmp_path / "b.wav", 'naïve, "so"', "s1", 1.5),
        ],
        [],
    )


def test_manifest_defaults_and_skips(tmp_path):
    (tmp_path / "c.wav").write_bytes(wav())
    rows = [{"audio_filepath": name, "text": text} for name, text in {"c.wav": " ", **TEXTS}.items()]
    manifest = write_manifest(tmp_path, rows)
    text = manifest.read_text().replace("Hello", "Hel\u2028lo")  # a line break for splitlines, not for JSON
    manifest.write_text("\n" + text.replace("\n", "\r\n\n"), encoding="utf-8")
    utterances, skipped = read_manifest(tmp_path, "train")
    assert [(u.id, u.text) for u in utterances] == [("a.wav", "Hel\u2028lo, you."), ("b.wav", "Good-bye!")]
    assert skipped == [Skipped("c.wav", f"no text ({manifest}:2)")]


GOOD = '{"audio_filepath": "a.wav", "text": "t"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + '{"audio_filepath": "b.wav", "text": "t"', r"train\.jsonl:2: not JSON"),
        (GOOD + '["b.wav", "t"]', r"train\.jsonl:2: holds '\[\"b\.wav\", \"t\"\]', expected a JSON object"),
        ('{"audio_filepath": "a.wav"}', r":1: text is missing, expected a string"),
        ('{"text": "t"}', r":1: audio_filepath is missing"),
        ('{"audio_filepath": "", "text": "t"}', r":1: audio_filepath is ''"),
        ('{"audio_filepath": "a.wav", "text": null}', r":1: text is None, expected a string"),
        ('{"audio_filepath": "a.wav", "text": 5}', r":1: text is 5, expected a string"),
        ('{"audio_filepath": "a.wav", "text": "t", "speaker": []}', r":1: speaker is \[\]"),
        (
            '{"audio_filepath": "a.wav", "text": "t", "duration": "long"}',
            r":1: duration is 'long', expected seconds",
        ),
        ('{"audio_filepath": "a.wav", "text": "t", "duration": -1}', r":1: duration is -1"),
        ('{"audio_filepath": "a.wav", "text": "t", "duration": NaN}', r":1: duration is nan"),
        ('{"audio_filepath": "a.wav", "text": "t", "offset": 3.5}', r":1: offset is 3\.5.*not supported"),
        (GOOD + "\n" + GOOD, r"train\.jsonl:3: id 'a\.wav' is also at .*train\.jsonl:1"),
        (GOOD + GOOD.replace("a.", "c."), r":2: audio_filepath is 'c\.wav', but there is no file .*c\.wav"),
        ('{"audio_filepath": ".", "text": "t"}', r":1: audio_filepath is '\.', but there is no file"),
        ("\n\n", "no usable clip, none"),
        ('{"audio_filepath": "a.wav", "text": ""}', r"no usable clip, 1 unusable \(a\.wav: no text"),
        (
            GOOD.encode() + GOOD.replace('"t"', '"é"').encode("latin-1"),
            r"train\.jsonl:2: byte 0xe9 is not UTF-8",
        ),
    ],
)
def test_bad_jsonl(tmp_path, content, message):
    manifest = write_manifest(tmp_path, [])
    manifest.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train\.csv:1: no column 'audio_filepath', found nothing"),
        ("audio_filepath;text\na.wav;t\n", r":1: no column 'audio_filepath', found audio_filepath;text"),
        ("audio_filepath,text\na.wav,one, two\n", r":2: not 2 fields as in the header"),
        ("audio_filepath,text\na.wav\n", r":2: not 2 fields as in the header"),
        ('audio_filepath,text\na.wav,"t\n', r":2: not CSV"),
        ("audio_filepath,text\na.wav,t\nb.wav,t\na.wav,t\n", r":4: id 'a\.wav' is also at .*:2"),
        ("audio_filepath,text,duration\na.wav,t,1s\n", r":2: duration is '1s'"),
        ("audio_filepath,text\n", "no usable clip"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    write_manifest(tmp_path, [])
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path, "train")


def test_no_manifest_or_two(tmp_path):
    write_manifest(tmp_path, [{"audio_filepath": "a.wav", "text": "t"}], "jsonl")
    with pytest.raises(UserError, match=r"found 0 of test\.jsonl and test\.csv.*train\.jsonl"):
        read_manifest(tmp_path, "test")
    write_manifest(tmp_path, [{"audio_filepath": "a.wav", "text": "t"}], "csv")
    with pytest.raises(UserError, match=r"found 2 of train\.jsonl and train\.csv"):
        read_manifest(tmp_path, "train")


# Hugging Face datasets


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def rows() -> datasets.Dataset:
    audio = [{"bytes": wav(1_600 + n), "path": f"{n}.wav"} for n in range(3)]
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
    with pytest.raises(UserError, match=r"saved', config None, split 'test': datasets cannot load it"):
        read_hub(str(tmp_path / "saved"), "test")


def test_parquet_folder_with_other_column_names(tmp_path, rows):
    (tmp_path / "parquet").mkdir()
    renamed = rows.rename_columns({"audio": "speech", "text": "sentence"})
    renamed.to_parquet(tmp_path / "parquet" / "train.parquet")
    name = str(tmp_path / "parquet")
    check_hub(*read_hub(name, "train", audio_column="speech", text_column="sentence"))
    with pytest.raises(UserError, match=r"no column 'audio', found speech, sentence.*data\.audio_column"):
        read_hub(name, "train", text_column="sentence")
    with pytest.raises(UserError, match=r"column 'speech' is Audio\(.*, expected text"):
        read_hub(name, "train", audio_column="speech", text_column="speech")


def test_audio_that_is_outside_the_dataset(tmp_path):
    paths = [tmp_path / f"{n}.wav" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_bytes(wav(1_600 + n))
    dataset = datasets.Dataset.from_dict(
        {"audio": [str(path) for path in paths], "text": ["One.", "", "Two."]}
    )
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / "saved")
    utterances, skipped = read_hub(str(tmp_path / "saved"), "train")
    check_hub(utterances, skipped)
    paths[0].unlink()
    with pytest.raises(UserError, match=r"row train/000000: no audio in it and no file '.*0\.wav'"):
        utterances[0].audio()


@pytest.mark.skipif(find_spec("torchcodec") is not None, reason="datasets can load it with torchcodec")
def test_folder_of_audio_files_says_what_is_missing(tmp_path):
    (tmp_path / "clips" / "train").mkdir(parents=True)
    (tmp_path / "clips" / "train" / "a.wav").write_bytes(wav())
    (tmp_path / "clips" / "train" / "metadata.csv").write_text("file_name,text\na.wav,One.\n")
    with pytest.raises(UserError, match=r"clips'.*No module named 'torchcodec'.*corpus=manifest"):
        read_hub(str(tmp_path / "clips"), "train")


def test_unusable_datasets(tmp_path, rows):
    with pytest.raises(UserError, match=r"dataset 'nobody/no-such-dataset'.*data\.path"):
        read_hub("nobody/no-such-dataset", "train")
    numbers = rows.remove_columns("audio").add_column("audio", [1, 2, 3])
    datasets.DatasetDict(train=numbers).save_to_disk(tmp_path / "numbers")
    with pytest.raises(UserError, match=r"column 'audio' is .*int64.*expected audio files"):
        read_hub(str(tmp_path / "numbers"), "train")
    datasets.DatasetDict(train=rows.select([1])).save_to_disk(tmp_path / "silent")
    with pytest.raises(UserError, match=r"no usable clip, 1 unusable \(train/000000: no text"):
        read_hub(str(tmp_path / "silent"), "train")


# By name


def test_load_corpus_reads_each_corpus(tmp_path, timit, sample, rows):
    assert (
        load_corpus("timit", timit, "test")
        == load_corpus("synthetic", str(timit), "test")
        == read_timit(timit, "test")
    )
    held_out = ["mcpm0"]
    assert load_corpus("timit_sample", sample, "test", held_out_speakers=held_out) == read_timit_sample(
        sample, "test", held_out
    )
    manifest = write_manifest(tmp_path, [{"audio_filepath": "a.wav", "text": "t"}])
    assert load_corpus("manifest", manifest.parent, "train") == read_manifest(tmp_path, "train")
    datasets.DatasetDict(train=rows.rename_column("text", "said")).save_to_disk(tmp_path / "saved")
    check_hub(*load_corpus("hub", tmp_path / "saved", "train", text_column="said"))


def test_environment_says_where_timit_is(monkeypatch, timit, sample):
    monkeypatch.setenv("TIMIT_DIR", str(timit))
    monkeypatch.setenv("TIMIT_SAMPLE_DIR", str(sample))
    assert len(load_corpus("timit", "", "train")[0]) == 40
    assert len(load_corpus("timit_sample", "", "train", held_out_speakers=["mcpm0"])[0]) == 4
    with pytest.raises(UserError, match=r"data\.path is '/nowhere'"):  # the path given comes first
        load_corpus("timit", "/nowhere", "train")


@pytest.mark.parametrize("path", ["", "/no/such/folder"])
def test_without_timit_the_error_is_the_way_on(monkeypatch, path):
    monkeypatch.delenv("TIMIT_DIR", raising=False)
    with pytest.raises(UserError) as error:
        load_corpus("timit", path, "train")
    for fact in (
        f"{path!r}" if path else "data.path is empty",
        "LDC93S1",
        "https://catalog.ldc.upenn.edu/LDC93S1",
        "--config.data.path=/path/to/TIMIT",
        "TIMIT_DIR",
        "configs/demo.py",
        "configs/timit_sample.py",
        "python -m nltk.downloader timit",
    ):
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("corpus", "path", "message"),
    [
        ("timit_sample", "", r"data\.path is empty.*nltk\.downloader timit.*TIMIT_SAMPLE_DIR"),
        ("timit_sample", "/nowhere", r"'/nowhere', which is not a folder.*TIMIT_SAMPLE_DIR"),
        ("manifest", "", r"data\.path is empty.*train\.jsonl"),
        ("hub", "", r"data\.path is empty.*hub id"),
        ("synthetic", "/nowhere", r"'/nowhere'.*configs/demo\.py"),
        ("timt", "", r"data\.corpus is 'timt', expected one of timit, .*Did you mean 'timit'\?"),
        ("librispeech", "", r"data\.corpus is 'librispeech', expected one of [^?]*$"),
    ],
)
def test_wrong_names_and_paths(monkeypatch, corpus, path, message):
    monkeypatch.delenv("TIMIT_SAMPLE_DIR", raising=False)
    with pytest.raises(UserError, match=message):
        load_corpus(corpus, path, "train")

"""`align` and `segment`: what they write, what they refuse, and what a second start does."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
from helpers.commands import Ended, run
from helpers.reference import tiny_reference

from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.porting.verify import speech_like
from flax_wavlm.recognition import segments
from flax_wavlm.recognition.recogniser import Recogniser

pytestmark = pytest.mark.usefixtures("one_device")

TEXT = "She had your dark suit, in\ngreasy wash-water."


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, one_device: None) -> SimpleNamespace:
    """A model of random weights, a recording of 4 s, and its text."""
    folder = tmp_path_factory.mktemp("model")
    tiny_reference("large", folder, num_hidden_layers=1)
    CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'"]).save(folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(folder)
    data = tmp_path_factory.mktemp("data")
    audio, text = data / "a.wav", data / "a.txt"
    soundfile.write(audio, speech_like(4.0), 16_000)
    text.write_text(TEXT)
    (data / "train.jsonl").write_text(
        "".join(
            json.dumps({"audio_filepath": "a.wav", "text": text, "id": id, "start": start, "end": start + 2})
            + "\n"
            for id, text, start in (("x/1", "In greasy", 0), ("x/2", "Привет", 1), ("x/3", "wash", 2))
        )
    )
    recogniser = Recogniser.from_pretrained(folder)
    return SimpleNamespace(model=folder, data=data, audio=audio, text=text, recogniser=recogniser)


@pytest.fixture(autouse=True)
def loaded_once(there: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recogniser, "from_pretrained", lambda *given, **settings: there.recogniser)


def align(there: SimpleNamespace, *flags: object, **files: object) -> Ended:
    given = {"audio": there.audio, "text": there.text} | files
    return run("align", "--model", there.model, *(f"--{k}={v}" for k, v in given.items()), *flags)


def test_the_words_of_the_text_have_times(there: SimpleNamespace) -> None:
    ended = align(there)
    assert ended.status == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["text"] == " ".join(TEXT.split())
    assert [word["word"] for word in found["words"]] == TEXT.split()
    assert "".join(c["character"] for c in found["characters"]) == "shehadyourdarksuitingreasywashwater"
    times = [time for word in found["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= found["duration"] == 4.0
    assert "words that were hardly said: " in ended.stderr  # by random weights


def test_a_corpus_in_a_folder_of_files(there: SimpleNamespace, tmp_path: Path) -> None:
    given = ["--model", there.model, "--corpus=manifest", "--data", there.data, "--split=train"]
    ended = run("align", *given, "--output_dir", tmp_path / "out", "--format=ctm")
    assert ended.status == 2
    assert re.search(
        r"^error: the text of x/2: 'Привет' holds nothing that the model can say", ended.stderr, re.M
    )
    assert ended.stderr.splitlines()[-1] == "error: 1 of 3 clips could not be aligned"
    files = sorted(file.name for file in (tmp_path / "out").rglob("*.ctm"))
    assert files == ["1.ctm", "3.ctm"]
    ended = run("align", *given, "--output_dir", tmp_path / "out", "--format=ctm", "--resume")
    assert "2 of 3 recordings have their file already" in ended.stderr
    assert ended.stderr.splitlines()[-1] == "error: 1 of 1 clips could not be aligned"


@pytest.mark.parametrize(
    ("files", "flags", "message"),
    [
        ({"text": "FOLDER/none.txt"}, [], r"none\.txt: cannot be read \(No such file"),
        ({"text": "FOLDER"}, [], r"cannot be read \(Is a directory\)"),
        ({"text": "FOLDER/empty.txt"}, [], r"empty\.txt: is empty"),
        ({"text": "FOLDER/russian.txt"}, [], r"russian\.txt: 'Привет' holds nothing that the model can say"),
        ({"text": "FOLDER/long.txt"}, [], r"a\.wav: a text of 1000 labels, expected at least 1\d+ frames"),
        ({"audio": "FOLDER/none.wav"}, [], r"none\.wav: cannot be read \(No such file"),
        ({"audio": "FOLDER/long.txt"}, [], r"long\.txt: libsndfile cannot decode it"),
        ({}, ["--corpus=manifest"], "a recording and a corpus are given, expected --audio and --text, or"),
        ({}, ["--format=wav"], r"--format is 'wav', expected one of text"),
        ({}, ["--channel=5"], r"a\.wav: .*channel"),
    ],
)
def test_what_cannot_be_aligned(
    there: SimpleNamespace, files: dict[str, str], flags: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "russian.txt").write_text("Привет")
    (tmp_path / "long.txt").write_text("better " * 143)
    given = {name: value.replace("FOLDER", str(tmp_path)) for name, value in files.items()}
    ended = align(there, *flags, **given)
    assert ended.status == 2
    assert ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: "), ended.stderr
    assert re.search(message, last), last


def test_nothing_to_align(there: SimpleNamespace) -> None:
    ended = run("align", "--model", there.model, "--audio", there.audio)
    assert ended.status == 2
    assert "expected --audio and --text, or --corpus and --data" in ended.stderr


def test_segments_are_clips_to_train_on(
    there: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clips"
    given = ["--model", there.model, "--audio", there.audio, "--text", there.text, "--output", folder]
    ended = run("segment", *given, "--max_seconds=2")
    assert ended.status == 2  # random weights do not hear the words
    assert "words that were hardly said" in (folder / "rejected.jsonl").read_text()
    assert not (folder / "train.jsonl").exists()

    monkeypatch.setattr(segments, "UNLIKELY", 0.0)
    ended = run("segment", *given, "--max_seconds=2", "--min_confidence=0")
    assert ended.status == 0, ended.stderr
    utterances, skipped = load_corpus("manifest", folder, "train")
    assert skipped == []
    assert all(utterance.text in " ".join(TEXT.split()) for utterance in utterances)
    assert all(utterance.audio == there.audio for utterance in utterances)
    assert all(utterance.end - utterance.start <= 2.001 for utterance in utterances)
    again = run("segment", *given, "--max_seconds=2", "--min_confidence=0")
    assert again.status == 0
    assert f"all is there: {len(utterances)} clips" in again.stdout
    again = run("segment", *given, "--max_seconds=1")
    assert again.status == 2
    assert "give another folder" in again.stderr

"""train-lm: from text to an ARPA file; what cannot be is one line, before any work."""

import gzip
from pathlib import Path

import pytest
from helpers.commands import run

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.language_model.arpa import read_arpa

TEXT = "Hello, world!\nHello again.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def test_from_text(text: Path, tmp_path: Path) -> None:
    more, output = tmp_path / "more.gz", tmp_path / "new" / "lm.arpa.gz"
    more.write_bytes(gzip.compress(b"again, hello world\n"))
    ended = run("train-lm", "--order", 2, "--output", output, "--text", text, more)
    assert ended.status == 0, ended.stderr
    for said in (
        "text rule: preset 'auto'",
        "3 sentences, 7 words",
        "counting needs up to",
        "the discounts of 1-grams are not determined",
        "1-grams: 6, discounts 0.5, 1, 1.5",
        "2-grams: 7, discounts",
        f"written to {output} in ",
    ):
        assert said in ended.stdout
    assert output.read_bytes()[:2] == b"\x1f\x8b"
    found = read_arpa(output)
    assert found.words == ("<unk>", "<s>", "</s>", "hello", "world", "again")
    assert [len(table.ids) for table in found.tables] == [6, 7]


def test_from_a_corpus_by_a_models_alphabet(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"audio_filepath": "a.wav", "text": "Bad Cab, übel"}\n')
    (tmp_path / "a.wav").touch()
    CTCTokenizer.from_texts(["abcd e"]).save(tmp_path / "model")
    output = tmp_path / "lm.arpa"
    ended = run(
        *("train-lm", "--corpus=manifest", "--data", tmp_path, "--model", tmp_path / "model"),
        *("--output", output, "--order=1", "--text_rule=case=lower"),
    )
    assert ended.status == 0, ended.stderr
    assert "train: the text of 1 clips" in ended.stdout
    assert "cannot spell 1 words, 1 different ones, which count as <unk>: übel" in ended.stdout
    assert read_arpa(output).words == ("<unk>", "<s>", "</s>", "bad", "cab")


def test_pruning_and_rare_words(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "lm.arpa"
    ended = run("train-lm", text, "--prune=0,1", "--min_count=2", "--order=2", "--output", output)
    assert ended.status == 0, ended.stderr
    found = read_arpa(output)
    assert found.words == ("<unk>", "<s>", "</s>", "hello")
    assert len(found.tables[1].ids) == 3  # <s> hello, hello <unk>, <unk> </s>: each twice


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "there is no text, expected files of text, or --corpus and --data"),
        (["none.txt"], "none.txt: no such file"),
        (["text.txt", "--order=0"], "--order is 0, expected 1 to 10"),
        (["text.txt", "--order=11"], "--order is 11"),
        (["text.txt", "--order=5"], "--order is 5, expected at most 4"),
        (["text.txt", "--prune=1,0"], "--prune is 1, 0, expected at most 3 numbers from 0"),
        (["text.txt", "--prune=some"], "--prune is 'some', expected whole numbers"),
        (["text.txt", "--prune=0,9"], "no 2-gram occurs more than 9 times, expected a lower threshold"),
        (["text.txt", "--min_count=0"], "--min_count is 0, expected 1 or more"),
        (["marks.txt"], "the text has no words, expected sentences, one a line"),
        (
            ["text.txt", "--output=text.txt"],
            "text.txt: is there already; give another name, or --overwrite",
        ),
        (["text.txt", "--output=."], ".: is no file"),
        (["text.txt", "--output=text.txt/lm.arpa"], "cannot be written (File exists)"),
        (["text.txt", "--text_rule=cases=lower"], "did you mean 'case'?"),
        (["text.txt", "--model=none"], "none: no such file or folder"),
        (["--corpus=timitt", "--data=."], "--corpus is 'timitt'"),
    ],
)
def test_what_cannot_be(
    given: list[str], said: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("marks.txt").write_text("?!\n...\n")
    ended = run("train-lm", *given, *([] if "--output" in " ".join(given) else ["--output=lm.arpa"]))
    assert ended.status == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not Path("lm.arpa").exists()
    assert text.read_text() == TEXT


def test_several_texts(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c,d"):
        Path(name).write_text(f"{name[0]}\n")
    ended = run("train-lm", "--text=a,b", "--text", "c,d", text, "--order=1", "--output=lm.arpa")
    assert ended.status == 0, ended.stderr
    assert read_arpa(Path("lm.arpa")).words[3:] == ("a", "b", "c", "hello", "world", "again")


def test_overwrite(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "lm.arpa"
    output.write_text("old")
    assert run("train-lm", text, "--order=1", "--output", output).status == 2
    assert output.read_text() == "old"
    assert run("train-lm", text, "--order=1", "--output", output, "--overwrite").status == 0
    assert read_arpa(output).order == 1

"""Common Voice, LibriSpeech and its kin, Kaldi's data folders, folders of audio files with their texts."""

from pathlib import Path

import pytest
from helpers.errors import refused

from flax_wavlm.data.clips import describe_skipped
from flax_wavlm.data.corpora.common_voice import read_common_voice, splits_of_common_voice
from flax_wavlm.data.corpora.folder import read_folder, splits_of_folder
from flax_wavlm.data.corpora.kaldi import read_kaldi, splits_of_kaldi
from flax_wavlm.data.corpora.librispeech import read_librispeech, splits_of_librispeech
from flax_wavlm.data.corpora.utterance import NoSplit, Skipped, Utterance, in_usual_order


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def test_the_order_of_splits():
    names = ["other", "test-clean", "validation", "train-b", "Test", "train-a", "dev", "train-a"]
    assert in_usual_order(names) == ["train-a", "train-b", "dev", "validation", "Test", "test-clean", "other"]


# --- Common Voice -------------------------------------------------------------------------------------------

COMMON_VOICE = {
    "vi/train.tsv": "client_id\tpath\tsentence\tlocale\n"
    's1\tb.mp3\t"Vâng," anh nói\tvi\ns2\ta\tMột\tvi\ns1\tc.mp3\t\tvi\n',
    "vi/reported.tsv": "sentence_id\tsentence\treason\n",
    "vi/clips/a.mp3": "",
    "vi/clips/b.mp3": "",
}


def test_common_voice(tmp_path):
    write(tmp_path, COMMON_VOICE)
    clips = tmp_path / "vi" / "clips"
    for root in (tmp_path / "vi", tmp_path):
        assert splits_of_common_voice(root) == ["train"]
        assert read_common_voice(root, "train") == (
            [
                Utterance("a.mp3", clips / "a.mp3", "Một", "s2"),
                Utterance("b.mp3", clips / "b.mp3", '"Vâng," anh nói', "s1"),
            ],
            [Skipped("c.mp3", f"no text ({tmp_path}/vi/train.tsv:4)")],
        )
    with pytest.raises(NoSplit, match=r"no split 'test', expected one of train"):
        read_common_voice(tmp_path, "test")


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("s1\ta.mp3\n", {"found": 2, "expected": "3 fields", "where": r"train\.tsv:2$"}),
        ("s1\t../a.mp3\tone\n", {"field": "path", "found": "../a.mp3", "where": r"train\.tsv:2$"}),
        ("s1\ta.mp3\tone\ns2\ta.mp3\ttwo\n", {"problem": r"'a\.mp3' is also at .*train\.tsv:2"}),
        ("s1\tx.mp3\tone\ns2\ty.mp3\ttwo\n", {"problem": r"2 of 2 audio files .* 'x\.mp3', 'y\.mp3'"}),
    ],
)
def test_bad_common_voice(tmp_path, rows, parts):
    write(tmp_path, {"train.tsv": f"client_id\tpath\tsentence\n{rows}", "clips/a.mp3": ""})
    with refused(**parts):
        read_common_voice(tmp_path, "train")


def test_several_languages(tmp_path):
    write(tmp_path, {"de/clips/a.mp3": "", "vi/clips/a.mp3": ""})
    with refused("several languages, de, vi", where=str(tmp_path)):
        read_common_voice(tmp_path, "train")


# --- LibriSpeech --------------------------------------------------------------------------------------------

LIBRISPEECH = {
    "LibriSpeech/train-clean-100/103/1240/103-1240.trans.txt": "103-1240-0000 ONE TWO\n103-1240-0001 THREE\n",
    "LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac": "",
    "LibriSpeech/train-clean-100/103/1240/103-1240-0002.flac": "",
    "LibriSpeech/dev-clean/1/2/1-2.trans.txt": "",
    "LibriSpeech/SPEAKERS.TXT": "",
}


def test_librispeech(tmp_path):
    chapter = write(tmp_path, LIBRISPEECH) / "LibriSpeech/train-clean-100/103/1240"
    for root in (tmp_path, tmp_path / "LibriSpeech"):
        assert splits_of_librispeech(root) == ["train-clean-100", "dev-clean"]
        assert read_librispeech(root, "train-clean-100") == (
            [Utterance("103-1240-0000", chapter / "103-1240-0000.flac", "ONE TWO", "103")],
            [
                Skipped("103-1240-0001", "no audio file of that name"),
                Skipped("103-1240-0002", f"no text for {chapter / '103-1240-0002.flac'}"),
            ],
        )
    with pytest.raises(NoSplit, match="expected one of train-clean-100, dev-clean"):
        read_librispeech(tmp_path, "train")
    with refused("no usable clip", where="dev-clean"):
        read_librispeech(tmp_path, "dev-clean")


def test_kin_of_librispeech(tmp_path):
    write(tmp_path, {"train/transcripts.txt": "12_34_5\tmột hai\n", "train/audio/12/34/12_34_5.flac": ""})
    text = {f"dev-clean/1/2/1_2_3.{kind}.txt": f"{kind} text\n" for kind in ("normalized", "original")}
    write(tmp_path, {**text, "dev-clean/1/2/1_2_3.wav": ""})
    [mls], _ = read_librispeech(tmp_path, "train")
    assert mls == Utterance("12_34_5", tmp_path / "train/audio/12/34/12_34_5.flac", "một hai", "12")
    [tts], _ = read_librispeech(tmp_path, "dev-clean")
    assert tts == Utterance("1_2_3", tmp_path / "dev-clean/1/2/1_2_3.wav", "normalized text", "1")


# --- Kaldi --------------------------------------------------------------------------------------------------

KALDI = {
    "wavs/a b.wav": "",
    "wavs/c.wav": "",
    "data/train/wav.scp": "ra wavs/a b.wav\nrc wavs/c.wav\n",
    "data/train/text": "u1 one  two\nu2\tthree\nu3\nu5 five\nu6 six\nu7 seven\n",
    "data/train/segments": "u1 ra 0.5 2\nu2 rc 0 -1\nu3 rc 1 2\nu4 rc 1 2\nu6 rx 1 2\nu7 rc 1 1\n",
    "data/train/utt2spk": "u1 anna\n",
}


def test_kaldi(tmp_path, caplog):
    data = write(tmp_path, KALDI) / "data"
    assert splits_of_kaldi(data) == splits_of_kaldi(data / "train") == ["train"]
    utterances, skipped = read_kaldi(data, "train")
    assert (utterances, skipped) == read_kaldi(data / "train", "train")
    assert utterances == [
        Utterance("u1", tmp_path / "wavs/a b.wav", "one  two", "anna", 1.5, 0.5, 2),
        Utterance("u2", tmp_path / "wavs/c.wav", "three"),
    ]
    assert [(clip.id, clip.reason) for clip in skipped] == [
        ("u3", "no text"),
        ("u4", "no text"),
        ("u5", "in text, and not in segments"),
        ("u6", "its recording is not in wav.scp: 'rx'"),
        ("u7", "the part has no length"),
    ]
    assert "4 utterances are not in utt2spk: u2, u3, u6, u7" in caplog.text
    (data / "train/segments").unlink()
    write(data, {"train/text": "ra one\nrc two\n", "train/utt2dur": "ra 2.5\n"})
    assert read_kaldi(data, "train")[0] == [
        Utterance("ra", tmp_path / "wavs/a b.wav", "one", duration=2.5),
        Utterance("rc", tmp_path / "wavs/c.wav", "two"),
    ]


@pytest.mark.parametrize(
    ("file", "line", "parts"),
    [
        ("wav.scp", "ra touch ran |", {"problem": "never run", "found": "touch ran |"}),
        ("wav.scp", "ra touch ran - |  ", {"problem": "never run"}),
        ("wav.scp", "ra | touch ran", {"problem": "never run"}),
        ("wav.scp", "ra foo.ark:123", {"problem": "archive", "found": "foo.ark:123"}),
        ("wav.scp", "ra foo.ark:123[0:9]", {"problem": "archive"}),
        ("wav.scp", "ra -", {"found": "-"}),
        ("wav.scp", "ra", {"found": ""}),
        ("wav.scp", "ra wavs/c.wav\nra wavs/c.wav", {"problem": r"'ra' is also at .*wav\.scp:1"}),
        ("wav.scp", "ra no.wav", {"found": "no.wav", "expected": "there is no file"}),
        ("segments", "u1 ra 2 1", {"problem": "before start", "found": "1"}),
        ("segments", "u1 ra x 1", {"field": "start", "found": "x"}),
        ("segments", "u1 ra 1 2 B", {"problem": "5 fields", "expected": "a channel is not supported"}),
        ("segments", "u1 ra 1", {"problem": "3 fields"}),
    ],
)
def test_bad_kaldi(tmp_path, monkeypatch, file, line, parts):
    data = write(tmp_path, KALDI | {f"data/train/{file}": f"{line}\n"}) / "data"
    monkeypatch.chdir(tmp_path)
    with refused(where=rf"{file}:\d$", **parts):
        read_kaldi(data, "train")
    assert not (tmp_path / "ran").exists()


def test_no_kaldi(tmp_path):
    with pytest.raises(NoSplit, match=r"expected a folder with wav\.scp and text"):
        read_kaldi(tmp_path, "train")


# --- Folders ------------------------------------------------------------------------------------------------

FOLDER = {
    "anna/1.wav": "",
    "anna/1.txt": "one\ntwo\n",
    "ben/deep/2.FLAC": "",
    "ben/deep/2.lab": "three",
    "ben/._2.wav": "",
    "ben/3.wav": "",
    "ben/4.txt": "four",
    "ben/5.wav": "",
    "ben/5.txt": "five",
    "ben/5.lab": "five",
    "ben/6.wav": "",
    "ben/6.mp3": "",
    "ben/6.txt": "six",
    "ben/7.wav": "",
    "ben/7.lab": "0 100 sil\n100 200 one\n",
    "ben/8.wav": "",
    "ben/8.txt": " \n",
    "README.txt": "notes",
}
REASONS = {
    "README": "no audio file beside the text: README.txt",
    "ben/3": "no .txt or .lab file beside the audio: 3.wav",
    "ben/4": "no audio file beside the text: 4.txt",
    "ben/5": "several text files of one name: 5.lab, 5.txt",
    "ben/6": "several audio files of one name: 6.mp3, 6.wav",
    "ben/7": "the text file holds times, not a text alone: 7.lab, '0 100 sil\\n100 200 one'",
    "ben/8": "the text file is empty: 8.txt",
}


def test_folder(tmp_path):
    root = write(tmp_path / "x", FOLDER)
    (root / "ben" / "loop").symlink_to(root)
    assert splits_of_folder(root) == ["train"]
    utterances, skipped = read_folder(root, "train")
    assert utterances == [
        Utterance("anna/1", root / "anna/1.wav", "one two", "anna"),
        Utterance("ben/deep/2", root / "ben/deep/2.FLAC", "three", "ben"),
    ]
    assert {clip.id: clip.reason for clip in skipped} == REASONS
    assert "skipped 2 - no audio file beside the text: README, ben/4" in describe_skipped(skipped)
    with pytest.raises(NoSplit, match="expected one of train"):
        read_folder(root, "test")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0.5\t1.5\thello\n", "times"),
        ("12.25 13.5 hello", "times"),
        ("signal a\n#\n0.5 100 sil\n0.9 100 hh\n", "times"),
        ("1\n00:00:01,000 --> 00:00:02,000\nhello\n", "subtitles"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\nhello", "subtitles"),
        ('\ufeffFile type = "ooTextFile"\nObject class = "TextGrid"\n', "a TextGrid"),
        ("<!DOCTYPE html><p>hello</p>", "XML or HTML"),
        ("{\\rtf1\\ansi hello}", "RTF"),
        ('{"text": "hello"}', "JSON"),
        ('[{"word": "hello"}]', "JSON"),
    ],
)
def test_files_of_other_formats_are_no_texts(tmp_path, text, what):
    root = write(tmp_path / "x", {"a.wav": "", "a.txt": "one", "b.wav": "", "b.txt": text})
    utterances, [skipped] = read_folder(root, "train")
    assert [clip.id for clip in utterances] == ["a"]
    assert skipped.reason.startswith(f"the text file holds {what}, not a text alone: b.txt, ")


@pytest.mark.parametrize(
    "text", ["1990 2000 were years", "0 100", "<laughs> well", "[noise] {um} yes", "#", "3.5 or 4 # two"]
)
def test_texts_that_only_look_like_other_formats(tmp_path, text):
    root = write(tmp_path / "x", {"a.wav": "", "a.txt": text})
    assert read_folder(root, "train") == ([Utterance("a", root / "a.wav", text)], [])


def test_folders_of_splits(tmp_path, caplog):
    clips = {f"{name}.{suffix}": "0 100" for name in ("Test/1", "train/2") for suffix in ("wav", "txt")}
    write(tmp_path, clips)
    assert splits_of_folder(tmp_path) == ["train", "Test"]
    assert read_folder(tmp_path, "train") == (
        [Utterance("train/2", tmp_path / "train/2.wav", "0 100")],
        [],
    )
    assert caplog.text == ""
    write(tmp_path, {"3.wav": "", "3.txt": "three"})
    assert len(read_folder(tmp_path, "train")[0]) == 1
    assert "1 audio files lie in no split's folder: 3.wav" in caplog.text

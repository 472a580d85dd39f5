"""A dev split that is cut from train, and what train shares with the clips that judge a model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flax_wavlm.data.clips import Clip
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.leaks import same_audio, shared
from flax_wavlm.data.splits import cut_dev, parse_share
from flax_wavlm.errors import UserError

as_written: Callable[[str], str] = str.strip


def said(id: str, text: str, speaker: str = "", file: str = "") -> Utterance:
    return Utterance(id, Path(file or f"{id}.wav"), text, speaker)


def clip_of(id: str, text: str, speaker: str = "") -> Clip:
    return Clip(id, np.zeros(1, np.int16), np.zeros(1, np.int32), text.strip(), speaker)


def test_whole_speakers_are_cut() -> None:
    train = [clip_of(f"{s}-{i}", f"text {i}", f"s{s}") for s in range(20) for i in range(5)]
    cut = cut_dev(train, 0.1, 0)
    assert cut.by == "speaker"
    assert len(cut.dev) == 10
    assert {u.speaker for u in cut.dev}.isdisjoint({u.speaker for u in cut.train})
    assert sorted(cut.train + cut.dev, key=lambda u: u.id) == sorted(train, key=lambda u: u.id)
    assert cut_dev(train[::-1], 0.1, 0).dev == [u for u in train[::-1] if u in cut.dev]
    assert cut_dev(train, 0.1, 1).dev != cut.dev
    assert [u.id for u in cut.train] == [u.id for u in train if u in cut.train]  # the order stays


def test_same_choice_on_every_machine() -> None:
    train = [clip_of(f"{i}", f"text {i}", f"speaker {i}") for i in range(10)]
    assert [u.id for u in cut_dev(train, 0.2, 0).dev] == ["0", "2"]


def test_whole_texts_are_cut_where_speakers_are_unknown() -> None:
    train = [clip_of(f"{t}-{i}", f" text {t}" + " " * i) for t in range(40) for i in range(3)]
    train[0] = clip_of("0-0", "text 0", "known")
    cut = cut_dev(train, 0.1, 0)
    assert cut.by == "text"
    assert 12 <= len(cut.dev) <= 14
    assert {u.text.strip() for u in cut.dev}.isdisjoint({u.text.strip() for u in cut.train})


def test_one_of_a_few_speakers_is_cut() -> None:
    sizes = {"ann": 40, "ben": 25, "cay": 35}
    train = [clip_of(f"{s}-{i}", f"text {s} {i}", s) for s, size in sizes.items() for i in range(size)]
    cut = cut_dev(train, 0.05, 0)
    assert (cut.by, {u.speaker for u in cut.dev}, len(cut.dev)) == ("speaker", {"ben"}, 25)
    assert cut_dev(train[:65], 0.05, 0).by == "text"  # ben has more than a third of these


@pytest.mark.parametrize("speaker", ["", "the only one"])
def test_single_clips_are_cut_where_all_say_the_same(speaker: str) -> None:
    train = [clip_of(f"{i}", "yes" if i % 2 else "no", speaker) for i in range(30)]
    cut = cut_dev(train, 0.1, 0)
    assert (cut.by, len(cut.dev), len(cut.train)) == ("clip", 3, 27)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_small_sets_keep_something_to_train_on(count: int) -> None:
    train = [clip_of(f"{i}", f"text {i}", f"s{i}") for i in range(count)]
    cut = cut_dev(train, 0.5, 3)
    assert cut.train
    assert cut.dev


def test_one_clip_cannot_be_cut() -> None:
    with pytest.raises(UserError, match="train has 1 clip") as raised:
        cut_dev([clip_of("a", "b")], 0.1, 0)
    assert raised.value.field == "data.dev"


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.25", 0.25), ("validation", None), ("", None)])
def test_shares(text: str, share: float | None) -> None:
    assert parse_share(text) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize("text", ["0", "1", "100%", "-5%", "nan"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="a share of train above 0"):
        parse_share(text)


def test_speakers_recordings_and_texts_in_both_are_named() -> None:
    train = [said("a", "one two", "ann"), said("b", "three", "ben"), said("c", "four", "cay", "long.wav")]
    test = [said("d", "one two ", "dan"), said("e", "five", "ben"), said("f", "six", "eve", "long.wav")]
    speakers, recordings, texts = shared(train, test, as_written)
    assert speakers == "1 speakers are also in train (ben), with 1 of its 3 clips"
    assert recordings == "1 recordings are also in train (long.wav)"
    assert texts == "1 of its 3 clips have a text that is also in train: 'one two'"
    assert list(shared(train, [said("g", "seven", "gus"), said("h", "", "")], as_written)) == []


def test_parts_of_a_recording_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "long.wav").touch()
    (tmp_path / "link.wav").symlink_to("long.wav")

    def part(id: str, audio: Path) -> Utterance:
        return Utterance(id, audio, id, "", start=1.0, end=2.0)

    train = [part("a", tmp_path / "long.wav")]
    for name in ("link.wav", "x/../long.wav"):
        [recordings] = shared(train, [part("b", tmp_path / name)], as_written)
        assert recordings == f"1 recordings are also in train ({tmp_path / name})"
    (tmp_path / "data").symlink_to(tmp_path)
    assert len(list(shared(train, [said("b", "b", file=str(tmp_path / "data/long.wav"))], as_written))) == 1
    assert list(shared(train, [part("b", tmp_path / "other.wav")], as_written)) == []


def test_a_sentence_that_everybody_says_is_named_apart() -> None:
    train = [
        said(f"{s}-{i}", "she had" if i == 0 else f"{s} says {i}", f"s{s}")
        for s in range(4)
        for i in range(3)
    ]
    test = [said("a", "she had", "new"), said("b", "2 says 1", "new")]
    everybody, leak = shared(train, test, as_written)
    assert everybody.startswith("1 of its 2 clips say what most speakers of train say too")
    assert "'she had'" in everybody
    assert leak == "1 of its 2 clips have a text that is also in train: '2 says 1'"


def test_copies_under_other_names_are_found() -> None:
    rng = np.random.default_rng(0)

    def clip(id: str, samples: np.ndarray) -> Clip:
        return Clip(id, samples, np.zeros(1, np.int32), "a", "")

    audio = [rng.integers(-1000, 1000, n).astype(np.int16) for n in (16_000, 9_000, 300)]
    later = audio[0].copy()
    later[-1] += 1  # another end is not looked at
    other = audio[0].copy()
    other[0] += 1
    train = [clip(str(n), samples) for n, samples in enumerate(audio)]
    assert same_audio(train, [clip("a", audio[2]), clip("b", later), clip("c", other)]) == ["a", "b"]
    assert same_audio(train, [clip("d", audio[1][:-1])]) == []

"""The synthetic corpus: its layout, test and training apart, half a corpus never taken for whole."""

import itertools
import json
import multiprocessing
import re
import sys
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import pytest
import soundfile
from helpers.errors import refused

from flax_wavlm.data.corpora import synthetic
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.sentences import ENGLISH
from flax_wavlm.data.corpora.synthetic import MANIFEST, VOICES, _record, make_corpus
from flax_wavlm.data.corpora.utterance import NoSplit

TINY = {"train_clips": 6, "test_clips": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every voice, one clip or more each. Read only."""
    speakers = {split: sum(map(len, voices.values())) for split, voices in VOICES.items()}
    return make_corpus(
        tmp_path_factory.mktemp("synthetic") / "corpus",
        train_clips=10 * speakers["TRAIN"],
        test_clips=10 * speakers["TEST"],
        dev_clips=10 * speakers["DEV"],
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def words_of(clip: Path) -> list[tuple[int, int, str]]:
    lines = (line.split() for line in clip.with_suffix(".WRD").read_text().splitlines())
    return [(int(begin), int(end), word) for begin, end, word in lines]


def sentence_of(clip: Path) -> str:
    return clip.with_suffix(".TXT").read_text().rstrip("\n").split(" ", 2)[2]


def test_layout_is_timits(corpus: Path) -> None:
    names = sorted(contents(corpus))
    names.remove(MANIFEST)
    assert all(
        re.fullmatch(r"(TRAIN|TEST|DEV)/DR1/[FM][A-Z]{3}\d/SI\d+\.(WAV|TXT|WRD)", name) for name in names
    )
    clips = sorted(corpus.rglob("*.WAV"))
    assert len(names) == 3 * len(clips)
    for clip in clips:
        info = soundfile.info(clip)
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("NIST", "PCM_16", 16_000, 1)
        begin, samples, sentence = clip.with_suffix(".TXT").read_text().split(" ", 2)
        assert (int(begin), int(samples)) == (0, info.frames)
        assert sentence.lower().removesuffix(".\n").split() == [word for _, _, word in words_of(clip)]
        assert all(
            word in choices
            for (_, _, word), choices in zip(words_of(clip), ENGLISH.templates[0], strict=True)
        )


def test_the_demo_can_train_on_it_quickly(corpus: Path) -> None:
    seconds = [soundfile.info(clip).duration for clip in corpus.rglob("*.WAV")]
    assert min(seconds) > 0.9
    assert max(seconds) < 2.3


def test_audio_does_not_clip_and_words_lie_where_the_sound_is(corpus: Path) -> None:
    for clip in corpus.rglob("*.WAV"):
        samples, _ = soundfile.read(clip)
        assert 0.15 < np.abs(samples).max() < 0.95
        words = words_of(clip)
        first, last = words[0][0], words[-1][1]
        assert 800 <= first <= 2400  # 50 to 150 ms before and after
        assert 800 <= len(samples) - last <= 2401
        assert all(end == begin for (_, end, _), (begin, _, _) in itertools.pairwise(words))
        assert all(end - begin >= 480 for begin, end, _ in words)  # 30 ms
        noise = np.std(np.concatenate([samples[: first - 80], samples[last + 80 :]]))
        assert all(np.std(samples[begin:end]) > 3 * noise for begin, end, _ in words)


def test_word_times_separate_the_words(corpus: Path) -> None:
    """The sound at the boundaries: /s/ hisses, so "set" and "soon" begin with many zero crossings."""
    crossings = {"s": [], "l": []}
    for clip in corpus.rglob("*.WAV"):
        samples, _ = soundfile.read(clip)
        for begin, _, word in words_of(clip):
            if word in ("set", "soon", "six", "seven", "lay"):
                onset = samples[begin + 160 : begin + 800]
                crossings[word[0]].append(np.mean(np.diff(np.signbit(onset).astype(int)) != 0))
    assert np.median(crossings["s"]) > 3 * np.median(crossings["l"])


def test_no_voice_and_no_sentence_is_in_two_splits(corpus: Path) -> None:
    speakers = json.loads((corpus / MANIFEST).read_text())["speakers"]
    variants, sentences = {}, {}
    for split in VOICES:
        names = {path.name for path in (corpus / split / "DR1").iterdir()}
        variants[split] = {speakers[name]["voice"].split("+")[1] for name in names}
        assert variants[split] == {variant for sex in VOICES[split].values() for variant in sex}
        clips = sorted((corpus / split).rglob("*.WAV"))
        sentences[split] = {sentence_of(clip) for clip in clips}
        assert len(sentences[split]) == len(clips)
    for one, other in itertools.combinations(VOICES, 2):
        assert not variants[one] & variants[other]
        assert not sentences[one] & sentences[other]


def test_every_variant_is_known_to_espeak() -> None:
    """An unknown variant is no error to espeak-ng: it speaks with the accent's plain voice."""
    known = {path.name for path in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir()}
    used = {variant for voices in VOICES.values() for variants in voices.values() for variant in variants}
    assert used <= known


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    # 200 clips have every training voice. A corpus in between, so that espeak-ng has a history.
    first = make_corpus(tmp_path / "first", train_clips=200, test_clips=50)
    other = make_corpus(tmp_path / "other", seed=1, **TINY)
    again = make_corpus(tmp_path / "again", train_clips=200, test_clips=50)
    assert contents(first) == contents(again)
    assert {sentence_of(clip) for clip in other.rglob("*.WAV")}.isdisjoint(
        sentence_of(clip) for clip in first.rglob("*.WAV")
    )


def test_dev_changes_nothing_else_and_completes_a_corpus_made_without(tmp_path: Path) -> None:
    without = contents(make_corpus(tmp_path / "without", **TINY))
    whole = contents(make_corpus(tmp_path / "whole", dev_clips=3, **TINY))
    manifest = json.loads(whole[MANIFEST])
    assert "dev_clips" not in json.loads(without.pop(MANIFEST))["settings"]
    assert manifest["settings"]["dev_clips"] == 3
    assert without.items() < whole.items()
    assert sum(name.startswith("DEV/") for name in whole) == 9
    speakers = {name for name, speaker in manifest["speakers"].items()}
    assert speakers == {name.split("/")[2] for name in whole if "/" in name}
    make_corpus(tmp_path / "without", dev_clips=3, **TINY)
    assert contents(tmp_path / "without") == whole
    clips, skipped = load_corpus("synthetic", tmp_path / "whole", "dev")
    assert [clip.id for clip in clips] == sorted(clip.id for clip in clips)
    assert (len(clips), skipped, clips[0].id[:8]) == (3, [], "dev/dr1/")
    with refused("dev_clips is 3 there, 0 asked", where=str(tmp_path / "whole")):
        make_corpus(tmp_path / "whole", **TINY)


def test_a_corpus_without_dev_says_so(tmp_path: Path) -> None:
    make_corpus(tmp_path, **TINY)
    for corpus in ("synthetic", "timit"):
        with pytest.raises(NoSplit, match=r"no split 'dev', expected one of train, test$"):
            load_corpus(corpus, tmp_path, "dev")


def test_a_whole_corpus_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_corpus(tmp_path / "parents" / "corpus", **TINY)
    assert [path.name for path in folder.parent.iterdir()] == ["corpus"]  # no temporary folder is left
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # not needed any more
    assert make_corpus(folder, **TINY) == folder


def test_other_settings_are_refused(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", **TINY)
    before = contents(folder)
    with refused("seed is 0 there, 3 asked; test_clips is 2 there, 4 asked", where=str(folder)):
        make_corpus(folder, seed=3, train_clips=6, test_clips=4)
    assert contents(folder) == before


def test_an_interrupted_making_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, calls = _record, iter(range(3))

    def interrupted(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return record(*arguments)

    monkeypatch.setattr(synthetic, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path / "corpus", **TINY)
    assert not list(tmp_path.iterdir())


def test_half_a_corpus_is_completed(tmp_path: Path) -> None:
    whole = contents(make_corpus(tmp_path / "whole", **TINY))
    (tmp_path / "half").mkdir()
    make_corpus(tmp_path / "half", **TINY)  # into an empty folder
    (tmp_path / "half" / MANIFEST).unlink()
    for number, clip in enumerate(sorted((tmp_path / "half").rglob("*.WAV"))):
        clip.unlink() if number % 2 else clip.write_bytes(b"cut sho")
    assert contents(make_corpus(tmp_path / "half", **TINY)) == whole
    next((tmp_path / "half").rglob("*.TXT")).unlink()  # lost after the making
    assert contents(make_corpus(tmp_path / "half", **TINY)) == whole


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    timit = tmp_path / "TRAIN" / "DR1" / "FCJF0" / "SI1027.WAV"
    timit.parent.mkdir(parents=True)
    timit.write_bytes(b"not ours")
    with refused(r"TRAIN/DR1/FCJF0/SI1027\.WAV", where=str(tmp_path)):
        make_corpus(tmp_path, **TINY)
    assert contents(tmp_path) == {"TRAIN/DR1/FCJF0/SI1027.WAV": b"not ours"}
    (tmp_path / MANIFEST).write_text("[]")
    with refused("is not a synthetic corpus's", where=r"corpus\.json$"):
        make_corpus(tmp_path, **TINY)
    with refused("is a file", where=str(timit)):
        make_corpus(timit, **TINY)


def test_processes_at_once(tmp_path: Path) -> None:
    expected = contents(make_corpus(tmp_path / "expected", **TINY))
    spawn = multiprocessing.get_context("spawn")
    makers = [spawn.Process(target=make_corpus, args=(tmp_path / "corpus",), kwargs=TINY) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert contents(tmp_path / "corpus") == expected


def test_missing_espeak_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with refused("espeakng-loader is not installed", do=re.escape("pip install -e '.[demo]'")):
        make_corpus(tmp_path / "corpus", **TINY)
    assert not list(tmp_path.iterdir())


def test_unreadable_espeak_data_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path / "data"))
    with refused("cannot read its data"):
        make_corpus(tmp_path / "corpus", **TINY)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"seed": -1}, {"field": "data.synthetic.seed", "found": -1}),
        ({"train_clips": 0}, {"field": "data.synthetic.train_clips", "found": 0}),
        ({"dev_clips": -1}, {"field": "data.synthetic.dev_clips", "found": -1}),
        ({"language": "dee"}, {"field": "data.synthetic.language", "found": "dee"}),
        (
            {"train_clips": 25_500, "dev_clips": 1},
            {
                "field": "data.synthetic.train_clips",
                "expected": "at most 25499 beside 100 test .* 1 dev",
            },
        ),
        ({"train_clips": 25_600}, {"field": "data.synthetic.train_clips", "expected": "at most 25500"}),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, int], parts: dict[str, Any]) -> None:
    with refused(**parts):
        make_corpus(tmp_path / "corpus", **arguments)

"""Runs with a dev split: it chooses; test is read once, at the end, by the exported model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.errors import refused
from helpers.fake_timit import build_fake_timit
from helpers.killed import Killed
from helpers.small_run import lines, small_run

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer, normalise
from flax_wavlm.files import read_json_object
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.recognition.ctc_task import character_ctc
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.training import train as train_module
from flax_wavlm.training.config import DataSettings, LoopSettings, SplitSettings, TrainConfig
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.speech import Speech, prepare_speech
from flax_wavlm.training.splits import load_splits
from flax_wavlm.training.start import StartingPoint
from flax_wavlm.training.train import TrainResult, train

FIGURES = ("loss", "wer", "cer", "wer_hf_padded", "clips", "infeasible")


def kill(*_: Any, **__: Any) -> None:
    raise Killed


def run_with_dev(place: Path) -> TrainConfig:
    config = small_run(place, "run")
    config.data.dev = ""
    config.train.save_every = 0
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, one_device: None) -> TrainResult:
    """A run that is killed twice at its end: before its line on test is written, and after."""
    place = tmp_path_factory.mktemp("dev")
    with pytest.MonkeyPatch.context() as patched:
        write: Callable[..., None] = train_module.write_predictions
        patched.setattr(
            train_module,
            "write_predictions",
            lambda path, predictions: kill() if path.stem == "test" else write(path, predictions),
        )
        with pytest.raises(Killed):
            train(run_with_dev(place))
    assert lines(place / "run", "test") == []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_module, "curves", kill)
        with pytest.raises(Killed):
            train(run_with_dev(place))
    assert len(lines(place / "run", "test")) == 1
    return train(run_with_dev(place))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_test_is_read_once_by_the_exported_model(finished: TrainResult) -> None:
    workdir = finished.workdir
    assert [row["step"] for row in lines(workdir, "dev")] == [4, 6]
    (row,) = lines(workdir, "test")
    assert row == finished.test
    assert row["step"] == finished.best["step"]
    assert finished.best["split"] == "dev"
    assert (workdir / "predictions/test.jsonl").read_text().count("\n") == 20
    config = read_json_object(workdir / "config.json", "a run's configuration")
    utterances, skipped = load_corpus("timit", config["data"]["path"], "test")
    again = Recogniser.from_pretrained(finished.export).evaluate(utterances, skipped, name="test")
    assert {name: again.figures[name] for name in FIGURES} == pytest.approx(
        {name: row[name] for name in FIGURES}, abs=1e-5
    )


@pytest.mark.slow
def test_both_figures_are_in_the_card(finished: TrainResult) -> None:
    card = (finished.export / "README.md").read_text()
    assert (
        f"WER {finished.best['wer']:.4f} on {finished.best['clips']} clips of dev, which chose them" in card
    )
    assert f"WER {finished.test['wer']:.4f} on 20 clips of test, which the run read once" in card
    assert "|  test |" in card.replace("| test ", "|  test ")
    assert "dataset_split" not in card or "split: test" in card


@pytest.mark.slow
def test_leftover_line_of_another_step_is_taken_back(finished: TrainResult) -> None:
    """As after damage to the newest checkpoints, when the run was made again from an older one."""
    from flax_wavlm.recognition.ctc_task import ctc_scoring
    from flax_wavlm.training.journal import Journal

    journal = Journal(finished.workdir, lambda step: step / 2, ctc_scoring())
    before = (finished.workdir / "metrics.jsonl").read_text()
    journal.take_back_final(finished.best["step"])
    assert (finished.workdir / "metrics.jsonl").read_text() == before
    journal.take_back_final(1)
    rows = read_metrics(finished.workdir / "metrics.jsonl")
    assert [row["split"] for row in rows if row["split"] != "train"] == ["dev", "dev"]
    (finished.workdir / "metrics.jsonl").write_text(before)


# --- Which split is which -----------------------------------------------------------------------------------


def settings(root: Path, **changes: Any) -> DataSettings:
    return DataSettings(corpus="timit", path=str(root), **changes)


@pytest.fixture(scope="module")
def timit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_timit(tmp_path_factory.mktemp("TIMIT"), "ldc_upper")


def speech_of(data: DataSettings) -> Speech:
    """What a run on these settings trains on, is chosen by and is tested on."""
    splits = load_splits(data)
    tokenizer = CTCTokenizer.from_texts(
        [normalise(utterance.text) for utterances in splits.by_name().values() for utterance in utterances]
    )
    task = character_ctc(tokenizer, reduction="mean")
    preprocessor = Preprocessor(do_normalize=True, return_attention_mask=True)
    origin = StartingPoint(None, WavLMConfig(**task.settings), True, task, tokenizer, preprocessor)
    loop = LoopSettings(batch_size=4, eval_batch_size=4, steps=1)
    return prepare_speech(splits, origin, data, loop, cache=None, seed=0)


def ids(clips: ClipBatches | Batches) -> set[str]:
    return {clip.id for clip in clips.clips}


def test_dev_is_cut_from_what_can_be_trained_on(timit: Path, caplog: pytest.LogCaptureFixture) -> None:
    """32 of train's 40 clips are shorter than 4 s; a share of them is dev, all of one speaker."""
    data = settings(timit, train_max_seconds=4.0)
    assert load_splits(data).dev == []
    caplog.clear()
    speech = speech_of(data)
    assert speech.test is not None
    sizes = (len(speech.train.clips), len(speech.dev.clips), len(speech.test.clips), speech.chooser)
    assert sizes == (24, 8, 20, "dev")
    assert {clip.speaker for clip in speech.dev.clips}.isdisjoint(clip.speaker for clip in speech.train.clips)
    assert len({clip.speaker for clip in speech.dev.clips}) == 1
    assert "so 8 of the 32 clips of train are it (whole speakers; data.dev, data.dev_share" in caplog.text
    assert "dev: 8 of its 8 clips have a text that is also in train" in caplog.text  # a miniature's
    assert "test: 4 of its 20 clips have a text that is also in train" in caplog.text  # SA1 and SA2
    assert ids(speech_of(data).dev) == ids(speech.dev)
    others = [ids(speech_of(settings(timit, train_max_seconds=4.0, dev_seed=n)).dev) for n in (1, 2)]
    assert any(other != ids(speech.dev) for other in others)


def test_seed_protocol(timit: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = load_splits(settings(timit, dev="test"))
    assert (len(splits.train), len(splits.dev), splits.test, splits.chooser) == (40, 20, [], "test")
    assert "it chooses the best checkpoint too" in caplog.text
    speech = speech_of(settings(timit, dev="test"))
    assert (speech.test, speech.chooser, ids(speech.dev)) == (None, "test", {u.id for u in splits.dev})
    assert "test: 4 of its 20 clips have a text that is also in train" in caplog.text


def test_a_share_of_train_is_dev(timit: Path) -> None:
    assert (load_splits(settings(timit, dev="50%")).share, load_splits(settings(timit)).share) == (0.5, 0.1)
    speech = speech_of(settings(timit, dev="50%"))
    assert (len(speech.train.clips), len(speech.dev.clips)) == (20, 20)
    assert ids(speech.train).isdisjoint(ids(speech.dev))


def test_dev_of_another_name_or_two_of_them(timit: Path) -> None:
    with refused("there is no split 'validation'", expected="one of train, test$"):
        load_splits(settings(timit, dev="validation"))
    with refused(field="data.dev", do="set one of them"):
        load_splits(settings(timit, dev="test", splits=SplitSettings(dev="test")))


def test_train_with_one_clip_and_no_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    row = '{"audio_filepath": "a.wav", "text": "she had"}\n'
    (tmp_path / "train.jsonl").write_text(row)
    data = DataSettings(corpus="manifest", path=str(tmp_path), buckets=1)
    with refused("train has 1 clip, from which no dev split can be cut", field="data.dev"):
        speech_of(data)
    (tmp_path / "test.jsonl").write_text(row)
    speech = speech_of(data)
    assert (speech.test, speech.chooser, len(speech.dev.clips)) == (None, "test", 1)
    assert "test chooses the best checkpoint" in caplog.text
    assert "test: 1 clips have the same audio as a clip of train: a.wav" in caplog.text

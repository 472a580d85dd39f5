"""Runs with a dev split: it chooses; test is read once, at the end, by the exported model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_timit import build_fake_timit
from helpers.small_run import lines, small_run

from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.errors import UserError
from flax_wavlm.files import read_json_object
from flax_wavlm.recognition.evaluate import Prediction, collapse
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.training import train as train_module
from flax_wavlm.training.config import DataSettings, SplitSettings, TrainConfig
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.splits import load_splits
from flax_wavlm.training.train import TrainResult, train

FIGURES = ("loss", "wer", "cer", "wer_hf_padded", "clips", "infeasible")


class Killed(BaseException):
    """Stands for a signal: nothing in the run may catch it."""


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
    from flax_wavlm.recognition.ctc_task import CTC_SCORING
    from flax_wavlm.training.journal import Journal

    journal = Journal(finished.workdir, 2, CTC_SCORING)
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


def test_dev_is_cut_from_train(timit: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = load_splits(settings(timit))
    assert (len(splits.train), len(splits.dev), len(splits.test), splits.chooser) == (30, 10, 20, "dev")
    assert len({u.speaker for u in splits.dev}) == 1
    assert "the corpus has no such split, so 10 of 40 clips of train are it (whole speakers" in caplog.text
    assert load_splits(settings(timit, dev_seed=1)).dev != splits.dev
    assert "dev: 10 of its 10 clips have a text that is also in train" in caplog.text


def test_seed_protocol(timit: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = load_splits(settings(timit, dev="test"))
    assert (len(splits.train), len(splits.dev), splits.test, splits.chooser) == (40, 20, [], "test")
    assert "it chooses the best checkpoint too" in caplog.text


def test_dev_of_another_place_or_name(timit: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = load_splits(settings(timit, dev="50%"))
    assert len(splits.dev) == 20
    with pytest.raises(UserError) as raised:
        load_splits(settings(timit, dev="validation"))
    assert "train" in raised.value.expected
    both = settings(timit, dev="test", splits=SplitSettings(dev="test"))
    with pytest.raises(UserError, match="set one of them"):
        load_splits(both)


# --- A model that says nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hypotheses", "said"),
    [
        (["", "", ""], "every output is blank: the model says nothing"),
        (["", "e", "e e"], "every output is blank or 'e'"),
        (["the", "the", "the"], "the model says the same for every clip: 'the'"),
        (["the", "", "cat"], ""),
    ],
)
def test_collapse_is_named(hypotheses: list[str], said: str) -> None:
    predictions = [Prediction(str(i), f"text {i}", text) for i, text in enumerate(hypotheses)]
    found = collapse(predictions)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_clips_that_say_the_same_are_no_collapse() -> None:
    assert collapse([Prediction("0", "yes", "yes"), Prediction("1", "yes", "yes")]) == ""

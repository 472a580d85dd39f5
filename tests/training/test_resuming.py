"""Runs that are interrupted, finished, or started again with another configuration."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.killed import killed_at
from helpers.runs import metrics
from helpers.small_run import lines, small_run

from flax_wavlm import UserError
from flax_wavlm.errors import Preempted
from flax_wavlm.parallel import processes
from flax_wavlm.porting.extras import read_extras
from flax_wavlm.training import calibration
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.train import TrainResult, train

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workdirs lie, and the data and checkpoint that the runs share."""
    return tmp_path_factory.mktemp("runs")


@contextlib.contextmanager
def fitting_a_temperature() -> Iterator[None]:
    """A run's test split of few words is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "FEWEST_WORDS", 1)
        yield


@pytest.fixture(scope="module")
def whole(place: Path, one_device: None) -> TrainResult:
    """The run that nothing interrupts. Several tests compare theirs with it; none may change its workdir."""
    with fitting_a_temperature():
        return train(small_run(place, "whole"))


def test_resumed_run_is_the_uninterrupted_one(place: Path, whole: TrainResult) -> None:
    with killed_at(batch=4):
        train(small_run(place, "parts"))
    interrupted = place / "parts" / "metrics.jsonl"
    assert [row["step"] for row in read_metrics(interrupted)] == [2]
    with interrupted.open("a") as file:
        file.write('{"step": 3, "spl')  # and the kill came in the middle of a line
    with fitting_a_temperature():
        parts = train(small_run(place, "parts"))

    assert metrics(parts.workdir) == metrics(whole.workdir)
    extras = [read_extras(result.export) for result in (whole, parts)]
    assert extras[0] == extras[1]
    assert extras[0].temperature != 1.0
    one, other = (
        safetensors.numpy.load_file(result.export / "model.safetensors") for result in (whole, parts)
    )
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.chaos
def test_asked_to_stop_at_an_evaluation(
    place: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint comes first, since a notice may leave few seconds; the resumed run evaluates it."""
    monkeypatch.setattr(processes.StopRequest, "reached", lambda self, step: step == 4)
    with pytest.raises(Preempted, match="saved at step 4 of 6"):
        train(small_run(place, "stopped"))
    monkeypatch.undo()
    assert [row["step"] for row in lines(place / "stopped", "test")] == []
    parts = train(small_run(place, "stopped"))
    assert metrics(parts.workdir) == metrics(whole.workdir)
    assert [row["step"] for row in lines(parts.workdir, "test")] == [4, 6]
    assert parts.best == whole.best


def test_finished_run_only_exports_again(tmp_path: Path) -> None:
    config = small_run(tmp_path, "run", kind="base")
    config.mesh.fsdp = min(2, jax.device_count())
    first = train(config)
    before = (first.workdir / "metrics.jsonl").read_text()
    second = train(config)
    assert (second.workdir / "metrics.jsonl").read_text() == before
    assert second.best == first.best
    assert (first.workdir / "curves.svg").read_text().startswith("<svg")


def test_workdir_of_another_configuration(place: Path, whole: TrainResult) -> None:
    before = (whole.workdir / "metrics.jsonl").read_text()
    config = small_run(place, "whole")
    config.optim.learning_rate = 1e-5
    config.seed = 7
    with pytest.raises(UserError) as caught:
        train(config)
    assert "optim.learning_rate was 0.001, is 1e-05" in str(caught.value)
    assert "seed was 42, is 7" in str(caught.value)
    assert (whole.workdir / "metrics.jsonl").read_text() == before

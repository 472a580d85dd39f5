"""`train --dry_run`: what it foretells, that it trains nothing, and its advice about memory."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.small_run import small_run

from flax_wavlm.cli import app
from flax_wavlm.data.batches import Batches
from flax_wavlm.data.clips import Clip
from flax_wavlm.errors import UserError
from flax_wavlm.parallel import sharding
from flax_wavlm.training import dry_run as dry_run_module
from flax_wavlm.training import memory, trial
from flax_wavlm.training.dry_run import steps_by_bucket
from flax_wavlm.training.report.dry_run import duration, histogram, report
from flax_wavlm.training.train import dry_run, train

pytestmark = pytest.mark.usefixtures("one_device", "one_timed_step")


@pytest.fixture
def one_timed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TIMED_CALLS", 1)
    monkeypatch.setattr(trial, "TIMED_SECONDS", 0.0)


@pytest.mark.parametrize("steps", [1, 4, 5, 13])
def test_steps_by_bucket_are_those_of_the_run(steps: int) -> None:
    clips = [
        Clip(str(n), np.zeros(n * 320, np.int16), np.zeros(1, np.int32), "a", "") for n in range(10, 43, 2)
    ]
    batches = Batches(clips, 4, (6400, 13440), steps=steps, seed=0, do_normalize=False)
    assert steps_by_bucket(batches) == Counter(batches.samples(step) for step in range(steps))


def test_a_histogram_is_as_wide_as_its_longest_bar() -> None:
    first, second = histogram({"edges": [0.0, 1.5, 3.0], "clips": [1, 1200]})
    assert first == "    0.0 -   1.5 s  #                                         1"
    assert second.endswith(f"  {'#' * 40}  1,200")


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.6, "5 s"), (184, "3 min 4 s"), (3725, "1 h 2 min"), (59.7, "1 min 0 s")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.slow
def test_what_a_run_then_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small_run(tmp_path, "run")
    config.data.buckets = 2
    with caplog.at_level("INFO", "flax_wavlm"):
        found = dry_run(config)
    workdir = tmp_path / "run"
    assert sorted(path.name for path in workdir.iterdir()) == ["dry_run.json"]
    assert json.loads((workdir / "dry_run.json").read_text()) == found
    assert report(found) in caplog.text
    assert (found["steps"], found["steps_per_epoch"]) == (6, 2)
    assert found["splits"]["train"]["clips"] == sum(found["splits"]["train"]["histogram"]["clips"]) == 32
    assert found["splits"]["test"]["speakers"] == 2
    assert found["splits"]["train"]["skipped"] == found["skipped"] == {"too long": 8}
    assert found["clips"] == {"train": 32, "test": 20}
    [leak] = found["leaks"]
    assert leak.startswith("test: 4 of its 20 clips have a text that is also in train")
    assert sum(bucket["steps"] for bucket in found["buckets"]) == 6
    first, second = (bucket["memory_bytes"] for bucket in found["buckets"])
    assert list(found["memory_bytes"].values()) == [first, second]
    assert 0 < first < second < found["peak_bytes"] < found["device_bytes"]
    assert found["peak_bytes"] >= found["held_bytes"] + found["checkpoint"]["memory_bytes"]
    assert (found["evaluation"]["count"], found["checkpoint"]["count"]) == (2, 6)
    assert found["checkpoint"]["disk_bytes"] > 0
    assert 0 < found["seconds_per_step"] * 5.9 < found["training_seconds"] < found["total_seconds"]
    assert [warning for warning in found["warnings"] if leak in warning]
    assert found["advice"] == []
    train(config)  # the folder is a new run's


@pytest.mark.slow
def test_memory_that_does_not_suffice_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_run(tmp_path, "run")
    config.train.eval_batch_size = 1
    needed = dry_run(config)["buckets"][0]["memory_bytes"]
    monkeypatch.setattr(dry_run_module, "device_bytes", lambda: needed - 1)
    monkeypatch.setattr(dry_run_module, "held_bytes", lambda: 0)
    found = dry_run(config)
    assert found["total_seconds"] is None
    assert "does not fit" in report(found)
    [advice] = found["advice"]
    smaller = int(advice.partition("set one of: train.batch_size=")[2].partition(" ")[0])
    assert smaller in (8, 12)
    config.train.batch_size = smaller
    assert dry_run(config)["advice"] == []


@pytest.mark.slow
def test_out_of_memory_is_one_line_of_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_batch, calls = sharding.put_batch, 0

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 41000000000 bytes.\nBuffer 1: ..."
            )
        return put_batch(*arguments)

    monkeypatch.setattr(sharding, "put_batch", full)
    with pytest.raises(UserError, match="ran out of memory") as raised:
        train(small_run(tmp_path, "run"))
    said = str(raised.value)
    assert "\n" not in said
    assert "RESOURCE" not in said
    assert "a step of train.batch_size=16 on the longest clips needs" in said
    assert "set one of: train.batch_size=12 needs" in said


def test_another_error_of_the_device_stays_what_it_is(tmp_path: Path) -> None:
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        memory.out_of_memory_explained(small_run(tmp_path, "run"), None),  # type: ignore[arg-type]
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_the_flag() -> None:
    command = app.COMMANDS["train"]
    values, _ = command.parse(command, ["--config=demo", "--dry_run"])
    assert values.dry_run

"""Whole runs with the recipe's controls on: killed and resumed, stopped early, averaged."""

from pathlib import Path

import numpy as np
import pytest
from helpers.killed import killed_at
from helpers.runs import final_state, metrics
from helpers.small_run import lines, tiny_run
from safetensors.numpy import load_file

from flax_wavlm.errors import UserError
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.export import Exported, export_run
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


def controlled(place: Path, workdir: str) -> TrainConfig:
    config = tiny_run(place, workdir)
    config.train.head_first_steps, config.train.average_last = 2, 3
    config.optim.schedule, config.optim.hold_steps, config.optim.warmup_steps = "tri_stage", 2, 1
    config.optim.layer_decay, config.optim.head_learning_rate = 0.7, 3e-3
    return config


def test_killed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    """Killed three times, the first time while the encoder waits. Parameters, moments, lines and texts."""
    whole = train(controlled(tmp_path, "whole"))
    for batch in (2, 3, 3):
        with killed_at(batch):
            train(controlled(tmp_path, "parts"))
    parts = train(controlled(tmp_path, "parts"))
    rows = read_metrics(whole.workdir / "metrics.jsonl")
    assert [(row["step"], row.get("averaged")) for row in rows if row["split"] == "test"] == [
        (2, None),
        (4, None),
        (6, None),
        (6, 3),
    ]
    assert parts.best == whole.best
    assert final_state(parts.workdir, 6) == final_state(whole.workdir, 6)
    for name in ("averaged", "2", "4", "6"):
        one, other = (result.workdir / f"predictions/{name}.jsonl" for result in (whole, parts))
        assert one.read_bytes() == other.read_bytes()
    assert metrics(parts.workdir) == metrics(whole.workdir)
    one, other = (result.export / "model.safetensors" for result in (whole, parts))
    assert one.read_bytes() == other.read_bytes()

    # The mean is that of the checkpoints, made on the host, and again after the run has ended.
    assert export_run(parts.workdir, tmp_path / "mean", "averaged") == Exported(6, 3)
    singles = []
    for step in ("2", "4", "6"):
        export_run(parts.workdir, tmp_path / step, step)
        singles.append(load_file(tmp_path / step / "model.safetensors"))
    for name, mean in load_file(tmp_path / "mean" / "model.safetensors").items():
        expected = np.mean([single[name].astype(np.float64) for single in singles], axis=0)
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert "the mean of the 3 checkpoints" in (tmp_path / "mean" / "README.md").read_text()


def test_run_that_stops_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rate so small that nothing gets better: the run ends, exports its best, and has no average."""
    config = tiny_run(tmp_path, "run")
    config.train.eval_every, config.train.early_stopping = 1, 1
    config.train.best_by, config.optim.learning_rate = "wer", 1e-30
    result = train(config)
    steps = [row["step"] for row in lines(result.workdir, "test")]
    assert steps == [1, 2]
    assert result.best["step"] in steps
    before = (result.workdir / "metrics.jsonl").read_text()
    assert train(config).best == result.best
    assert (result.workdir / "metrics.jsonl").read_text() == before
    with pytest.raises(UserError, match=r"train\.average_last of the run is 0"):
        export_run(result.workdir, tmp_path / "mean", "averaged")

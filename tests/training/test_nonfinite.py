"""A loss that is not finite: the run stops, says where, and goes on with leave."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_run import lines, small_run

from flax_wavlm import UserError
from flax_wavlm.parallel import sharding
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.train import train

pytestmark = pytest.mark.usefixtures("one_device")


def overflow_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Has the speech of these steps' training batches overflow on its way to the devices."""
    put_batch, calls = sharding.put_batch, 0

    def put(mesh: Any, batch: Mapping[str, np.ndarray]) -> Any:
        nonlocal calls
        if "clip" not in batch:  # else it is an evaluation's
            calls += 1
            if calls in steps:
                batch = {**batch, "scale": batch["scale"] * np.float32(np.inf)}
        return put_batch(mesh, batch)

    monkeypatch.setattr(sharding, "put_batch", put)


def test_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops the run and names step and clips; what came before stays. With leave it is passed over."""
    config = small_run(tmp_path, "run")
    overflow_at(monkeypatch, 3)
    with pytest.raises(UserError, match=r"at step 3 the loss .* not finite") as caught:
        train(config)
    noted = [json.loads(line) for line in (tmp_path / "run/nonfinite.jsonl").open()]
    assert [row["step"] for row in noted] == [3]
    assert len(noted[0]["clips"]) == 16
    for part in (*noted[0]["clips"][:4], "nonfinite.jsonl", "train.skip_nonfinite=1"):
        assert part in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("[0-9]*")) == ["1", "2"]

    # The same command with leave for one goes on from step 2.
    config.train.skip_nonfinite = 1
    monkeypatch.undo()
    overflow_at(monkeypatch, 1, 3)  # steps 3 and 5
    with pytest.raises(UserError, match=r"at step 5 the loss .* not finite"):
        train(config)
    config.train.skip_nonfinite = 2
    monkeypatch.undo()
    overflow_at(monkeypatch, 1)
    result = train(config)
    assert [row["step"] for row in read_metrics(tmp_path / "run/nonfinite.jsonl")] == [3, 5]
    rows = lines(result.workdir, "train")
    assert [row["skipped"] for row in rows] == [0, 1, 2]
    assert [row["learning_rate"] for row in rows] == pytest.approx([5e-4, 1e-3, 7.5e-4])  # updates 1, 2, 3
    assert all(math.isfinite(row["loss"]) for row in rows)

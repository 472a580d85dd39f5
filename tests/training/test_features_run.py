"""A whole run on kept features is a whole run on the audio."""

from pathlib import Path

import pytest
from helpers.runs import metrics
from helpers.small_run import small_run_with

from flax_wavlm.training.train import train

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_on_features_is_training_on_audio(accumulation: int, tmp_path: Path) -> None:
    """To the last bit: metrics, evaluations, exported weights."""
    changes = {"train_accumulation": accumulation, "train_steps": 4, "train_eval_every": 4}
    plain = train(small_run_with(tmp_path, "plain", **changes))
    cached = train(small_run_with(tmp_path, "cached", data_cache_features=True, **changes))
    assert len(list((tmp_path / "cache").glob("features-*"))) == 1
    assert metrics(plain.workdir) == metrics(cached.workdir)
    one, other = ((result.export / "model.safetensors").read_bytes() for result in (plain, cached))
    assert one == other

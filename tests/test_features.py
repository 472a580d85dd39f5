"""Training on kept features is training on the audio."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from test_train import small_run

from flax_wavlm.report import read_metrics
from flax_wavlm.train import train
from flax_wavlm.train_config import TrainConfig


def run(tmp_path: Path, workdir: str, **changes: Any) -> TrainConfig:
    """Six steps with dropout, LayerDrop and SpecAugment, over two clip lengths."""
    config = small_run(tmp_path, workdir)
    config.data.buckets, config.train.save_every = 2, 0
    for name, value in changes.items():
        section, field = name.split("_", 1)
        setattr(getattr(config, section), field, value)
    return config


def rows(workdir: Path) -> list[dict[str, Any]]:
    rate = "audio_seconds_per_second"
    return [{k: v for k, v in row.items() if k != rate} for row in read_metrics(workdir / "metrics.jsonl")]


@pytest.mark.parametrize("changes", [{}, {"model_dtype": "bfloat16", "train_accumulation": 2}], ids=str)
def test_training_is_the_same_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = train(run(tmp_path, "plain", **changes))
    kept = train(run(tmp_path, "kept", data_cache_features=True, **changes))
    assert rows(kept.workdir) == rows(plain.workdir)
    one, other = (
        safetensors.numpy.load_file(result.export / "model.safetensors") for result in (plain, kept)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert len(list((tmp_path / "cache").glob("features-*"))) == 1

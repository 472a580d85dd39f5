"""What a run starts from: a checkpoint's own head and tokenizer, or new ones."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers.reference import tiny_reference
from helpers.small_run import small_run

from flax_wavlm import UserError
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.training.train import train

pytestmark = pytest.mark.usefixtures("one_device")


def test_warmup_longer_than_the_run(tmp_path: Path) -> None:
    config = small_run(tmp_path, "run")
    config.optim.warmup_steps = 6
    with pytest.raises(UserError, match=r"warmup_steps is 6, expected fewer than the 6 steps"):
        train(config)


@pytest.mark.parametrize("vocabulary", ["none", "its own", "too wide"])
def test_checkpoint_with_a_head(tmp_path: Path, vocabulary: str, caplog: pytest.LogCaptureFixture) -> None:
    """A head is kept with the tokenizer that says what it means, and begun anew without one."""
    config = small_run(tmp_path, "run")
    folder = tiny_reference("large", tmp_path / "with-head", scale=0.05).folder
    if vocabulary != "none":
        extra = "é" if vocabulary == "too wide" else ""
        CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'" + extra]).save(folder)
    config.model.checkpoint = str(folder)
    config.train.steps, config.optim.warmup_steps, config.optim.learning_rate = 1, 0, 1e-9
    if vocabulary == "too wide":
        with pytest.raises(UserError, match=r"tokenizer has 33 tokens.* has 32 outputs.*fresh_head"):
            train(config)
        return
    with caplog.at_level("INFO", "flax_wavlm"):
        result = train(config)
    before, after = (
        safetensors.numpy.load_file(path / "model.safetensors") for path in (folder, result.export)
    )
    kept = np.allclose(before["lm_head.weight"], after["lm_head.weight"], atol=1e-6)
    assert kept == (vocabulary == "its own")
    assert ("a new head is begun" in caplog.text) == (vocabulary == "none")
    np.testing.assert_allclose(
        after["wavlm.encoder.layer_norm.weight"], before["wavlm.encoder.layer_norm.weight"], atol=1e-6
    )

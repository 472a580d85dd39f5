"""A model that says nothing, or the same for every clip, is named in the log; a healthy one is not."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.reference import NO_REGULARISATION
from helpers.small_run import tiny_run

from flax_wavlm.recognition.evaluate import Prediction, collapse
from flax_wavlm.training.config import Overrides, TrainConfig
from flax_wavlm.training.train import train

MANY = [f"text {number}" for number in range(100)]


@pytest.mark.parametrize(
    ("hypotheses", "said"),
    [
        (["", "", ""], "every output is blank."),
        (["", "e", "e e"], "every output is blank or 'e'."),
        (["the", "the", "the"], "every output is 'the'."),
        (["the", "", "cat"], ""),
        (["no"], ""),
        ([""] * 95 + ["a", "b", "cat", "dog", "e"], "95 of 100 outputs are blank."),
        ([""] * 50 + ["a"] * 47 + ["cat", "dog", "e"], "97 of 100 outputs are blank or 'a'."),
        (["so it is"] * 96 + ["cat", "dog", "e", ""], "96 of 100 outputs are 'so it is'."),
        ([""] * 93 + ["a", "b", "cat", "dog", "e", "f", "g"], ""),
        (MANY[:10] + ["the"] * 90, ""),
        (MANY, ""),
    ],
)
def test_collapse_is_named(hypotheses: list[str], said: str) -> None:
    found = collapse([Prediction(str(i), MANY[i], text) for i, text in enumerate(hypotheses)])
    assert found.startswith(said)
    assert bool(found) == bool(said)


@pytest.mark.parametrize("texts", [["yes"], ["yes", "yes"], ["unknown"] * 96 + ["yes"] * 4, ["a", "aa"]])
def test_references_that_are_the_same_are_no_collapse(texts: list[str]) -> None:
    assert collapse([Prediction(str(i), text, text) for i, text in enumerate(texts)]) == ""


def write_tones(folder: Path) -> Path:
    """A manifest of low and high tones, which are called "a" and "b"."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, clips in (("train", 32), ("test", 8)):
        lines = []
        for i in range(clips):
            times = np.arange(random.integers(2400, 3200)) / 16_000
            tone = np.sin(2 * np.pi * (300, 2500)[i % 2] * random.uniform(0.9, 1.1) * times)
            noise = random.normal(size=len(times))
            soundfile.write(folder / f"{split}{i}.wav", 0.3 * tone + 0.02 * noise, 16_000)
            lines.append(json.dumps({"audio_filepath": f"{split}{i}.wav", "text": "ab"[i % 2]}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_rate_that_is_too_high_is_named_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model learns two words, without a warning; then a rate 30 times as high takes them from it."""
    data = write_tones(tmp_path / "tones")

    def run(workdir: str, steps: int, eval_every: int, rate: float) -> TrainConfig:
        config = tiny_run(tmp_path, workdir)
        assert config.model.config is not None
        config.model.config = config.model.config.replace(num_hidden_layers=1, conv_dim=(16,) * 7)
        config.model.overrides, config.model.freeze_feature_encoder = Overrides(**NO_REGULARISATION), False
        config.data.path, config.optim.learning_rate, config.optim.warmup_steps = str(data), rate, 10
        config.train.steps, config.train.eval_every, config.train.save_every = steps, eval_every, 0
        return config

    healthy = train(run("healthy", 100, 100, 1e-2))
    assert healthy.best["cer"] < 0.3
    assert "every output is" not in caplog.text
    config = run("collapsed", 20, 10, 0.3)
    config.model.config, config.model.checkpoint = None, str(healthy.export)
    train(config)
    warnings = [text for text in caplog.messages if " every output is " in text]
    assert [text.split(" every output is ")[0] for text in warnings] == ["at step 10", "at step 20"]

"""TrainConfig: which values it refuses, and what it says of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flax_wavlm import WavLMConfig
from flax_wavlm.errors import UserError
from flax_wavlm.training.config import TrainConfig, flatten, lookup


def good() -> TrainConfig:
    config = TrainConfig(name="good", workdir="runs/good")
    config.model.checkpoint = "microsoft/wavlm-large"
    config.data.corpus = "timit"
    config.train.steps = 10
    return config


def setting(name: str, value: Any) -> Callable[[TrainConfig], None]:
    def change(config: TrainConfig) -> None:
        group, _, field = name.rpartition(".")
        holder = lookup(config, group) if group else config
        assert hasattr(holder, field)
        setattr(holder, field, value)

    return change


def test_good_configurations() -> None:
    good().check()
    for name, value in (
        ("optim.clip_norm", 0.0),
        ("optim.warmup_steps", 0),
        ("optim.weight_decay", 0.0),
        ("optim.beta1", 0.0),
        ("train.save_every", 5),
        ("train.ctc_loss_reduction", "sum"),
        ("data.corpus", "hub"),
        ("seed", 0),
    ):
        config = good()
        setting(name, value)(config)
        config.check()
    config = good()
    config.train.steps, config.train.epochs = 0, 3
    config.check()
    config.model.checkpoint, config.model.config = "", WavLMConfig()
    config.check()


@pytest.mark.parametrize(("field", "value"), [("speeds", (0.9, 1.1)), ("noise", "white")])
def test_features_of_clips_that_change_are_not_kept(field: str, value: Any) -> None:
    config = good()
    config.data.cache_features = True
    config.check()
    setattr(config.data.augment, field, value)
    with pytest.raises(UserError, match=r"where data\.augment changes the clips"):
        config.check()


BAD: list[tuple[str, Any, str]] = [
    # field | value | what was expected
    ("data.corpus", "timmit", "did you mean 'timit'?"),
    ("data.corpus", "", "one of timit, timit_sample, manifest, "),
    ("data.corpus", "librivox", "one of timit"),
    ("workdir", "", "a folder"),
    ("seed", -1, "0 or more"),
    ("model.checkpoint", "", "a checkpoint, or else a model.config"),
    ("train.batch_size", 0, "1 or more"),
    ("train.eval_batch_size", 0, "1 or more"),
    ("train.accumulation", 0, "1 or more"),
    ("train.eval_every", 0, "1 or more"),
    ("train.log_every", -5, "1 or more"),
    ("train.steps", -1, "0 or more"),
    ("train.save_every", -1, "0 or more"),
    ("train.steps", 0, "train.epochs above 0, which is 0"),
    ("train.ctc_loss_reduction", "none", "'mean' or 'sum'"),
    ("data.buckets", 0, "1 or more"),
    ("data.threads", 0, "1 or more"),
    ("data.prefetch", 0, "1 or more"),
    ("data.train_max_seconds", -1.0, "0 (no limit) or more"),
    ("data.train_max_seconds", float("nan"), "a finite number"),
    ("optim.learning_rate", 0.0, "above 0"),
    ("optim.learning_rate", -1e-4, "above 0"),
    ("optim.learning_rate", float("nan"), "a finite number"),
    ("optim.learning_rate", float("inf"), "a finite number"),
    ("optim.warmup_steps", -1, "0 or more"),
    ("optim.weight_decay", -0.1, "0 or more"),
    ("optim.clip_norm", -1.0, "0 or more"),
    ("optim.beta1", 1.0, "at least 0 and below 1"),
    ("optim.beta2", -0.1, "at least 0 and below 1"),
    ("optim.eps", 0.0, "above 0"),
    ("model.overrides.layerdrop", float("nan"), "a finite number"),
    # What only a config file can give: the command line checks types by itself.
    ("train.batch_size", "32", "int"),
    ("train.batch_size", 32.0, "int"),
    ("train.steps", None, "int"),
    ("optim.learning_rate", "1e-4", "float"),
    ("model.freeze_feature_encoder", "false", "bool"),
    ("model.freeze_feature_encoder", 1, "bool"),
    ("train.steps", True, "int"),
    ("model.checkpoint", Path("models/wavlm"), "str"),
    ("data.corpus", None, "str"),
    ("model.overrides.layerdrop", "0.1", "float"),
    ("model.overrides.mask_time_length", 2.5, "int"),
    ("data.held_out_speakers", "dr1-mcpm0", "tuple[str, ...]"),
    ("data.held_out_speakers", (1,), "tuple[str, ...]"),
    ("data.weights", ("a",), "tuple[float, ...]"),
    ("data.augment.speeds", (1.0, None), "tuple[float, ...]"),
    ("data.augment.speeds", [0.9, 1.0], "tuple[float, ...]"),
    ("data.augment.speeds", (0.4, 1), "numbers from 0.5 to 2"),
    ("data.augment.speeds", (float("nan"),), "numbers from 0.5 to 2"),
    ("data.augment.speeds", (1.0, 1), "none of them twice"),
    ("data.augment.noise_share", 0.0, "above 0 and at most 1"),
    ("data.augment.snr_min", 31.0, "at most data.augment.snr_max, which is 30"),
    ("data.augment.snr_max", 101.0, "-100 to 100 dB"),
    ("train.batch_seconds", -1.0, "above 0, or 0 for train.batch_size clips"),
    ("optim", None, "OptimSettings"),
    ("model.config", "large", "WavLMConfig"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD, ids=[f"{n}={v!r}" for n, v, _ in BAD])
def test_bad_value(name: str, value: Any, expected: str) -> None:
    config = good()
    setting(name, value)(config)
    with pytest.raises(UserError) as raised:
        config.check()
    message = str(raised.value)
    shown = str(value).strip("([,])") if isinstance(value, (tuple, list)) else repr(value)
    assert message.removeprefix("--config.").startswith(f"{name} is {shown}, expected ")
    assert expected in message
    assert "\n" not in message


def test_neither_steps_nor_epochs() -> None:
    config = good()
    config.train.steps = 0
    with pytest.raises(UserError, match=r"train\.steps is 0, expected above 0"):
        config.check()


def test_checkpoint_may_replace_a_recipes_architecture() -> None:
    config = good()
    config.model.config = WavLMConfig()
    config.check()


def test_model_overrides() -> None:
    config = good()
    config.model.overrides.layerdrop = 0.0
    config.model.overrides.apply_spec_augment = False
    config.model.remat = "dots"
    overrides = config.model_overrides()
    assert overrides == {
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        "dtype": "float32",
        "matmul_precision": "highest",
        "remat": "dots",
        "unroll": 0,
        "attention": "auto",
        "kernels": "auto",
    }
    assert WavLMConfig().replace(**overrides).remat == "dots"
    # Every override is a field of the model's configuration, of the same type.
    for name in flatten(config.model.overrides):
        assert hasattr(WavLMConfig(), name)


def test_flatten_and_to_dict() -> None:
    config = good()
    config.data.held_out_speakers = ("a", "b")
    flat = flatten(config)
    assert flat["data.held_out_speakers"] == ["a", "b"]
    assert flat["train.steps"] == 10
    assert flatten(config.to_dict()) == flat
    assert all(lookup(config, name) == value for name, value in flat.items() if not isinstance(value, list))

"""What the scripts say of flags and of configurations that cannot be; in a process of their own, and not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flax_wavlm import WavLMConfig
from flax_wavlm.cli import app as cli
from flax_wavlm.errors import UserError
from flax_wavlm.training.config import LoopSettings, TrainConfig, field_names, flatten, lookup

ROOT = Path(__file__).parents[2]

RECIPE = """
from flax_wavlm import WavLMConfig
from flax_wavlm.training.config import TrainConfig

def get_config():
    config = TrainConfig(name="tiny")
    config.model.config = WavLMConfig()
    config.data.corpus = "timit"
    config.data.path = "/nowhere"
    config.train.steps = 3
    return config
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


# --- Flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["--config={}", "-config={}", "--config {}"])
def test_config_file(form: str, recipe: Path, tmp_path: Path) -> None:
    cli.check_config_flags([*form.format(recipe).split(), "--config.train.steps=5", "--workdir=x"])
    missing = tmp_path / "recipes" / "timit.py"
    with pytest.raises(UserError, match=r"no such file.*configs/") as raised:
        cli.check_config_flags(form.format(missing).split())
    assert str(missing) in str(raised.value)
    with pytest.raises(UserError, match="no such file"):
        cli.check_config_flags(form.format(tmp_path).split())  # a folder


def test_no_flags_at_all() -> None:
    cli.check_config_flags([])


def test_config_flag_without_a_value() -> None:
    with pytest.raises(UserError, match="no such file"):
        cli.check_config_flags(["--config"])


@pytest.mark.parametrize(
    ("flag", "suggested"),
    [
        ("--config.optim.lerning_rate=1", "--config.optim.learning_rate"),
        ("--config.optim.lr=3e-5", ""),
        ("--config.train.step=5", "--config.train.steps"),
        ("--config.learning_rate", "--config.optim.learning_rate"),
        ("--config.model.overides.layerdrop=0", "--config.model.overrides.layerdrop"),
        ("--config.train=5", ""),  # a group of fields, not one
        ("--config.zzz=5", ""),
    ],
)
def test_field_that_does_not_exist(flag: str, suggested: str) -> None:
    with pytest.raises(UserError) as raised:
        cli.check_config_flags(["--workdir=x", flag, "3"])
    message = str(raised.value)
    assert message.startswith(f"{flag.partition('=')[0]}: there is no such field")
    assert f"did you mean {suggested}?" in message or not suggested


def test_architecture_is_not_for_the_command_line() -> None:
    for flag in ("--config.model.config.hidden_size", "--config.model.config"):
        with pytest.raises(UserError, match=rf"^{flag}: .*--config\.model\.overrides\.NAME"):
            cli.check_config_flags([f"{flag}=64"])


def test_every_field_is_accepted() -> None:
    names = field_names()
    assert {"seed", "train.steps", "model.overrides.layerdrop", "data.synthetic.seed", "mesh.fsdp"} < set(
        names
    )
    cli.check_config_flags([f"--config.{name}=1" for name in names if name != "model.config"])
    cli.check_config_flags(["file.wav", "--model=folder", "--configure=1", "config.nothing=1"])


def test_resolve() -> None:
    assert cli.resolve(TrainConfig(name="demo"), "").workdir == "runs/demo"
    assert cli.resolve(TrainConfig(), "").workdir == "runs/run"
    assert cli.resolve(TrainConfig(name="demo", workdir="here"), "").workdir == "here"
    assert cli.resolve(TrainConfig(name="demo", workdir="here"), "there").workdir == "there"
    with pytest.raises(UserError, match="--config is missing"):
        cli.resolve(None, "")
    with pytest.raises(UserError, match="gave a dict, expected a TrainConfig"):
        cli.resolve({"name": "demo"}, "")  # type: ignore[arg-type]  # as a config file may


# --- The script itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.train.stepz=5"], ("--config.train.stepz: there is no such field", "train.steps?")),
        (["--config.train.steps=many"], ("train.steps", "many", "int")),
        (None, ("--config is missing", "configs/demo.py")),
    ],
    ids=["wrong field", "wrong type", "no config"],
)
def test_train_script_says_what_is_wrong(
    arguments: list[str] | None, parts: tuple[str, ...], recipe: Path, tmp_path: Path
) -> None:
    given = [] if arguments is None else [f"--config={recipe}", *arguments]
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train_flax.py", *given],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for part in parts:
        assert part in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["recipe.py"]


# --- TrainConfig.check --------------------------------------------------------------------------------------


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


BAD: list[tuple[str, Any, str]] = [
    # field | value | what was expected
    ("data.corpus", "timmit", "did you mean 'timit'?"),
    ("data.corpus", "", "one of timit, timit_sample, manifest, hub, synthetic"),
    ("data.corpus", "librispeech", "one of timit"),
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
    assert message.startswith(f"{name} is {value!r}, expected ")
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


def test_epochs_on_the_command_line_replace_the_recipes_steps() -> None:
    for overridden, steps in (({"train.epochs"}, 0), ({"train.steps", "train.epochs"}, 7), (set(), 7)):
        config = TrainConfig(train=LoopSettings(steps=7, epochs=3))
        assert cli.resolve(config, "", overridden).train.steps == steps

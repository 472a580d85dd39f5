"""Flags of a configuration's fields: which exist, which is meant, and what help says of them."""

import pytest

from flax_wavlm.cli import fields
from flax_wavlm.cli.names import in_flags
from flax_wavlm.cli.train import TRAIN, check_fields
from flax_wavlm.errors import UserError
from flax_wavlm.training.config import TrainConfig, field_names, flatten


@pytest.mark.parametrize(
    ("flag", "suggested"),
    [
        ("--config.optim.lerning_rate=1", "--config.optim.learning_rate"),
        ("--config.optim.lr=3e-5", "--config.optim.learning_rate"),
        ("--config.lr=3e-5", "--config.optim.learning_rate"),
        ("--config.train.lr=3e-5", "--config.optim.learning_rate"),
        ("--config.optim.wd=0", "--config.optim.weight_decay"),
        ("--config.train.bs=8", "--config.train.batch_size"),
        ("--config.warmup=8", "--config.optim.warmup_steps"),
        ("--config.sed=1", "--config.seed"),
        ("--config.train.seed=1", "--config.seed"),
        ("--config.train.step=5", "--config.train.steps"),
        ("--config.learning_rate", "--config.optim.learning_rate"),
        ("--config.model.overides.layerdrop=0", "--config.model.overrides.layerdrop"),
        ("--config.train=5", ""),  # a group of fields, not one
        ("--config.zzz=5", ""),
    ],
)
def test_field_that_does_not_exist(flag: str, suggested: str) -> None:
    with pytest.raises(UserError) as raised:
        check_fields(["--workdir=x", flag, "3"])
    message = str(raised.value)
    assert message.startswith(f"{flag.partition('=')[0]}: there is no such field")
    assert f"did you mean {suggested!r}?" in message or not suggested
    assert str(in_flags(raised.value, TRAIN.fields)) == message  # no flag becomes the flag of a flag


def test_nothing_near_is_not_guessed() -> None:
    assert fields.nearest_field("zzz", field_names()) == ""


def test_architecture_is_not_for_the_command_line() -> None:
    for flag in ("--config.model.config.hidden_size", "--config.model.config"):
        with pytest.raises(UserError, match=rf"^{flag}: .*--config\.model\.overrides\.NAME"):
            check_fields([f"{flag}=64"])


def test_every_field_is_accepted() -> None:
    names = field_names()
    assert {"seed", "train.steps", "model.overrides.layerdrop", "data.synthetic.seed", "mesh.fsdp"} < set(
        names
    )
    check_fields([f"--config.{name}=1" for name in names if name != "model.config"])
    check_fields(["file.wav", "--model=folder", "--configure=1", "config.nothing=1"])
    check_fields([])


def shown() -> dict[str, fields.Field]:
    return {field.name: field for group in fields.groups() for field in group.fields}


def test_help_has_every_field_once() -> None:
    listed = [field.name for group in fields.groups() for field in group.fields]
    assert sorted(listed) == sorted(set(field_names()) - {"model.config"})
    assert listed[:3] == ["name", "seed", "workdir"]  # the run's own first, then the groups as they stand
    assert set(TRAIN.fields) == set(listed)


def test_help_has_types_and_defaults() -> None:
    listed, defaults = shown(), flatten(TrainConfig())
    assert listed["optim.learning_rate"][1:3] == ("float", "0.0001")
    assert listed["model.dtype"][1:3] == ("str", "'float32'")
    assert listed["model.overrides.layerdrop"][1:3] == ("float | None", "None")
    assert listed["data.held_out_speakers"][1:3] == ("tuple[str, ...]", "()")
    assert listed["data.cache_features"][1:3] == ("bool", "False")
    for name in field_names():
        if name in listed and not isinstance(defaults[name], list):
            assert listed[name].default == repr(defaults[name])


def test_every_field_has_a_comment() -> None:
    assert [name for name, field in shown().items() if not field.comment] == []
    assert "loss or gradient is not finite" in shown()["train.skip_nonfinite"].comment
    assert all(group.description for group in fields.groups())

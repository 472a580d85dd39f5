"""config.json of an older version: a field that it lacks means what was computed before the field existed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.training import config as config_module
from flax_wavlm.training.config import TrainConfig, field_names, flatten, read_saved
from flax_wavlm.training.workdir import FREE_TO_CHANGE, as_begun, check_same_run

GROUPS = (
    "model",
    "model.overrides",
    "data",
    "data.splits",
    "data.synthetic",
    "text",
    "train",
    "optim",
    "mesh",
)
ARCHITECTURE = sorted(f"model.config.{name}" for name in flatten(WavLMConfig()))


def begun_run(workdir: Path, config: TrainConfig, *, without: str = "") -> None:
    """The folder of a run that has a checkpoint; its config.json lacks a field, or a group of fields."""
    saved = json.loads(json.dumps(config.to_dict()))
    group = saved
    *groups, name = without.split(".")
    for part in groups:
        group = group[part]
    group.pop(name, None)
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(saved))


def defaults() -> TrainConfig:
    """Every field as it is by default, except that there is an architecture."""
    config = TrainConfig()
    config.model.config = WavLMConfig()
    return config


@pytest.mark.parametrize("name", [*field_names(), *GROUPS, *ARCHITECTURE])
def test_absent_field_is_the_default(name: str, tmp_path: Path) -> None:
    config = defaults()
    if name in ("model", "model.config"):
        config.model.config = None  # the default
    begun_run(tmp_path, config, without=name)
    config.workdir = str(tmp_path)
    config = as_begun(config)
    config.workdir = ""  # the default
    check_same_run(tmp_path, config)
    assert flatten(read_saved(tmp_path / "config.json")) == flatten(json.loads(json.dumps(config.to_dict())))


OTHERS = {
    "seed": 7,
    "model.dtype": "bfloat16",
    "model.overrides.layerdrop": 0.5,
    "data.corpus": "timit",
    "data.held_out_speakers": ("a",),
    "train.batch_size": 16,
    "optim.eps": 1e-6,
    "mesh.fsdp": 2,
    "data.threads": 5,
    "data.path": "/elsewhere",
}


@pytest.mark.parametrize("name", OTHERS)
def test_absent_field_is_not_any_value(name: str, tmp_path: Path) -> None:
    """A run with another value than the one that the absent field stands for is another run."""
    config = defaults()
    group, _, field = name.rpartition(".")
    setattr(config_module.lookup(config, group) if group else config, field, OTHERS[name])
    begun_run(tmp_path, config, without=name)
    if name in FREE_TO_CHANGE:
        check_same_run(tmp_path, config)
        return
    with pytest.raises(UserError, match=f"another configuration: {name} was ") as raised:
        check_same_run(tmp_path, config)
    assert raised.value.where == str(tmp_path)


def test_field_whose_default_is_not_the_old_behaviour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later version adds one: an old run goes on with the old value, and not with the new default."""
    monkeypatch.setitem(config_module.WHEN_ABSENT, "optim.beta2", 0.5)
    config = defaults()
    begun_run(tmp_path, config, without="optim.beta2")
    with pytest.raises(UserError, match=r"optim\.beta2 was 0\.5, is 0\.999"):
        check_same_run(tmp_path, config)
    config.optim.beta2 = 0.5
    check_same_run(tmp_path, config)


def test_what_stands_there_counts(tmp_path: Path) -> None:
    config = defaults()
    begun_run(tmp_path, config)
    other = copy.deepcopy(config)
    other.model.config = WavLMConfig(hidden_size=96)
    other.seed = 1
    with pytest.raises(UserError, match=r"model\.config\.hidden_size was 768, is 96; seed was 42, is 1"):
        check_same_run(tmp_path, other)


def test_many_differences_are_counted(tmp_path: Path) -> None:
    begun_run(tmp_path, TrainConfig())
    with pytest.raises(UserError, match=r"model\.config\.\w+ was None.*; and \d+ more") as raised:
        check_same_run(tmp_path, defaults())
    assert len(raised.value.problem) < 1000


def test_field_of_a_newer_version(tmp_path: Path) -> None:
    """What this version does not know, it cannot go on with."""
    config = defaults()
    begun_run(tmp_path, config)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["optim"]["momentum"] = 0.9
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"optim\.momentum was 0\.9, is None"):
        check_same_run(tmp_path, config)


@pytest.mark.parametrize(("name", "value"), [("optim", 3), ("data", None), ("model", [1])])
def test_group_that_is_no_object(name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({name: value}))
    with pytest.raises(UserError) as raised:
        read_saved(tmp_path / "config.json")
    assert (raised.value.field, raised.value.found) == (name, value)


def test_without_a_checkpoint_there_is_nothing_to_lose(tmp_path: Path) -> None:
    begun_run(tmp_path, TrainConfig())
    (tmp_path / "checkpoints" / "1").rmdir()
    check_same_run(tmp_path, defaults())


def test_run_begun_before_goes_on_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A recipe of today, which says more than the run's config.json could, is no other configuration."""
    config = defaults()
    config.workdir = str(tmp_path)
    config.text.preset, config.data.dev, config.data.weights = "timit", "test", (2.0,)
    config.data.synthetic.dev_clips = 100
    begun_run(tmp_path, config, without="text")
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["data"]["dev"], saved["data"]["channel"], saved["train"]["best_by"]
    del saved["data"]["synthetic"]["dev_clips"], saved["data"]["weights"]
    saved["data"]["text_column"] = "text"  # the default of that time
    (tmp_path / "config.json").write_text(json.dumps(saved))
    begun = as_begun(config)
    assert (begun.text.preset, begun.data.dev, begun.data.channel) == ("before-0.2", "test", "mean")
    assert (begun.data.synthetic.dev_clips, begun.data.weights, begun.data.text_column) == (0, (), "text")
    assert begun.train.best_by == "wer"
    assert config.text.preset == "timit"  # the caller's is not changed
    assert "text.preset = 'before-0.2'" in caplog.text
    assert "data.dev = " not in caplog.text
    check_same_run(tmp_path, begun)


def test_new_run_is_as_the_recipe_says(tmp_path: Path) -> None:
    config = defaults()
    config.workdir = str(tmp_path)
    assert as_begun(config) is config

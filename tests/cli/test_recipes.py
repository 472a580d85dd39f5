"""--config: a packaged recipe by its name, or the user's own file."""

from pathlib import Path

import pytest
from helpers.commands import run

from flax_wavlm.cli import recipes
from flax_wavlm.cli.train import check_fields, resolve, with_recipe_files
from flax_wavlm.errors import UserError
from flax_wavlm.training.config import LoopSettings, TrainConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text("")
    return path


@pytest.mark.parametrize("form", ["--config={}", "-config={}", "--config {}"])
def test_config_file(form: str, recipe: Path, tmp_path: Path) -> None:
    given = [*form.format(recipe).split(), "--config.train.steps=5", "--workdir=x"]
    found = with_recipe_files(given)
    assert found == [f"--config={recipe}", "--config.train.steps=5", "--workdir=x"]
    check_fields(found)
    missing = tmp_path / "recipes" / "timit.py"
    with pytest.raises(UserError, match=r"no such file.*configs/") as raised:
        with_recipe_files(form.format(missing).split())
    assert str(missing) in str(raised.value)
    with pytest.raises(UserError, match="no such file"):
        with_recipe_files(form.format(tmp_path).split())  # a folder


@pytest.mark.parametrize("form", ["--config={}", "-config={}", "--config {}"])
def test_packaged_recipe(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("timit").mkdir()  # the corpus, say: not a recipe
    assert with_recipe_files(form.format("timit").split()) == [f"--config={ROOT / 'configs/timit.py'}"]
    Path("demo").write_text("")  # the user's own file comes first
    assert with_recipe_files(form.format("demo").split()) == ["--config=demo"]


def test_recipe_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        with_recipe_files(["--config=timti"])
    assert raised.value.where == "--config=timti"
    assert raised.value.expected == f"a file, or one of {', '.join(recipes.recipes())}"
    assert raised.value.do == "did you mean 'timit'?"


def test_recipes_are_those_of_the_repository() -> None:
    assert recipes.recipes() == {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
    described = dict(recipes.describe_recipes())
    assert described.keys() == recipes.recipes().keys()
    assert all(described.values())


def test_no_flags_at_all() -> None:
    assert with_recipe_files([]) == []
    assert run("train")[::2] == (
        2,
        "error: --config is missing, expected a recipe, such as --config demo or --config configs/demo.py\n",
    )


def test_config_flag_without_a_value() -> None:
    with pytest.raises(UserError, match="no such file"):
        with_recipe_files(["--config"])


def test_one_recipe_is_not_run_within_another(tmp_path: Path) -> None:
    good, empty = tmp_path / "good.py", tmp_path / "empty.py"
    good.write_text("def get_config():\n    return {}\n")
    empty.write_text("")
    assert "gave a dict" in run("train", "--config", good).stderr
    assert "AttributeError" in run("train", "--config", empty).stderr


def test_resolve() -> None:
    assert resolve(TrainConfig(name="demo"), "").workdir == "runs/demo"
    assert resolve(TrainConfig(), "").workdir == "runs/run"
    assert resolve(TrainConfig(name="demo", workdir="here"), "").workdir == "here"
    assert resolve(TrainConfig(name="demo", workdir="here"), "there").workdir == "there"
    with pytest.raises(UserError, match="--config is missing"):
        resolve(None, "")
    with pytest.raises(UserError, match="gave a dict, expected a TrainConfig"):
        resolve({"name": "demo"}, "")  # type: ignore[arg-type]  # as a config file may


def test_a_batch_size_on_the_command_line_replaces_the_recipes_seconds() -> None:
    for overridden, seconds in (
        ({"train.batch_size"}, 0.0),
        ({"train.batch_size", "train.batch_seconds"}, 64.0),
        (set(), 64.0),
    ):
        config = TrainConfig(train=LoopSettings(batch_size=8, batch_seconds=64.0))
        assert resolve(config, "", overridden).train.batch_seconds == seconds


def test_epochs_on_the_command_line_replace_the_recipes_steps() -> None:
    for overridden, steps in (({"train.epochs"}, 0), ({"train.steps", "train.epochs"}, 7), (set(), 7)):
        config = TrainConfig(train=LoopSettings(steps=7, epochs=3))
        assert resolve(config, "", overridden).train.steps == steps

"""Flags, recipes and arguments of the commands, as users mistype them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_input import Case, check, each
from helpers.commands import run
from helpers.reference import Reference

from flax_wavlm import UserError


def typed(name: str, *arguments: str, recipe: str = "") -> Callable[[Path, Reference], Any]:
    """A command with its arguments, in which FOLDER and TINY are replaced, run in this process.

    The error that it prints comes back as a UserError, if its exit status is the right one.
    """

    def give(folder: Path, tiny: Reference) -> None:
        if recipe:
            (folder / "recipe.py").write_text(recipe)
        given = [a.replace("FOLDER", str(folder)).replace("TINY", str(tiny.folder)) for a in arguments]
        result = run(name, *given)
        assert result.status == 2, result.stderr
        assert "Traceback" not in result.stdout + result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: "), result.stderr
        raise UserError(result.stderr.splitlines()[-1].removeprefix("error: "))

    return give


RECIPE = """
from flax_wavlm import WavLMConfig
from flax_wavlm.training.config import TrainConfig

def get_config():
    config = TrainConfig(name="tiny")
    config.model.config = WavLMConfig()
    config.data.corpus = "manifest"
    config.data.path = "/nowhere"
    config.train.steps = 3
    return config
"""
CONFIG = "--config=FOLDER/recipe.py"

CASES = [
    Case(
        "a field that does not exist",
        typed("train", CONFIG, "--config.optim.lerning_rate=1", recipe=RECIPE),
        error=r"--config\.optim\.lerning_rate: there is no such field; did you mean .*learning_rate",
    ),
    Case(
        "a word for a number",
        typed("train", CONFIG, "--config.train.steps=many", recipe=RECIPE),
        error=r"--config\.train\.steps=many",
    ),
    Case(
        "a flag that does not exist",
        typed("train", CONFIG, "--workdr=x", recipe=RECIPE),
        error=r"workdr\b.*[Dd]id you mean.*workdir",
    ),
    Case("no --config", typed("train"), error=r"--config is missing"),
    Case(
        "a recipe that does not exist",
        typed("train", "--config=FOLDER/no.py"),
        error=r"--config=.*no\.py: no such file; the recipes are in configs/",
    ),
    Case(
        "a recipe that is not Python",
        typed("train", CONFIG, recipe="learning rate: 3\n"),
        error=r"--config=.*recipe\.py:1: SyntaxError",
    ),
    Case(
        "a recipe without get_config",
        typed("train", CONFIG, recipe="x = 1\n"),
        error=r"--config=.*recipe\.py: AttributeError: .*get_config",
    ),
    Case(
        "a recipe that fails",
        typed("train", CONFIG, recipe="import os\ndef get_config():\n    return os.environ['NO_SUCH']\n"),
        error=r"--config=.*recipe\.py:3: KeyError: 'NO_SUCH'",
    ),
    Case(
        "a recipe that gives a dict",
        typed("train", CONFIG, recipe="def get_config():\n    return {}\n"),
        error=r"get_config\(\) gave a dict, expected a TrainConfig",
    ),
    Case(
        "an architecture that cannot be",
        typed("train", CONFIG, recipe=RECIPE.replace("WavLMConfig()", "WavLMConfig(hidden_size=100)")),
        error=r"config: num_attention_heads is 12, expected a divisor of hidden_size = 100",
    ),
    Case(
        "files that are not asked for",
        typed("evaluate", "--model=x", "--corpus=timit", "a.wav"),
        error=r"found \['a\.wav'\], expected no argument",
    ),
    Case(
        "no file to transcribe",
        typed("transcribe", "--model=x"),
        error=r"found \[\], expected FILE\|FOLDER\|-\.\.\.",
    ),
    Case("no --model", typed("transcribe", "a.wav"), error=r"--model"),
    Case(
        "a corpus that does not exist",
        typed("evaluate", "--model=TINY", "--corpus=timt", "--data=FOLDER"),
        error=r"--corpus is 'timt', expected one of timit",
    ),
    Case(
        "a model that does not exist",
        typed("transcribe", "--model=FOLDER/no", "FOLDER/a.wav"),
        error=r"/no: no such file or folder",
    ),
    Case(
        "no beam",
        typed("transcribe", "--model=TINY", "--beam=0", "FOLDER/a.wav"),
        error=r"--beam is 0, expected 1 to 10000",
    ),
    Case(
        "a weight that is no number",
        typed("evaluate", "--model=TINY", "--corpus=timit", "--lm=FOLDER/lm.arpa", "--alpha=nan"),
        error=r"--alpha is nan, expected a number",
    ),
    Case(
        "a weight without a language model",
        typed("transcribe", "--model=TINY", "--lm=none", "--beta=1", "FOLDER/a.wav"),
        error=r"--beta is 1\.0, expected no weight, as there is no language model; .* --lm",
    ),
    Case(
        "hot words that are not there",
        typed("transcribe", "--model=TINY", "--hotwords=FOLDER/no.txt", "FOLDER/a.wav"),
        error=r"/no\.txt: cannot be read",
    ),
    Case(
        "an ARPA file that is not there",
        typed("transcribe", "--model=TINY", "--lm=FOLDER/no.arpa", "FOLDER/a.wav"),
        error=r"/no\.arpa: ",
    ),
    Case(
        "a language model that cannot be saved into a model of the hub",
        typed("tune-lm", "--model=FOLDER/no", "--lm=x.arpa", "--corpus=timit", "--save"),
        error=r"--model is '.*/no', expected the folder of a fine-tuned model",
    ),
    Case(
        "no language model to tune",
        typed("tune-lm", "--model=FOLDER/no", "--lm=none", "--corpus=timit"),
        error=r"--lm is 'none', expected an ARPA file",
    ),
    Case(
        "a run that does not exist",
        typed("export", "--workdir=FOLDER/no", "--output=FOLDER/out"),
        error=r"/no: has no checkpoints/",
    ),
    Case(
        "a conversion of nothing",
        typed("convert", "FOLDER/no", "FOLDER/out"),
        error=r"/no: no such file or folder",
    ),
]


@each(CASES)
def test_bad_command(
    case: Case,
    tiny: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    check(case, tiny, tmp_path, caplog, capfd)

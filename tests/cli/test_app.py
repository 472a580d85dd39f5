"""The program: what it says where something is wrong, how it ends, and what it does to its process."""

import importlib
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags
from helpers.commands import run

from flax_wavlm.cli import app, huge_pages
from flax_wavlm.cli.command import Command, Parsed
from flax_wavlm.errors import Preempted, UserError

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


# The last line of each says whether jax was imported: a wrong flag is refused before.
SCRIPT = "import runpy, sys\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
SCRIPT += "finally:\n    assert 'jax' not in sys.modules"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.train.stepz=5"], ("--config.train.stepz: there is no such field", "train.steps'?")),
        (["--config.train.steps=many"], ("train.steps", "many", "int")),
        (None, ("--config is missing", "configs/demo.py")),
    ],
    ids=["wrong field", "wrong type", "no config"],
)
def test_train_script_says_what_is_wrong(
    arguments: list[str] | None, parts: tuple[str, ...], recipe: Path, tmp_path: Path
) -> None:
    given = [] if arguments is None else [f"--config={recipe}", *arguments]
    script = str(ROOT / "scripts" / "train_flax.py")
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = {[script, *given]!r}\n{SCRIPT}"],
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


@pytest.mark.parametrize(
    ("command", "given", "error"),
    [
        ("evaluate", ["--corpus=timit"], "--model is missing, expected the fine-tuned model"),
        ("evaluate", ["--model=x", "--corpus=timit", "--spilt=dev"], "did you mean '--split'?"),
        ("evaluate", ["--model=x", "--corpus=timit", "--nothing=1"], "`flax-wavlm evaluate --help` lists"),
        ("evaluate", ["--model=x", "--corpus=timit", "--dtype=float16"], "<float32|bfloat16>"),
        ("evaluate", ["--model=x", "--corpus=timit", "a.wav"], "found ['a.wav'], expected no argument"),
        ("transcribe", ["--model=x"], "found [], expected FILE..."),
        ("transcribe", ["a.wav", "--batch_size", "many", "--model=x"], "--batch_size=many"),
        ("convert", ["source"], "found ['source'], expected SOURCE FOLDER"),
        ("convert", ["source", "folder", "--clip=x"], "--clip is 'x', expected --verify beside it"),
        ("convert", ["source", "folder", "--noverify=3"], "--noverify=3 does not take an argument"),
        ("export", ["--workdir=x"], "--output is missing"),
        ("train", ["--config=demo", "--wrokdir=x"], "did you mean '--workdir'?"),
        ("train", ["--config=demo", "--learning_rate=1"], "did you mean '--config.optim.learning_rate'?"),
    ],
)
def test_wrong_command_lines(command: str, given: list[str], error: str) -> None:
    ended = run(command, *given)
    assert ended.status == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("error: ")
    assert error in ended.stderr


def test_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["trian", "--config=demo"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "error: trian: there is no such command, expected one of train, evaluate, transcribe, "
        "fit-aligner, convert, export; did you mean 'train'?\n"
    )
    assert app.main(["zzz"]) == 2
    assert "`flax-wavlm --help` describes them" in capsys.readouterr().err


def test_flags_may_stand_anywhere_and_commands_share_names() -> None:
    evaluate, transcribe = app.COMMANDS["evaluate"], app.COMMANDS["transcribe"]
    values, files = transcribe.parse(transcribe, ["a.wav", "--model", "one", "b.wav", "--batch_size=3"])
    assert (values.model, values.batch_size, files) == ("one", 3, ["a.wav", "b.wav"])
    values, rest = evaluate.parse(evaluate, ["--model=two", "--corpus=x", "--held_out_speakers=a,b"])
    assert (values.model, values.batch_size, rest) == ("two", 8, [])
    assert values.held_out_speakers == ["a", "b"]
    assert "corpus" not in flags.FLAGS  # none of them is absl's global flag


def ending(outcome: BaseException | int | None, **changes: object) -> Command:
    def work(parsed: Parsed) -> int | None:
        logging.getLogger("flax_wavlm.anything").info("at data.path")
        logging.getLogger("flax_wavlm.anything").warning("at data.path")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    settings = {"fields": {"data.path": "--data"}, **changes}
    return Command("test", "Tests.", lambda values, given: None, work, **settings)  # type: ignore[arg-type]  # any may be given


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (1, 1, ""),
        (UserError(field="data.path", found="a\nb"), 2, "error: --data is 'a\\nb'\n"),
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (Preempted("asked to stop"), 75, "asked to stop\n"),
        (KeyboardInterrupt(), 130, "interrupted; everything saved before stays\n"),
    ],
)
def test_exit_status(
    outcome: BaseException | int | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(ending(outcome), []) == status
    printed = capsys.readouterr()
    assert printed.err == said
    assert printed.out == "at data.path\nat --data\n"  # warnings name flags


def test_exception_that_nobody_foresaw(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(ending(ZeroDivisionError("by nought")), []) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.endswith("ZeroDivisionError: by nought\n")


def test_messages_go_to_stderr_where_stdout_has_results(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("flax_wavlm")
    before = logger.handlers, logger.level, logger.propagate
    assert app.run(ending(None, results_on_stdout=True), []) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "at data.path\nat --data\n")
    assert (logger.handlers, logger.level, logger.propagate) == before


def test_console_command_is_this_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"flax-wavlm": "flax_wavlm.cli.app:main"}
    module, _, function = project["project"]["scripts"]["flax-wavlm"].partition(":")
    assert getattr(importlib.import_module(module), function) is app.main
    # The version is written once.
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "flax_wavlm.__version__"}


class Restarted(Exception):
    pass


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A process that would be started again, and says so instead."""

    def execve(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert arguments == sys.orig_argv
        assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        raise Restarted

    offer = tmp_path / "enabled"
    offer.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "_OFFER", offer)
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("FLAX_WAVLM_HUGE_PAGES", raising=False)
    return monkeypatch


def test_process_starts_again_with_huge_pages(restarts: pytest.MonkeyPatch) -> None:
    with pytest.raises(Restarted):
        huge_pages.restart_with_huge_pages()
    restarts.setenv("FLAX_WAVLM_HUGE_PAGES", "1")
    with pytest.raises(Restarted):
        huge_pages.restart_with_huge_pages()


def test_process_does_not_start_again(restarts: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("FLAX_WAVLM_HUGE_PAGES", "0"), ("GLIBC_TUNABLES", "glibc.malloc.check=0")):
        with restarts.context() as patch:
            patch.setenv(name, value)
            huge_pages.restart_with_huge_pages()
    with restarts.context() as patch:
        patch.setitem(sys.modules, "jax", sys)
        huge_pages.restart_with_huge_pages()
    for choice in ("[always] madvise never", "always madvise [never]"):
        (tmp_path / "enabled").write_text(choice)
        huge_pages.restart_with_huge_pages()
    (tmp_path / "enabled").unlink()
    huge_pages.restart_with_huge_pages()


def test_huge_pages_can_be_turned_off_in_a_real_process(tmp_path: Path) -> None:
    """A real process, where the kernel offers them: with the setting it keeps its environment."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text("import os\nraise SystemExit(os.environ.get('GLIBC_TUNABLES', 'none'))\n")
    command = [sys.executable, str(ROOT / "scripts/train_flax.py"), f"--config={recipe}"]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}

    def tunables(**settings: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, env=environment | settings).stderr

    assert tunables(FLAX_WAVLM_HUGE_PAGES="0") == "none\n"
    offered = huge_pages._OFFER.exists() and "[madvise]" in huge_pages._OFFER.read_text()
    assert tunables() == ("glibc.malloc.hugetlb=1\n" if offered else "none\n")


def test_fields_of_the_text_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong field is refused before anything is read; a wrong value is named by its flag."""
    evaluate = app.COMMANDS["evaluate"]
    values, _ = evaluate.parse(
        evaluate, ["--model=x", "--corpus=x", "--text_rule=case=keep", "--text_rule", "remove=,="]
    )
    assert values.text_rule == ["case=keep", "remove=,="]
    assert app.main(["evaluate", "--model=x", "--corpus=timit", "--text_rule=cas=keep"]) == 2
    assert "--text_rule is 'cas=keep', expected FIELD=VALUE" in capsys.readouterr().err

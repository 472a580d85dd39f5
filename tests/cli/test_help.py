"""Help: the list of commands, a page a command, there at once and without jax."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import run

from flax_wavlm import __version__
from flax_wavlm.cli import app
from flax_wavlm.cli.help import page
from flax_wavlm.training.config import field_names

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "train_flax.py": "train",
    "evaluate.py": "evaluate",
    "transcribe.py": "transcribe",
    "align.py": "align",
    "segment.py": "segment",
    "fit_aligner.py": "fit-aligner",
    "train_lm.py": "train-lm",
    "tune_lm.py": "tune-lm",
    "convert.py": "convert",
    "export_pytorch.py": "export",
}
HEAVY = ("jax", "flax", "numpy", "transformers", "soundfile", "datasets", "orbax", "grain")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["alone", "--help", "-h"])
def test_list_of_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", printed, re.M) for name in app.COMMANDS)
    names = ["train", "evaluate", "transcribe", "align", "segment", "fit-aligner", "train-lm", "tune-lm"]
    assert list(app.COMMANDS) == [*names, "convert", "export"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("command", app.COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "-?", "--helpfull"])
def test_page(command: str, flag: str) -> None:
    ended = run(command, flag)
    assert ended == (0, page(app.COMMANDS[command]) + "\n", "")
    lines = ended.stdout.splitlines()
    assert lines[0] == app.COMMANDS[command].summary
    assert lines[2].startswith(f"flax-wavlm {command} ")
    assert max(map(len, lines)) <= 110
    for name in app.COMMANDS[command].flags():
        assert f"\n  --{name} " in ended.stdout
    assert command == "train" or len(lines) <= 24  # one screen


def test_train_lists_recipes_fields_and_the_environment() -> None:
    printed = page(app.COMMANDS["train"])
    for name in set(field_names()) - {"model.config"}:
        assert re.search(rf"^  --config\.{re.escape(name)} +\S", printed, re.M), name
    assert re.search(r"^  --config\.optim\.learning_rate +float +0\.0001", printed, re.M)
    assert re.search(r"^  timit_sample +WavLM-base-plus", printed, re.M)
    assert "FLAX_WAVLM_HUGE_PAGES=0" in printed


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_shows_its_commands_page_without_heavy_imports(script: str) -> None:
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        f"finally:\n    print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    given = f"import sys; sys.argv = [{str(ROOT / 'scripts' / script)!r}, '--help']\n{code}"
    ended = subprocess.run([sys.executable, "-c", given], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == page(app.COMMANDS[SCRIPTS[script]]) + "\n"
    assert ended.stderr == "\n"
    usage = (ROOT / "scripts" / script).read_text().split("\n")[2]
    assert usage.startswith(f"python scripts/{script} ")

"""The recipes that come with the package: `--config timit` is `configs/timit.py`."""

from __future__ import annotations

import ast
from pathlib import Path

from flax_wavlm.errors import UserError, did_you_mean
from flax_wavlm.files import is_file

_PACKAGE = Path(__file__).parents[1]


def recipes() -> dict[str, Path]:
    """The packaged recipes by name. A wheel has them within the package, a checkout beside it."""
    installed = _PACKAGE / "recipes"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def find_recipe(given: str) -> Path:
    """The file that a --config flag means: the user's own, or else the packaged recipe of that name.

    Raises:
        UserError: there is neither.
    """
    own, packaged = Path(given), recipes()
    if is_file(own):
        return own
    if given in packaged:
        return packaged[given]
    names = ", ".join(packaged)
    if not given or own.suffix == ".py" or own.name != given:  # it is meant to be a file
        raise UserError(
            "no such file", where=f"--config={given}", do=f"the recipes are in configs/, or by name: {names}"
        )
    raise UserError(
        "there is no such recipe",
        where=f"--config={given}",
        expected=f"a file, or one of {names}",
        do=did_you_mean(given, packaged),
    )


def describe_recipes() -> list[tuple[str, str]]:
    """Name and first line of each packaged recipe, read without running it."""
    return [
        (name, (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0])
        for name, file in recipes().items()
    ]

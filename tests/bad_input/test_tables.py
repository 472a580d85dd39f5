"""The tables of this folder, taken together."""

import ast
from pathlib import Path


def given(file: Path) -> list[str]:
    """The names of a file's cases."""
    calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return [ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "Case"]


def test_the_tables_are_large_and_their_names_are_unique() -> None:
    names = [name for file in Path(__file__).parent.glob("test_*.py") for name in given(file)]
    assert len(set(names)) == len(names) >= 50

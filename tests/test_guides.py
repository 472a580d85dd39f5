"""Guides in docs/: flags, names and formats. test_demo.py runs their blocks."""

import ast
import importlib
import shlex

import pytest
from helpers.guides import PAGES, RUN
from helpers.pages import Block, rows

from flax_wavlm.cli import app
from flax_wavlm.cli.outputs import FORMAT_NAMES


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.code.splitlines()[0][:50])
def test_blocks_are_right(block: Block) -> None:
    """Every flag exists and is taken; every name that is imported is there. Nothing is run."""
    if block.language == "python":
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names)
        return
    assert block.language == "sh"
    for words in map(shlex.split, block.code.splitlines()):
        program, command, *given = words[words.index("|") + 1 :] if "|" in words else words
        assert program == "flax-wavlm"
        app.COMMANDS[command].parse(app.COMMANDS[command], given)


def test_all_formats_are_described() -> None:
    described = [name for row in rows(PAGES["transcribe.md"], "`--format`") for name in row[0].split(", ")]
    assert [name.strip("`") for name in described] == list(FORMAT_NAMES)

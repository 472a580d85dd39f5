"""The pages of the documentation as a test reads them: blocks, tables, and the code in sentences."""

import re
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    language: str  # "sh", "python", "text"
    code: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, from top to bottom."""
    return [Block(*found) for found in FENCE.findall(page)]


def without_blocks(page: str) -> str:
    return FENCE.sub("", page)


def codes(page: str) -> list[str]:
    """What the sentences of a page write as code."""
    return CODE.findall(without_blocks(page))


def rows(page: str, first_heading: str) -> list[list[str]]:
    """The cells of the table whose first column has this heading."""
    lines = page.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    found = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found

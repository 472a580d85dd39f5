"""metrics.jsonl, read back, and the table of a run's evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flax_wavlm.errors import UserError, cannot_read
from flax_wavlm.recognition.task import DEV, TEST, Row, Scoring, choosing


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in its order. Blank lines are ignored.

    Raises UserError where the file cannot be read, and, with the line's number, where a line is anything but
    one JSON object with a step.
    """
    rows = []
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise cannot_read(path, error) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, a bomb of brackets
            raise UserError(f"not JSON: {error}", where=where) from error
        if not isinstance(row, dict):
            raise UserError(f"expected a JSON object, found {type(row).__name__}", where=where)
        if type(row.get("step")) is not int:
            raise UserError(where=where, field="step", found=row.get("step"), expected="a whole number")
        rows.append(row)
    return rows


def evaluations(rows: Iterable[Row]) -> list[Row]:
    """The rows that are evaluations: all but those of training."""
    return [row for row in rows if row.get("split") != "train"]


def final_test(rows: Iterable[Row]) -> dict[str, Any] | None:
    """The exported model's line on test; None where there is none, or where test chooses."""
    splits = {row["split"]: row for row in evaluations(rows) if "split" in row}
    return dict(splits[TEST]) if DEV in splits and TEST in splits else None


def evaluation_of(rows: Iterable[Row], step: int, averaged: int = 0) -> Row | None:
    """The evaluation, among those that choose, of a step's checkpoint, or of so many averaged up to there."""
    found = (row for row in choosing(rows) if (row["step"], row.get("averaged", 0)) == (step, averaged))
    return next(found, None)


def results_table(rows: Iterable[Row], scoring: Scoring) -> str:
    """The evaluations as a Markdown table that also reads well in a console. The best row says so.

    Where there are evaluations on dev and on test, a column says which. Averaged weights are named so.
    """
    shown = evaluations(rows)
    best = scoring.best(shown)
    columns = {
        **({"split": ("Split", "{}")} if final_test(shown) else {}),
        "step": ("Step", "{:,}"),
        "epoch": ("Epoch", "{:.2f}"),
        "loss": ("Loss", "{:.4f}"),
        **{name: (title, "{:.4f}") for name, title in scoring.titles.items()},
    }
    lines = [[title for title, _ in columns.values()] + [""]]
    for row in shown:
        cells = ["-" if row.get(key) is None else form.format(row[key]) for key, (_, form) in columns.items()]
        averaged = f"mean of {row['averaged']}" if row.get("averaged") else ""
        lines.append([*cells, ", ".join(filter(None, (averaged, "best" if row is best else "")))])
    return markdown_table(lines)


def markdown_table(lines: Sequence[Sequence[str]], align: str = ">") -> str:
    """A Markdown table with cells of equal width. The first line is the head; `align` is "<" or ">"."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + ":" if align == ">" else "-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(f"{cell:{align}{width}}" for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )

"""TODO."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax_wavlm.errors import UserError

Row = Mapping[str, Any]


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in its order. Blank lines are ignored.

    Raises UserError, with the line's number, on anything but one JSON object a line.
    """
    rows = []
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, a bomb of brackets
            raise UserError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        if type(row.get("step")) is not int:
            raise UserError(f"{path}, line {number}: step is {row.get('step')!r}, expected a whole number")
        rows.append(row)
    return rows


def evaluations(rows: Iterable[Row]) -> list[Row]:
    """The rows that are evaluations: those with a WER."""
    return [row for row in rows if row.get("wer") is not None]


def best_row(rows: Iterable[Row]) -> Row | None:
    """The evaluation with the lowest WER, the earliest of equals; None if none has a finite one."""
    scored = [row for row in evaluations(rows) if math.isfinite(row["wer"])]
    return min(scored, key=lambda row: row["wer"], default=None)


# ---------------------------------------------------------------------------------------------- table

_COLUMNS = {
    "step": ("Step", "{:,}"),
    "epoch": ("Epoch", "{:.2f}"),
    "loss": ("Loss", "{:.4f}"),
    "wer": ("WER", "{:.4f}"),
    "cer": ("CER", "{:.4f}"),
    "wer_hf_padded": ("WER, HF-padded", "{:.4f}"),
}


def results_table(rows: Iterable[Row]) -> str:
    """The evaluations as a Markdown table that a console shows well too. The best row says so."""
    shown = evaluations(rows)
    best = best_row(shown)
    lines = [[title for title, _ in _COLUMNS.values()] + [""]]
    for row in shown:
        cells = [
            "-" if row.get(key) is None else form.format(row[key]) for key, (_, form) in _COLUMNS.items()
        ]
        lines.append([*cells, "best" if row is best else ""])
    return markdown_table(lines)


def markdown_table(lines: Sequence[Sequence[str]], align: str = ">") -> str:
    """Cells of equal width, the first line being the head."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + ":" if align == ">" else "-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(f"{cell:{align}{width}}" for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )

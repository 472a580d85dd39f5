"""The curves of a run as a picture: losses and scores against the step."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flax_wavlm.errors import UserError
from flax_wavlm.files import replaced, write_atomically
from flax_wavlm.recognition.task import Row, Scoring, choosing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour, and dashes as matplotlib writes them.
LOSS_STYLES = (("#8ba6c7", "-"), ("#1f5fa8", "-"))
SCORE_STYLES = (("#c0392b", "-"), ("#2e8b74", "-"), ("#c08a1e", "--"), ("#7d5ba6", "--"), ("#555555", ":"))
SIZE = (8.2, 5.8)  # inches
LABEL_POINTS = 14  # between the middles of two names at the right
STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so a picture is the same everywhere
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "flax-wavlm",  # without it, every picture of the same rows has other ids
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "axes.edgecolor": "#333333",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
}


class Line(NamedTuple):
    """One line of a panel."""

    name: str
    style: tuple[str, str]  # colour, dashes
    steps: list[int]
    values: list[float]


def curves(rows: Iterable[Row], path: Path, scoring: Scoring) -> None:
    """Draws losses and scores against the step, as an SVG and as a PNG beside it.

    The same rows give the same SVG, byte for byte.

    Args:
        rows: of metrics.jsonl.
        path: where the SVG goes; the PNG has the same name with .png.
        scoring: which scores to draw, and which is the best evaluation.
    Raises:
        UserError: there is nothing to draw yet.
        OSError: a file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # its stubs list every key
        figure = _draw(list(rows), scoring)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=150)
    text = svg.getvalue()
    write_atomically(path, text[text.index("<svg") :])  # without the prologue, it can be put into a page
    with replaced(path.with_suffix(".png")) as scratch:
        scratch.write_bytes(png.getvalue())


def _draw(rows: Sequence[Row], scoring: Scoring) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    trained = [row for row in rows if row.get("split") == "train"]
    tested = [row for row in choosing(rows) if not row.get("averaged")]  # that one is no point of the curve
    losses = [
        _line("train loss", LOSS_STYLES[0], trained, "loss"),
        _line("eval loss", LOSS_STYLES[1], tested, "loss"),
    ]
    scores = [
        _line(title, style, tested, name)
        for (name, title), style in zip(scoring.titles.items(), SCORE_STYLES, strict=False)
    ]
    last = max((step for line in losses + scores for step in line.steps), default=0)
    if last <= 0:
        raise UserError("no metrics to draw yet")

    figure = Figure(figsize=SIZE)
    upper, lower = figure.subplots(2, sharex=True)
    figure.subplots_adjust(left=0.08, right=0.755, top=0.94, bottom=0.085, hspace=0.2)
    upper.set(title="Loss (logarithmic)", xlim=(0, last))
    lower.set(title="Score" if scoring.highest else "Error rate", xlabel="step")
    lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    lower.xaxis.set_major_formatter("{x:,.0f}")
    losses = [_positive(line) for line in losses]
    _scale_by_logarithm(upper, losses)
    lower.set_ylim(0, 1.05 * (max((value for line in scores for value in line.values), default=0) or 1))
    _plot(upper, losses)
    _plot(lower, scores)
    _mark_best(lower, scores, scoring.best(tested), scoring)
    return figure


def _line(name: str, style: tuple[str, str], rows: Iterable[Row], key: str) -> Line:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    return Line(name, style, [step for step, _ in points], [value for _, value in points])


def _positive(line: Line) -> Line:
    """The line without what has no logarithm: a CTC loss can be slightly below 0."""
    points = [(step, value) for step, value in zip(line.steps, line.values, strict=True) if value > 0]
    return line._replace(steps=[step for step, _ in points], values=[value for _, value in points])


def _scale_by_logarithm(axes: Axes, lines: Sequence[Line]) -> None:
    """A logarithmic axis that begins and ends on a labelled value: 1, 2 or 5 times a power of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    values = [value for line in lines for value in line.values] or [1.0]
    low, high = _round_125(min(values), up=False), _round_125(max(values), up=True)
    if low == high:
        low, high = low / 2, high * 2
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _round_125(value: float, *, up: bool) -> float:
    """The nearest of 1, 2 and 5 times the powers of ten, above or below."""
    power = 10.0 ** math.floor(math.log10(value))
    steps = [k * power for k in (1, 2, 5, 10)]
    if up:
        return min(step for step in steps if step >= value)
    return max(step for step in steps if step <= value)


def _plot(axes: Axes, lines: Sequence[Line]) -> None:
    """The lines, the first one on top, each with its name and last value behind its end."""
    lines = [line for line in lines if line.values]
    for depth, line in enumerate(lines):
        colour, dashes = line.style
        marker = "o" if len(line.values) == 1 else ""  # a line of one point is invisible
        drawn = axes.plot(line.steps, line.values, dashes, color=colour, linewidth=1.8, marker=marker)
        drawn[0].set(gid=line.name, clip_on=False, zorder=4 - depth / 10)
    below = axes.transData + axes.transAxes.inverted()
    ends = [float(below.transform((0, line.values[-1]))[1]) for line in lines]
    gap = LABEL_POINTS / (72 * SIZE[1] * axes.get_position().height)
    for line, height in zip(lines, spread(ends, gap, lowest=gap / 4), strict=True):
        text = f"{line.name} {line.values[-1]:.3g}"
        axes.text(1.02, height, text, color=line.style[0], transform=axes.transAxes, va="center")


def spread(heights: Sequence[float], gap: float, *, lowest: float = -math.inf) -> list[float]:
    """Heights near the given ones, in the same order, at least `gap` apart and none below `lowest`.

    Without `lowest` they are the nearest in the sense of least squares. With `gap` times its rank taken from
    each, the heights need only not fall. That is isotonic regression, solved by pooling neighbours that are
    out of order (Ayer et al. 1955).
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    pools: list[tuple[float, int]] = []  # mean, members
    for rank, i in enumerate(order):
        pools.append((heights[i] - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, members), (other, others) = pools.pop(), pools.pop()
            pools.append(((mean * members + other * others) / (members + others), members + others))
    flat = [mean for mean, members in pools for _ in range(members)]
    placed = [0.0] * len(heights)
    for rank, i in enumerate(order):
        placed[i] = max(flat[rank], lowest) + rank * gap
    return placed


def _mark_best(axes: Axes, lines: Sequence[Line], best: Row | None, scoring: Scoring) -> None:
    """A dot and the value on the line of the score that chooses."""
    line = next((line for line in lines if line.name == scoring.titles.get(scoring.best_by)), None)
    if best is None or line is None:
        return
    step, value, colour = best["step"], best[scoring.best_by], line.style[0]
    axes.plot([step], [value], "o", color=colour, markersize=6, clip_on=False, zorder=5)
    late = step > sum(axes.get_xlim()) / 2
    axes.annotate(
        f"best {value:.3g}",
        (step, value),
        xytext=(-4 if late else 4, 14),
        textcoords="offset points",
        ha="right" if late else "left",
        color=colour,
        zorder=6,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )

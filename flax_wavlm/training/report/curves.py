"""TODO."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from flax_wavlm.errors import UserError
from flax_wavlm.training.report.metrics import best_row, evaluations

Row = Mapping[str, Any]
# --------------------------------------------------------------------------------------------- curves

Points = list[tuple[float, float]]  # step, value

_LEFT, _RIGHT, _PLOT, _WIDTH = 64, 640, 190, 820  # x of the axes' ends, a panel's height, the picture's width
_INK, _FAINT = "#333", "#e4e4e4"


def curves(rows: Iterable[Row], path: Path | str) -> None:
    """Draw losses and error rates against the step, as one SVG file that needs nothing else."""
    rows = list(rows)
    tested, trained = evaluations(rows), [row for row in rows if row.get("split") == "train"]
    losses = [
        ("train loss", "#8ba6c7", "", _points(trained, "loss")),
        ("eval loss", "#1f5fa8", "", _points(tested, "loss")),
    ]
    rates = [
        ("WER, HF-padded", "#c08a1e", "5 3", _points(tested, "wer_hf_padded")),
        ("WER", "#c0392b", "", _points(tested, "wer")),
        ("CER", "#2e8b74", "", _points(tested, "cer")),
    ]
    last = max((x for *_, points in losses + rates for x, _ in points), default=0)
    if last <= 0:
        raise UserError("no metrics to draw yet")

    height = 2 * _PLOT + 155
    picture = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
        f' height="{height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12">',
        "<title>Losses and error rates against the step</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_panel("Loss (logarithmic)", losses, last, 40, logarithmic=True),
        *_panel("Error rate", rates, last, 40 + _PLOT + 65, best=best_row(tested)),
        _text((_LEFT + _RIGHT) / 2, height - 12, "step", anchor="middle"),
        "</svg>",
    ]
    Path(path).write_text("\n".join(picture) + "\n", encoding="utf-8")


def _points(rows: Iterable[Row], key: str) -> Points:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]


def _panel(
    title: str,
    series: list[tuple[str, str, str, Points]],
    last: float,
    top: float,
    *,
    logarithmic: bool = False,
    best: Row | None = None,
) -> list[str]:
    """One pair of axes with its lines: SVG elements. `series`: label, colour, dashes, points."""
    if logarithmic:
        series = [
            (name, ink, dash, [(x, y) for x, y in points if y > 0]) for name, ink, dash, points in series
        ]
    series = [line for line in series if line[-1]]
    values = [y for *_, points in series for _, y in points] or [1.0]
    scale = math.log10 if logarithmic else float
    ticks = _log_ticks(min(values), max(values)) if logarithmic else _linear_ticks(max(values))
    low, high = scale(ticks[0]), scale(ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_RIGHT - _LEFT) * x / last
        return across, top + _PLOT * (high - scale(y)) / (high - low)

    out = [_text(_LEFT, top - 14, title, weight="bold")]
    for tick in ticks:
        _, y = place(0, tick)
        out.append(f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="{_FAINT}"/>')
        out.append(_text(_LEFT - 8, y + 4, f"{tick:g}", anchor="end"))
    for tick in _linear_ticks(last):
        if tick <= last:
            x, _ = place(tick, ticks[0])
            out.append(f'<path d="M{x:.1f} {top + _PLOT}v5" stroke="{_INK}"/>')
            out.append(
                _text(x, top + _PLOT + 19, f"{tick:,g}" if tick < 1e6 else f"{tick:g}", anchor="middle")
            )
    out.append(f'<path d="M{_LEFT} {top + _PLOT}H{_RIGHT}" stroke="{_INK}"/>')

    names = []  # each line's name stands at its end: [y, colour, text]
    for label, colour, dashes, points in series:
        pairs = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
        style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"'
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        out.append(f'<polyline points="{path}" {style}{dashed}/>')
        if len(pairs) == 1:  # a line of one point is invisible
            out.append(_dot(*pairs[0], colour))
        names.append((pairs[-1][1], colour, f"{label} {points[-1][1]:.3g}"))
    floor = top - 8.0
    for y, colour, text in sorted(names):
        floor = max(y + 4, floor + 15)  # names that would touch move down
        out.append(_text(_RIGHT + 10, floor, text, fill=colour))
    if best is not None:
        x, y = place(best["step"], best["wer"])
        colour = next(colour for label, colour, *_ in series if label == "WER")
        anchor = "end" if x > (_LEFT + _RIGHT) / 2 else "start"
        out.append(_dot(x, y, colour))
        out.append(_text(x, y - 9, f"best {best['wer']:.3g}", anchor=anchor, fill=colour))
    return out


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = _INK, weight: str = "normal"
) -> str:
    style = f'text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'


def _linear_ticks(high: float) -> list[float]:
    """From 0 to at least `high` by 1, 2 or 5 times a power of ten, in four to eight intervals."""
    high = high or 1.0
    power = 10.0 ** math.floor(math.log10(high / 4))
    step = next(power * k for k in (1, 2, 5, 10) if high / (power * k) <= 7)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten (powers alone over three decades) around [low, high]."""
    digits = (1, 2, 5) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    ticks = [k * 10.0**p for p in powers for k in digits]
    first = max(i for i, tick in enumerate(ticks) if tick <= low)
    final = next(i for i, tick in enumerate(ticks) if tick >= high and i > first)
    return ticks[first : final + 1]

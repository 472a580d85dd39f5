"""What a run leaves for people: its metrics read back, the results table, its curves, the model card.

Everything here takes plain values, the rows of metrics.jsonl and the dict of config.json, so that a card
or a drawing can be made again from a run's folder alone.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

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
    return _markdown_table(lines)


def _markdown_table(lines: Sequence[Sequence[str]], align: str = ">") -> str:
    """Cells of equal width, the first line being the head."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + ":" if align == ">" else "-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(f"{cell:{align}{width}}" for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


# ----------------------------------------------------------------------------------------- model card

# The configuration's fields that a reader of the card asks for first.
_CARD_FIELDS = (
    "optim.learning_rate",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.clip_norm",
    "train.batch_size",
    "train.steps",
    "train.epochs",
    "data.train_max_seconds",
    "model.dtype",
    "model.freeze_feature_encoder",
    "model.overrides",
    "seed",
)


def model_card(
    *,
    name: str,
    base_model: str | None,
    dataset: str,
    dataset_id: str,
    config: Mapping[str, Any],
    rows: Iterable[Row],
    language: str | None = None,
) -> str:
    """README.md of an exported folder, with the front matter that the Hugging Face hub reads.

    Args:
        name: the model's name.
        base_model: hub id or path of the checkpoint the training started from; None = from scratch.
        dataset: what people call the corpus, e.g. "TIMIT".
        dataset_id: its id on the hub where it has one, else any short name, e.g. "timit_asr".
        config: the run's config.json.
        rows: rows of metrics.jsonl; the evaluations among them are shown.
        language: ISO 639-1 code, e.g. "en", where it is known.
    """
    shown = evaluations(rows)
    best = best_row(shown)
    hub_id = base_model if base_model and _is_hub_id(base_model) else None
    header = ModelCardData(
        model_name=name,
        language=language,
        license="unknown" if base_model else None,
        library_name="transformers",
        base_model=hub_id,
        pipeline_tag="automatic-speech-recognition",
        tags=["wavlm", "ctc", "speech", "flax-wavlm"],
        metrics=["wer", "cer"],
        eval_results=_hub_results(best, dataset, dataset_id) or None,
    ).to_yaml()

    if hub_id:
        origin = f"[{hub_id}](https://huggingface.co/{hub_id})"
    elif base_model:
        origin = f"the checkpoint `{Path(base_model).name}`"  # where it lay is nobody's business
    else:
        origin = "random weights"
    settings = [
        (field, value) for field in _CARD_FIELDS if (value := _lookup(config, field)) not in (None, {}, "")
    ]
    settings_table = _markdown_table(
        [("Setting", "Value"), *((f"`{k}`", f"`{v}`") for k, v in settings)], "<"
    )
    licence = (
        "The licence of WavLM's weights is unclear upstream (MIT or CC BY-SA 3.0 in different places), and "
        "this model is derived from them: find out before you pass it on. The corpus has its own terms."
        if base_model
        else "The weights were trained from scratch; the corpus has its own terms."
    )
    return f"""\
---
{header}
---

# {name}

WavLM with a CTC head for speech recognition, trained with `flax-wavlm` from {origin} on {dataset}.
{_headline(best)}

## Results

{results_table(shown) if shown else "Not evaluated."}

- `WER` and `CER`: errors over all clips divided by reference words or characters; greedy decoding over
  each clip's own frames, no language model.
- `WER, HF-padded`: what the Trainer of `transformers` would have printed for the same model. Its padding
  decodes to one spurious letter at the end of most clips where id 0 of the vocabulary is a letter. Only
  for comparison with cards made that way.

## Use

With `transformers`:

```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="path/to/this/folder")
print(recognise("speech.wav")["text"])
```

With `flax_wavlm`, in JAX:

```python
from flax_wavlm import WavLMForCTC

model = WavLMForCTC.from_pretrained("path/to/this/folder")
logits, frames = model(input_values, lengths)  # [B, N] as this folder's feature extractor gives them, [B]
```

## Training

{settings_table}

The complete configuration is in the run's `config.json`.

## Licence

{licence}
"""


def _is_hub_id(name: str) -> bool:
    """Whether `name` can be "owner/model" on the hub rather than a path on this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()


def _hub_results(best: Row | None, dataset: str, dataset_id: str) -> list[EvalResult]:
    """The best row as the front matter's model-index."""
    if best is None:
        return []
    return [
        EvalResult(
            task_type="automatic-speech-recognition",
            task_name="Automatic Speech Recognition",
            dataset_type=dataset_id,
            dataset_name=dataset,
            dataset_split=best.get("split"),
            metric_type=metric,
            metric_name=metric.upper(),
            metric_value=round(best[metric], 6),
        )
        for metric in ("wer", "cer")
        if best.get(metric) is not None
    ]


def _headline(best: Row | None) -> str:
    if best is None:
        return "No evaluation was made."
    clips = f" on {best['clips']:,} clips" if best.get("clips") else ""
    return f"The weights are those of step {best['step']:,}: WER {best['wer']:.4f}{clips}."


def _lookup(config: Mapping[str, Any], field: str) -> Any:
    """The value of a dotted field, None where there is no such field."""
    value: Any = config
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


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

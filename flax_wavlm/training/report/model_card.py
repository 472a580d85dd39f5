"""The model card of an exported folder: README.md with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from flax_wavlm.recognition.task import TEST, Row, Scoring
from flax_wavlm.training.report.metrics import (
    evaluation_of,
    evaluations,
    final_test,
    markdown_table,
    results_table,
)

# The fields of the configuration that a reader of the card asks for first.
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
    scoring: Scoring,
    exported: int | None = None,
    averaged: int = 0,
    language: str | None = None,
) -> str:
    """The text of the card.

    Args:
        name: the model's name.
        base_model: hub id or path of the checkpoint the training started from; None = from scratch.
        dataset: what people call the corpus, e.g. "TIMIT".
        dataset_id: its id on the hub where it has one, else any short name, e.g. "timit_asr".
        config: the run's config.json.
        rows: rows of metrics.jsonl; the evaluations among them are shown.
        scoring: of the run's task.
        exported: the step of the weights; None: the best one's.
        averaged: how many checkpoints up to that step the weights are the mean of; 0: they are that one's.
        language: ISO 639-1 code, e.g. "en", where it is known.
    """
    shown = evaluations(rows)
    best = scoring.best(shown) if exported is None else evaluation_of(shown, exported, averaged)
    test = final_test(shown)
    test = test if test and best and _weights_of(test) == _weights_of(best) else None  # of another export
    hub_id = base_model if base_model and _is_hub_id(base_model) else None
    header = ModelCardData(
        model_name=name,
        language=language,
        license="unknown" if base_model else None,
        library_name="transformers",
        base_model=hub_id,
        pipeline_tag="automatic-speech-recognition",
        tags=["wavlm", "ctc", "speech", "flax-wavlm"],
        metrics=list(scoring.on_hub),
        eval_results=_hub_results(test or best, scoring, dataset, dataset_id) or None,
    ).to_yaml()

    if hub_id:
        origin = f"[{hub_id}](https://huggingface.co/{hub_id})"
    elif base_model:
        origin = f"the checkpoint `{Path(base_model).name}`"  # without its path, which is private
    else:
        origin = "random weights"
    settings = [
        (field, value) for field in _CARD_FIELDS if (value := _lookup(config, field)) not in (None, {}, "")
    ]
    settings_table = markdown_table([("Setting", "Value"), *((f"`{k}`", f"`{v}`") for k, v in settings)], "<")
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
{_headline(best, test, scoring)}

## Results

{results_table(shown, scoring) if shown else "Not evaluated."}

{scoring.notes}

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


def _hub_results(best: Row | None, scoring: Scoring, dataset: str, dataset_id: str) -> list[EvalResult]:
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
        for metric in scoring.on_hub
        if best.get(metric) is not None
    ]


def _weights_of(row: Row) -> tuple[int, int]:
    return row["step"], row.get("averaged", 0)


def _headline(best: Row | None, test: Row | None, scoring: Scoring) -> str:
    """What the weights are, and their figures: on the clips that chose them, and on test."""
    if best is None:
        return "No evaluation was made of these weights."
    averaged = f"the mean of the {best.get('averaged')} checkpoints evaluated last, up to"
    origin = averaged if best.get("averaged") else "those of"
    said = f"The weights are {origin} step {best['step']:,}: {_figure(best, scoring)}"
    if test is not None:
        return f"{said}, which chose them, and {_figure(test, scoring)}, which the run read once, at the end."
    if best.get("split") == TEST:
        return f"{said}. The same clips chose them, so on new speech the figure would be worse."
    return f"{said}, which chose them. There was no test split."


def _figure(row: Row, scoring: Scoring) -> str:
    clips = f" on {row['clips']:,} clips of {row.get('split')}" if row.get("clips") else ""
    return f"{scoring.titles.get(scoring.best_by, scoring.best_by)} {row[scoring.best_by]:.4f}{clips}"


def _lookup(config: Mapping[str, Any], field: str) -> Any:
    """The value of a dotted field; None where there is no such field."""
    value: Any = config
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value

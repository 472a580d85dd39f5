"""flax_wavlm.json: what a run adds to a model's folder and transformers has no place for.

    {"version": 1, "text": {"preset": "auto", "language": "tr", "follows_vocabulary": false},
     "training_seconds": {"usual": 12.1, "longest": 15.6}, "temperature": 1.3}

Each part is optional, and a part that is absent is what a folder without the file means. A reader passes over
parts that it does not know. Whoever changes what a part means raises `VERSION`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flax_wavlm.data.text import TextRule
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, read_json_object, write_atomically

EXTRAS_FILE = "flax_wavlm.json"
VERSION = 1


class TrainingSeconds(NamedTuple):
    """How long the clips were that a model was trained on, in seconds."""

    usual: float  # their 95th percentile
    longest: float

    @classmethod
    def of(cls, seconds: Sequence[float] | np.ndarray) -> TrainingSeconds:
        """Those of clips, of which there must be one at least."""
        return cls(round(float(np.percentile(seconds, 95)), 3), round(float(np.max(seconds)), 3))


@dataclass(frozen=True)
class Extras:
    """The parts of the file.

    Attributes:
        text: the rule of the model's text.
        follows_vocabulary: the rule follows the tokenizer's vocabulary, which was not made by the rule.
        training_seconds: of the clips of fine-tuning; None: not known.
        temperature: what logits are divided by before posteriors are taken as confidences.
    """

    text: TextRule = field(default_factory=TextRule)
    follows_vocabulary: bool = True
    training_seconds: TrainingSeconds | None = None
    temperature: float = 1.0

    def with_text(self, given: Mapping[str, str | None]) -> Extras:
        """With these fields of the text rule in place of its own; None keeps them.

        A rule that is changed follows the vocabulary, which is then not that rule's own.
        """
        changed = self.text.changed(given)
        follows = self.follows_vocabulary or changed != self.text
        return dataclasses.replace(self, text=changed, follows_vocabulary=follows)


def read_extras(folder: Path) -> Extras:
    """The extras of a model's folder; without the file, those of a folder that another program wrote.

    Raises UserError where the file is damaged, or was written by a later version.
    """
    file = folder / EXTRAS_FILE
    if not exists(file):
        return Extras()
    found = read_json_object(file, "what a run adds to a model")
    version = found.get("version")
    if type(version) is not int or version < 1:
        raise _unusable(file, "version", version, "a whole number from 1")
    if version > VERSION:
        raise UserError(
            where=file,
            field="version",
            found=version,
            expected=f"at most {VERSION}",
            do="a later version of flax-wavlm wrote it, so install that version",
        )
    rule, follows = _text_part(found.get("text", {}), file)
    temperature = found.get("temperature", 1.0)
    if not _above_0(temperature):
        raise _unusable(file, "temperature", temperature, "a number above 0")
    seconds = found.get("training_seconds")
    return Extras(
        rule, follows, None if seconds is None else _seconds_part(seconds, file), float(temperature)
    )


def _above_0(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _unusable(file: Path, field: str, found: Any, expected: str) -> UserError:
    return UserError(where=file, field=field, found=found, expected=expected, do="restore the file")


def _seconds_part(part: Any, file: Path) -> TrainingSeconds:
    names = TrainingSeconds._fields
    if (
        not isinstance(part, dict)
        or not all(_above_0(part.get(name)) for name in names)
        or part["usual"] > part["longest"]
    ):
        expected = f"an object with {' and '.join(names)}, numbers above 0, the latter not the smaller"
        raise _unusable(file, "training_seconds", part, expected)
    return TrainingSeconds(*(float(part[name]) for name in names))


def _text_part(part: Any, file: Path) -> tuple[TextRule, bool]:
    if not isinstance(part, dict):
        raise _unusable(file, "text", part, "an object")
    fields = dict(part)
    follows = fields.pop("follows_vocabulary", True)
    if type(follows) is not bool:
        raise _unusable(file, "text.follows_vocabulary", follows, "true or false")
    known = [part.name for part in dataclasses.fields(TextRule)]
    if unknown := sorted(fields.keys() - set(known)):
        raise _unusable(file, "text", unknown, f"no field but {', '.join(known)}")
    try:
        return TextRule(**fields), follows
    except UserError as error:
        raise error.at(file) from None


def write_extras(folder: Path, extras: Extras) -> None:
    """Writes the file; OSError where it cannot be written."""
    parts: dict[str, Any] = {
        "version": VERSION,
        "text": extras.text.to_dict() | {"follows_vocabulary": extras.follows_vocabulary},
    }
    if extras.training_seconds is not None:
        parts["training_seconds"] = extras.training_seconds._asdict()
    if extras.temperature != 1.0:
        parts["temperature"] = extras.temperature
    write_atomically(folder / EXTRAS_FILE, json.dumps(parts, indent=2, ensure_ascii=False) + "\n")

"""flax_wavlm.json: what a run adds to a model's folder and transformers has no place for.

    {"version": 1, "text": {"preset": "auto", "language": "tr", "follows_vocabulary": false}}

Each part is optional, and a part that is absent is what a folder without the file means. A reader passes over
parts that it does not know. Whoever changes what a part means raises `VERSION`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flax_wavlm.data.text import TextRule
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, read_json_object, write_atomically

EXTRAS_FILE = "flax_wavlm.json"
VERSION = 1


@dataclass(frozen=True)
class Extras:
    """The parts of the file.

    Attributes:
        text: the rule of the model's text.
        follows_vocabulary: the rule follows the tokenizer's vocabulary, which was not made by the rule.
    """

    text: TextRule = field(default_factory=TextRule)
    follows_vocabulary: bool = True

    def with_text(self, given: Mapping[str, str | None]) -> Extras:
        """With these fields of the text rule in place of its own; None keeps them.

        A rule that is changed follows the vocabulary, which is then not that rule's own.
        """
        changed = self.text.changed(given)
        return Extras(changed, self.follows_vocabulary or changed != self.text)


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
        raise UserError(
            where=file,
            field="version",
            found=version,
            expected="a whole number from 1",
            do="restore the file",
        )
    if version > VERSION:
        raise UserError(
            where=file,
            field="version",
            found=version,
            expected=f"at most {VERSION}",
            do="a later version of flax-wavlm wrote it, so install that version",
        )
    return _text_part(found.get("text", {}), file)


def _text_part(part: Any, file: Path) -> Extras:
    if not isinstance(part, dict):
        raise UserError(where=file, field="text", found=part, expected="an object", do="restore the file")
    fields = dict(part)
    follows = fields.pop("follows_vocabulary", True)
    if type(follows) is not bool:
        raise UserError(
            where=file,
            field="text.follows_vocabulary",
            found=follows,
            expected="true or false",
            do="restore the file",
        )
    known = [part.name for part in dataclasses.fields(TextRule)]
    if unknown := sorted(fields.keys() - set(known)):
        raise UserError(
            where=file,
            field="text",
            found=unknown,
            expected=f"no field but {', '.join(known)}",
            do="restore the file",
        )
    try:
        return Extras(TextRule(**fields), follows)
    except UserError as error:
        raise error.at(file) from None


def write_extras(folder: Path, extras: Extras) -> None:
    """Writes the file; OSError where it cannot be written."""
    text = extras.text.to_dict() | {"follows_vocabulary": extras.follows_vocabulary}
    content = json.dumps({"version": VERSION, "text": text}, indent=2, ensure_ascii=False)
    write_atomically(folder / EXTRAS_FILE, content + "\n")

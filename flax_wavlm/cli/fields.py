"""The fields of a run's configuration on the command line: what help says of them, and which one is meant."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import sys
import tokenize
from collections.abc import Collection
from types import ModuleType
from typing import Any, NamedTuple, get_args, get_type_hints

from flax_wavlm.errors import did_you_mean
from flax_wavlm.training.config import TrainConfig, flatten

PREFIX = "--config."
ARCHITECTURE = "model.config"  # a field that only a recipe may set


class Field(NamedTuple):
    """A field that the command line may set."""

    name: str  # dotted
    type: str
    default: str  # where the recipe does not set it
    comment: str  # "" where the source has none


class Group(NamedTuple):
    """A dataclass of the configuration, and its own fields (not those of the groups within it)."""

    name: str  # dotted; "" for the configuration itself
    description: str
    fields: list[Field]


def groups() -> list[Group]:
    """Every field that the command line may set, by group."""
    return _groups(TrainConfig(), "")


def _groups(config: Any, name: str) -> list[Group]:
    comments = _comments(sys.modules[type(config).__module__])[type(config).__name__]
    types = get_type_hints(type(config))
    own, inner = [], []
    for part in dataclasses.fields(config):
        value, dotted = getattr(config, part.name), f"{name}.{part.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            inner += _groups(value, dotted)
        elif dotted != ARCHITECTURE:
            own.append(Field(dotted, _spelled(types[part.name]), repr(value), comments.get(part.name, "")))
    return [Group(name, inspect.getdoc(type(config)) or "", own), *inner]


def _spelled(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


@functools.cache
def _comments(module: ModuleType) -> dict[str, dict[str, str]]:
    """Class to field to comment: the comment behind the field in the source, else in the lines above it."""
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    behind: dict[int, str] = {}  # line to comment
    above: dict[int, str] = {}  # the same, for comments that have a line of their own
    for token in tokens:
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            (above if alone else behind)[token.start[0]] = token.string.lstrip("# ")

    def comment(field: ast.AnnAssign) -> str:
        lines = range(field.lineno, (field.end_lineno or field.lineno) + 1)
        if found := " ".join(behind[line] for line in lines if line in behind):
            return found
        first = field.lineno
        while first - 1 in above:
            first -= 1
        return " ".join(above[line] for line in range(first, field.lineno))

    return {
        node.name: {
            field.target.id: comment(field)
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def field_flags() -> dict[str, str]:
    """Every field that the command line may set, and its flag."""
    names = flatten(TrainConfig()).keys() - {ARCHITECTURE}
    return {name: f"{PREFIX}{name}" for name in names} | {"workdir": "--workdir"}


def nearest_field(name: str, known: Collection[str]) -> str:
    """ "did you mean ...?" for a field that does not exist; "" where no field is near.

    A field of another group counts ("train.learning_rate" means optim.learning_rate), the initials of a
    field's words do ("lr"), and the beginning of its words ("warmup"); else the spelling decides.
    """
    last = _last(name)
    for near in (
        [field for field in known if _last(field) == last],
        [field for field in known if _initials(_last(field)) == last],
        [field for field in known if f"{_last(field)}_".startswith(f"{last}_")],
    ):
        if near:
            return did_you_mean(name, near, cutoff=0, prefix=PREFIX)
    return did_you_mean(name, known, cutoff=0.5, prefix=PREFIX)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _initials(words: str) -> str:
    return "".join(word[:1] for word in words.split("_")) if "_" in words else ""

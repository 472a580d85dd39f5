"""Pages of help: the list of commands, and a page for each command."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from absl.flags import Flag

from flax_wavlm.cli.command import Command

ASKED = ("--help", "-help", "-h", "-?", "--helpshort", "--helpfull")
_WIDTH = 110


def overview(commands: Iterable[Command]) -> str:
    """What `flax-wavlm` prints alone: the commands, a line each."""
    return "\n".join(
        [
            "Fine-tune WavLM with a CTC head in JAX, from PyTorch weights and back.",
            "",
            "flax-wavlm COMMAND ...",
            "",
            *table([(command.name, command.summary) for command in commands]),
            "",
            "`flax-wavlm COMMAND --help` lists what a command takes.",
        ]
    )


def page(command: Command) -> str:
    """What `flax-wavlm COMMAND --help` prints."""
    values = command.flags()
    rows = [_row(values[name], name in command.required) for name in values]
    title = "Flags, written --name=value or --name value:"
    parts = [command.description.strip(), "\n".join([title, *table(rows)]), command.more_help()]
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the rows' texts in columns; the last column is wrapped."""
    *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    indent = 2 + sum(width + 2 for width in widths)
    lines = []
    for *first, text in rows:
        start = "  " + "".join(f"{cell:<{width}}  " for cell, width in zip(first, widths, strict=True))
        wrapped = textwrap.wrap(text, _WIDTH - indent) or [""]
        lines += [(start + wrapped[0]).rstrip(), *(" " * indent + line for line in wrapped[1:])]
    return lines


def _row(flag: Flag, required: bool) -> tuple[str, str, str]:
    default = "required" if required else "" if flag.default is None else str(flag.default_as_str).strip("'")
    return f"--{flag.name}", default, str(flag.help)

"""What a command is: its name, its flags, and the function that does its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from absl import flags

from flax_wavlm.errors import UserError, did_you_mean


class Parsed(NamedTuple):
    """A command line, parsed: the values of the flags, and the other arguments."""

    values: flags.FlagValues
    arguments: list[str]


def parse_flags(command: Command, given: Sequence[str]) -> Parsed:
    """Parses flags, written "--name=value" or "--name value" before or after the other arguments.

    Raises:
        UserError: a flag does not exist, has a wrong value, or is missing; too few or too many arguments.
    """
    values = command.flags(given)
    try:
        arguments = values([command.name, *given])[1:]
    except flags.UnrecognizedFlagError as error:
        known = [*(f"--{name}" for name in values), *command.fields.values()]
        hint = did_you_mean(f"--{error.flagname}", known) or f"`flax-wavlm {command.name} --help` lists them"
        raise UserError("there is no such flag", where=f"--{error.flagname}", do=hint) from None
    except (flags.Error, ValueError) as error:
        raise UserError(str(error)) from None
    for name in command.required:
        if values[name].value is None:
            meaning = str(values[name].help).rstrip(".")
            raise UserError(f"--{name} is missing", expected=meaning[0].lower() + meaning[1:])
    optional = command.arguments.startswith("[")
    wanted = command.arguments.strip("[]").split()
    too_many = len(arguments) > len(wanted) and not command.arguments.rstrip("]").endswith("...")
    if (len(arguments) < len(wanted) and not optional) or too_many:
        raise UserError(
            f"found {arguments}, expected {command.arguments or 'no argument'}",
            do="flags are written --name=value",
        )
    return Parsed(values, arguments)


CHANNEL_HELP = "Of recordings with several: auto, mean, left, right, or a number from 0."


@dataclass(frozen=True)
class Command:
    """A command of `flax-wavlm`. Its module's docstring is its page of help.

    No command uses absl's global flags: two commands may have a flag of the same name, and one process may
    run several commands.
    """

    name: str
    description: str  # the first line stands in the list of commands
    # Defines the flags. It is handed the arguments too, as some flags depend on others.
    define: Callable[[flags.FlagValues, Sequence[str]], None]
    run: Callable[[Parsed], int | None]  # does the work; returns the exit status, None for 0
    # Beside flags, e.g. "SOURCE FOLDER"; "FILE..." stands for one or more, "[FILE...]" for any number.
    arguments: str = ""
    required: tuple[str, ...] = ()  # flags that have no default
    # How the library names a setting, and the flag that sets it here: {"data.path": "--data"}.
    fields: Mapping[str, str] = field(default_factory=dict)
    results_on_stdout: bool = False  # the library's messages then go to standard error
    # Turns the arguments into values; a command that has more than plain flags brings its own.
    parse: Callable[[Command, Sequence[str]], Parsed] = parse_flags
    more_help: Callable[[], str] = lambda: ""  # what its page of help says below the flags

    @property
    def summary(self) -> str:
        """The first line of the description."""
        return self.description.partition("\n")[0]

    def flags(self, given: Sequence[str] = ()) -> flags.FlagValues:
        """The command's flags, not yet parsed."""
        values = flags.FlagValues()
        self.define(values, given)
        return values

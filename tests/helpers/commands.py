"""The commands of `flax-wavlm`, run in this process: a process of their own costs seconds each."""

import contextlib
import io
from typing import NamedTuple

from flax_wavlm.cli import app


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str


def run(command: str, *arguments: object) -> Ended:
    """Runs a command with its arguments; they may be paths."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = app.run(app.COMMANDS[command], [str(argument) for argument in arguments])
    return Ended(status, stdout.getvalue(), stderr.getvalue())

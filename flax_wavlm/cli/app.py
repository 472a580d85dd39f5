"""The program: finds the command, shows help and messages, and ends with one line where something is wrong.

`flax-wavlm COMMAND ...` and the scripts of scripts/ start here. Nothing on the way to a command's own work
imports jax, so that help is there at once and a wrong flag is refused at once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from absl import flags
from absl import logging as absl_logging

import flax_wavlm
from flax_wavlm import progress
from flax_wavlm.cli.align import ALIGN
from flax_wavlm.cli.command import Command
from flax_wavlm.cli.convert import CONVERT
from flax_wavlm.cli.evaluate import EVALUATE
from flax_wavlm.cli.export import EXPORT
from flax_wavlm.cli.fit_aligner import FIT_ALIGNER
from flax_wavlm.cli.help import ASKED, overview, page
from flax_wavlm.cli.huge_pages import restart_with_huge_pages
from flax_wavlm.cli.names import in_flags, text_in_flags
from flax_wavlm.cli.segment import SEGMENT
from flax_wavlm.cli.train import TRAIN
from flax_wavlm.cli.train_lm import TRAIN_LM
from flax_wavlm.cli.transcribe import TRANSCRIBE
from flax_wavlm.cli.tune_lm import TUNE_LM
from flax_wavlm.errors import Preempted, UserError, did_you_mean, printable, reason

COMMANDS = {
    command.name: command
    for command in (
        TRAIN,
        EVALUATE,
        TRANSCRIBE,
        ALIGN,
        SEGMENT,
        FIT_ALIGNER,
        TRAIN_LM,
        TUNE_LM,
        CONVERT,
        EXPORT,
    )
}

FAILED = 1  # exit status where something unforeseen happened, or the run's other processes were lost
USAGE = 2  # exit status of a UserError
TRY_AGAIN = 75  # exit status of Preempted: EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # exit status of Ctrl-C, as a shell gives it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program in a process of its own, and returns its exit status.

    `arguments` are those of the process by default: a command's name, then its own arguments.
    """
    _escape_what_the_console_lacks()
    name, *given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ASKED:
        print(overview(COMMANDS.values()))
        return 0
    if name == "--version":
        print(flax_wavlm.__version__)
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or "`flax-wavlm --help` describes them"
        expected = f"one of {', '.join(COMMANDS)}"
        error = UserError("there is no such command", where=name, expected=expected, do=hint)
        return _say(f"error: {error}", USAGE)
    if not asks_for_help(given):
        _set_up_process()
    status = run(COMMANDS[name], given)
    if status not in (0, TRY_AGAIN) and (others := _processes()) is not None:
        others.leave(status)  # they know of a Preempted, but of no error: a usual exit would wait for them
    return status


def run(command: Command, given: Sequence[str]) -> int:
    """Runs a command with its arguments, and returns its exit status.

    A UserError is one line on standard error and status 2. Preempted is status 75, Ctrl-C status 130. An
    exception that nobody foresaw shows its traceback, and is status 1.
    """
    if asks_for_help(given):
        print(page(command))
        return 0
    stream = sys.stderr if command.results_on_stdout else sys.stdout
    with _messages(stream, command.fields), progress.drawn_on(sys.stderr):
        try:
            return command.run(command.parse(command, given)) or 0
        except UserError as error:
            return _say(f"error: {in_flags(error, command.fields)}", USAGE)
        except Preempted as stopped:
            return _say(str(stopped), TRY_AGAIN)
        except KeyboardInterrupt:
            return _say("interrupted; everything saved before stays", INTERRUPTED)
        except Exception as error:
            if type(error).__name__ == "JaxRuntimeError" and _processes() is not None:
                return _say(
                    "error: another process of this run has ended, or cannot be reached "
                    f"({reason(error)}). Look at its last message; the same command in each then resumes",
                    FAILED,
                )
            progress.close_all()
            traceback.print_exc()
            return FAILED


def asks_for_help(given: Sequence[str]) -> bool:
    """Whether a command's arguments ask for its page of help."""
    return any(argument in ASKED for argument in given)


def _say(message: str, status: int) -> int:
    """Prints a message as one line of standard error; the status comes back."""
    progress.close_all()
    print(printable(" ".join(message.splitlines())), file=sys.stderr)
    return status


def _escape_what_the_console_lacks() -> None:
    """Characters that a console's encoding does not have are printed as escapes; they are no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _processes() -> Any:
    """The module of processes where this process is one of several of a run; None where it is alone."""
    # As long as the module is not imported, jax was not needed, and there are no others.
    module: Any = sys.modules.get("flax_wavlm.parallel.processes")
    return module if module is not None and module.count() > 1 else None


def _set_up_process() -> None:
    """Settings of the whole process, before a command does its work."""
    restart_with_huge_pages()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install torch
    flags.FLAGS(["flax-wavlm"])  # libraries ask for absl's own flags: these have their defaults
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.WARNING)
    _hide_repetitions()


def _hide_repetitions() -> None:
    """Keeps the threads that write checkpoints from printing errors that they also hand on to us."""
    of_threads, of_callbacks = threading.excepthook, sys.unraisablehook

    def thread_failed(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("orbax."):
            of_threads(failure)

    def callback_failed(failure: Any) -> None:
        if str(failure.exc_value) != "Event loop is closed":  # tensorstore, after a write that has failed
            of_callbacks(failure)

    threading.excepthook, sys.unraisablehook = thread_failed, callback_failed


class _Messages(logging.Formatter):
    """The bare text of a message; a warning names settings as the command's flags."""

    def __init__(self, fields: Mapping[str, str]):
        super().__init__("%(message)s")
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        text = "\n".join(map(printable, super().format(record).split("\n")))
        return text_in_flags(text, self._fields) if record.levelno >= logging.WARNING else text


class _Handler(logging.StreamHandler):
    """Writes messages above a bar. What a bar shows anyway is not also a line on the same terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_the_bar", False) and progress.visible() and self.stream.isatty():
            return
        with progress.aside():
            super().emit(record)


@contextlib.contextmanager
def _messages(stream: TextIO, fields: Mapping[str, str]) -> Iterator[None]:
    """Shows the library's messages there, and no other library's."""
    logger = logging.getLogger("flax_wavlm")
    before = logger.handlers, logger.level, logger.propagate
    handler = _Handler(stream)
    handler.setFormatter(_Messages(fields))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)

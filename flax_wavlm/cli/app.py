"""What the scripts share: flags, messages, and errors that end in one line."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import app, flags
from absl import logging as absl_logging

from flax_wavlm.errors import Preempted, UserError, reason
from flax_wavlm.files import is_file
from flax_wavlm.training.config import TrainConfig, field_names

FAILED = 1  # exit status of what was not foreseen, and of losing the run's other processes
USAGE = 2  # exit status of a UserError
TRY_AGAIN = 75  # of Preempted: sysexits.h's EX_TEMPFAIL
INTERRUPTED = 130  # of Ctrl-C, as a shell gives it


def run(main: Callable[[list[str]], None], *, arguments: str = "", messages: TextIO | None = None) -> None:
    """Parses the flags, runs `main` with the other arguments, and exits.

    A UserError is one line and status 2, a Preempted status 75, Ctrl-C status 130.

    `arguments` names what the script takes beside flags, e.g. "SOURCE FOLDER" or "FILE..."; as many must be
    given. `messages` is where the library's messages go, standard output by default.
    """
    _use_huge_pages()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install torch
    _hide_repetitions()
    _show_messages(messages or sys.stdout)
    wanted = arguments.split()

    def guarded(argv: Sequence[str]) -> None:
        absl_logging.set_verbosity(absl_logging.WARNING)  # app.run had it show every library's messages
        given = list(argv[1:])
        try:
            if len(given) < len(wanted) or (len(given) > len(wanted) and not arguments.endswith("...")):
                expected = arguments or "no argument"
                raise UserError(f"found {given}, expected {expected}; flags are written --name=value")
            main(given)
        except UserError as error:
            _fail(f"error: {error}", USAGE)
        except Preempted as stopped:
            _fail(str(stopped), TRY_AGAIN)
        except KeyboardInterrupt:
            _fail("interrupted; what was saved before stays", INTERRUPTED)
        except Exception as error:
            if type(error).__name__ == "JaxRuntimeError" and _processes() > 1:
                _fail(
                    "error: another process of this run has ended, or cannot be reached "
                    f"({reason(error)}). Look at what it said; the same command in each then resumes",
                    FAILED,
                )
            traceback.print_exc()
            _leave(FAILED)
            sys.exit(FAILED)

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            check_config_flags(argv[1:])
            return flags.FLAGS(argv)
        except (UserError, flags.Error) as error:
            return _fail(f"error: {error}", USAGE)
        except Exception as error:  # a config file is Python, which can go wrong in every way
            return _fail(f"error: {_in_config_file(error, argv[1:])}", USAGE)

    app.run(guarded, flags_parser=parse)


def _use_huge_pages() -> None:
    """Starts this process again with large pages for large arrays, where glibc and the kernel offer them.

    XLA's CPU backend allocates its temporaries anew at every step. Touched in pages of 4 kB they cost a
    large part of the demo's step. glibc takes this setting at the start of a process only.
    """
    setting = "glibc.malloc.hugetlb=1"
    offer = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" in os.environ or not offer.exists() or "[madvise]" not in offer.read_text():
        return
    sys.stdout.flush()
    os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": setting})


def _in_config_file(error: Exception, arguments: Sequence[str]) -> UserError:
    """What went wrong in the --config file, and in which line of it."""
    file = next(_config_files(arguments), "")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f"{file}:{line}" if line else file
    return UserError(
        f"--config={where}: {type(error).__name__}: {reason(error)}. Expected a Python file whose "
        "get_config() gives a TrainConfig, as those in configs/"
    )


def _fail(message: str, status: int) -> list[str]:
    print(" ".join(message.splitlines()), file=sys.stderr)
    if status != TRY_AGAIN:  # of which all processes of a run have heard
        _leave(status)
    sys.exit(status)


def _processes() -> int:
    """Of this run."""
    # Without the module jax was not needed, and there are no others.
    return (
        sys.modules["flax_wavlm.parallel.processes"].count()
        if "flax_wavlm.parallel.processes" in sys.modules
        else 1
    )


def _leave(status: int) -> None:
    if _processes() > 1:
        sys.modules["flax_wavlm.parallel.processes"].leave(status)


def _hide_repetitions() -> None:
    """Keeps the threads that write checkpoints from printing the errors that they hand on to us as well."""
    of_threads, of_callbacks = threading.excepthook, sys.unraisablehook

    def thread_failed(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("orbax."):
            of_threads(failure)

    def callback_failed(failure: Any) -> None:
        if str(failure.exc_value) != "Event loop is closed":  # tensorstore, after a write that has failed
            of_callbacks(failure)

    threading.excepthook, sys.unraisablehook = thread_failed, callback_failed


def _show_messages(stream: TextIO) -> None:
    """The library's messages, and nobody else's."""
    logger = logging.getLogger("flax_wavlm")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def check_config_flags(arguments: Sequence[str]) -> None:
    """UserError for a config file that is not there, or a field that no configuration has.

    ml_collections would end in a KeyError, and accept a missing file until it is used.
    """
    known = field_names()
    for file in _config_files(arguments):
        if not is_file(Path(file)):
            raise UserError(f"--config={file}: no such file; the recipes are in configs/")
    for argument in arguments:
        flag = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and flag.startswith("config."):
            name = flag.removeprefix("config.")
            if f"{name}.".startswith("model.config."):
                raise UserError(
                    f"--{flag}: an architecture is set in the config file; the command line can change its "
                    "regularisation, as --config.model.overrides.NAME"
                )
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"; did you mean --config.{near[0]}?" if near else ""
                raise UserError(f"--{flag}: there is no such field{hint}")


def _config_files(arguments: Sequence[str]) -> Iterator[str]:
    """The value of each --config flag."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, has_value, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config":
            yield value if has_value else following


def resolve(config: TrainConfig | None, workdir: str, overridden: Collection[str] = ()) -> TrainConfig:
    """The config of a --config flag with the workdir of a --workdir flag, or one named after the config.

    `overridden` are the fields that the command line sets: epochs asked for there replace a recipe's steps.
    """
    if config is None:
        raise UserError("--config is missing, expected a recipe such as --config configs/demo.py")
    if not isinstance(config, TrainConfig):
        raise UserError(f"--config: get_config() gave a {type(config).__name__}, expected a TrainConfig")
    if "train.epochs" in overridden and "train.steps" not in overridden:
        config.train.steps = 0
    config.workdir = workdir or config.workdir or f"runs/{config.name or 'run'}"
    return config

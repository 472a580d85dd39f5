"""Bars on a terminal: how far something is that takes longer than a second.

Nothing is drawn unless `drawn_on` says where. The command line does so; in other programs, a library that
draws would be in the way. One bar is visible at a time: where one begins within another (an evaluation within
a training), the outer one is back at its end. Whatever else writes to the terminal does so inside `aside`.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from flax_wavlm.errors import printable

T = TypeVar("T")

DELAY = 1.0  # seconds until a bar appears
INTERVAL = 0.2  # seconds between drawings
MARGIN = 3  # columns: else the terminal's own ^C would break the line
ON_THE_BAR = {"on_the_bar": True}  # extra of a log record that a visible bar makes superfluous
LAYOUT = "{desc} {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"
WITHOUT_BAR = "{desc} {n_fmt}/{total_fmt}, {remaining} left{postfix}"
LEAST_BAR = 4  # columns

_lock = threading.RLock()
_stream: TextIO | None = None  # where bars are drawn
_open: list[_Line] = []  # the innermost last: it alone is visible


class _Line(tqdm):
    """tqdm's bar. It keeps its delay also where it is drawn anew, and whole notes in a narrow terminal."""

    monitor_interval = 0  # no thread that draws: every `update` looks at the clock
    _lock = _lock  # tqdm's own is one of several processes
    notes: Sequence[str] = ()
    rate: float | None = None  # a second; None: the mean since the beginning
    __eq__, __hash__ = object.__eq__, object.__hash__  # to tqdm, bars of one position are equal

    @property
    def begun(self) -> bool:
        """Whether its delay is over: from then on it has its place on the screen."""
        return not self.disable and self._time() >= self.start_t + self.delay

    @property
    def format_dict(self) -> dict[str, Any]:
        found = super().format_dict
        found |= {"rate": self.rate, "ncols": found["ncols"] and max(found["ncols"] - MARGIN, 1)}
        return found | self._fitted(found)

    def _fitted(self, found: dict[str, Any]) -> dict[str, Any]:
        """As many notes as fit whole, the first ones, and the bar between if there is room for it too."""
        width = found["ncols"] or math.inf
        for count in range(len(self.notes), -1, -1):
            fitted = {"postfix": ", ".join(self.notes[:count])}
            needed = len(self.format_meter(**found | fitted | {"bar_format": WITHOUT_BAR, "ncols": None}))
            if needed <= width:
                break
        return fitted | {"bar_format": LAYOUT if needed + LEAST_BAR <= width else WITHOUT_BAR}

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        return self.begun and bool(super().display(msg, pos))

    def clear(self, nolock: bool = False) -> None:
        if self.begun:
            super().clear(nolock)
            self.fp.write(" " * (self.ncols or 0) + "\r")  # the terminal's ^C stands behind the bar


class Bar:
    """A bar, or nothing where none is drawn: its methods may be called in any case."""

    def __init__(self, line: _Line | None):
        self._line = line
        self._notes: dict[str, str] = {}

    def advance(self, count: int = 1) -> None:
        """Goes on by `count`."""
        if self._line is None:
            return
        with _lock:
            if _open[-1:] == [self._line]:
                self._line.update(count)
            else:
                self._line.n += count

    def begin_at(self, done: int) -> None:
        """Tells that `done` were done before, and that the others begin now."""
        if self._line is not None:
            self._line.initial = self._line.n = self._line.last_print_n = done

    def go_at(self, rate: float) -> None:
        """Takes the time that is left from this rate, a second, in place of the mean; 0: it is not known."""
        if self._line is not None:
            self._line.rate = rate

    def note(self, **notes: str) -> None:
        """Texts behind the bar, each in the place of the earlier one of its name; "" keeps a place free.

        A narrow terminal leaves out those that do not fit, the last ones first.
        """
        if self._line is not None:
            self._notes |= notes
            self._line.notes = [printable(text) for text in self._notes.values() if text]


@contextlib.contextmanager
def drawn_on(stream: TextIO) -> Iterator[None]:
    """Has bars drawn on this stream in the block, if it is a terminal. At its end none is left there."""
    global _stream
    before, _stream = _stream, stream if _suits(stream) else None
    try:
        yield
    finally:
        close_all()
        _stream = before


def _suits(stream: TextIO) -> bool:
    """Whether it is a terminal to which no other program writes, as the reader of a pipe may (`| tee`)."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError):  # no file: output that a program catches
        return True


def drawing() -> bool:
    """Whether bars are drawn at all."""
    return _stream is not None


def visible() -> bool:
    """Whether there is a bar, or will be after its delay."""
    return bool(_open)


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Bar]:
    """A bar for the time of the block: `what` stands before it, `total` is how many there are to do."""
    if _stream is None or not _in_first_process():
        yield Bar(None)
        return
    with _lock:
        if _open:
            _open[-1].clear()
        line = _Line(
            total=total,
            desc=printable(what),
            file=_stream,
            leave=False,
            position=0,  # all share one line of the screen
            delay=DELAY,
            mininterval=INTERVAL,
            miniters=1,
            smoothing=0,  # the time that is left follows from the mean rate so far
            dynamic_ncols=True,
            bar_format=LAYOUT,
        )
        _open.append(line)
    try:
        yield Bar(line)
    finally:
        _close(line)


def _close(line: _Line) -> None:
    with _lock:
        if line in _open:
            _open.remove(line)
            line.clear()
            line.close()
            if _open:
                _open[-1].refresh()


def close_all() -> None:
    """Takes all bars from the screen, before the message about an error that ends what they were about."""
    while _open:
        _close(_open[-1])


def tracked(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The same items, with a bar that goes on by one with each."""
    with bar(what, total) as shown:
        for item in items:
            yield item
            shown.advance()


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Takes the visible bar from the screen for the block, which writes whole lines and flushes them."""
    with _lock:
        if _open:
            _open[-1].clear()
        try:
            yield
        finally:
            if _open:
                _open[-1].refresh()


def time_left(seconds: float) -> str:
    """The text that bars show of it, for a line of the log: "1:02:03 left"."""
    return f"{tqdm.format_interval(seconds)} left"


def _in_first_process() -> bool:
    """Whether this process of a run is the one that shows things. jax is not imported to tell."""
    jax: Any = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0

"""Bars: where they are drawn, what stands in them, and that they leave nothing behind."""

import io
import logging
from collections.abc import Iterator

import pytest

from flax_wavlm import progress
from flax_wavlm.cli import app


class Terminal(io.StringIO):
    """A terminal of one line that scrolls up: `screen` is what one sees."""

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(progress, "DELAY", 1e-9)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    found = Terminal()
    with progress.drawn_on(found):
        yield found


def test_nothing_is_drawn_elsewhere(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(progress, "DELAY", 1e-9)
    stream = io.StringIO()
    with progress.drawn_on(stream):
        assert list(progress.tracked("abc", "reading", 3)) == ["a", "b", "c"]
    assert list(progress.tracked("abc", "reading", 3)) == ["a", "b", "c"]  # as in a library
    assert stream.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_other_processes_draw_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert list(progress.tracked("abc", "reading", 3)) == ["a", "b", "c"]
    assert terminal.getvalue() == ""


def test_a_bar_appears_after_its_delay_alone(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 60.0)
    with progress.bar("step", 9) as shown:
        shown.advance()
        with progress.aside():
            terminal.write("a line\n")
    assert terminal.getvalue() == "a line\n"


def test_lines_stand_above_the_bar_and_nothing_is_left(terminal: Terminal) -> None:
    with progress.bar("step", 9) as shown:
        shown.begin_at(3)
        shown.note(loss="loss 1.5", score="dev WER 0.2")
        shown.note(loss="loss 1.25\x1b[2J")
        shown.advance()
        assert terminal.screen[-1].startswith("step 4/9 |")
        assert terminal.screen[-1].endswith(r"left, loss 1.25\x1b[2J, dev WER 0.2")
        with progress.aside():
            terminal.write("a line\n")
        assert terminal.screen[0] == "a line"
        assert terminal.screen[1].startswith("step 4/9 |")
    assert terminal.screen == ["a line", ""]


@pytest.mark.parametrize(
    ("columns", "drawn"),
    [
        (60, "step 4/9 |#####3      | 00:10 left, loss 1.25, epoch 0.44"),
        (50, "step 4/9 |8 | 00:10 left, loss 1.25, epoch 0.44"),
        (49, "step 4/9, 00:10 left, loss 1.25, epoch 0.44"),
        (45, "step 4/9 |####     | 00:10 left, loss 1.25"),
        (20, "step 4/9, 00:10 l"),
    ],
)
def test_a_narrow_terminal_leaves_out_whole_notes(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int, drawn: str
) -> None:
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (columns, 25))
    with progress.bar("step", 9) as shown:
        shown.go_at(0.5)
        shown.note(loss="loss 1.25", epoch="epoch 0.44")
        shown.advance(4)
        assert terminal.screen[-1] == drawn


def test_one_bar_at_a_time(terminal: Terminal) -> None:
    with progress.bar("step", 9) as outer:
        outer.advance()
        with progress.bar("evaluating", 2) as inner:
            inner.advance()
            outer.advance()
            assert terminal.screen[-1].startswith("evaluating 1/2 |")
        assert terminal.screen[-1].startswith("step 2/9 |")
    assert terminal.screen == [""]


def test_errors_leave_nothing(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    reading = progress.tracked("abc", "reading", 3)
    next(reading), next(reading)
    assert terminal.screen[-1].startswith("reading 1/3")
    app._say("error: bad", 2)
    assert terminal.screen == [""]
    next(reading)
    assert terminal.screen == [""]


@pytest.mark.parametrize("extra", [None, progress.ON_THE_BAR])
def test_what_the_bar_shows_is_no_line_beside_it(terminal: Terminal, extra: dict[str, bool] | None) -> None:
    file = io.StringIO()
    with app._messages(terminal, {}), progress.bar("step", 9):
        logging.getLogger("flax_wavlm.x").info("loss 1", extra=extra)
    with app._messages(file, {}), progress.bar("step", 9):
        logging.getLogger("flax_wavlm.x").info("loss 1", extra=extra)
    assert ("loss 1" in terminal.getvalue()) == (extra is None)
    assert file.getvalue() == "loss 1\n"

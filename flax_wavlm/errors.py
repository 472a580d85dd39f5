"""How a run ends early: bad input, or a request to stop. And what messages have in common."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

MOST_ITEMS = 10  # that a message lists; the others are counted
MOST_CHARACTERS = 200  # that a message shows of one value

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ADVICE = re.compile(r"weights_only|pip3? install|conda install|trust_remote_code|huggingface-cli|hf auth")


class _Absent:
    """Stands for a part that an error does not have, where None could be a value that was found."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


class UserError(Exception):
    """Something the user gave cannot be used: a file, a folder, a configuration, a checkpoint.

    The message is for the user alone, no traceback needed. Scripts print it and exit with status 2. It is put
    together from parts, which tests and programs can look at:

        where: field is found, expected ...; do
        where: problem, found ..., expected ...; do

    Attributes:
        problem: what is wrong, where "field is found" does not say it.
        where: the file, folder, line or clip in question.
        field: the dotted name of a configuration's field ("data.path"), or of a file's. The command line
            writes a configuration's fields as its flags (`flax_wavlm.cli.app`); the library names none.
        found: the value that was found.
        expected: what would have been right.
        do: what to do next.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        where: str | Path = "",
        field: str = "",
        found: Any = ABSENT,
        expected: str = "",
        do: str = "",
    ):
        self.problem, self.where, self.field = problem, str(where), field
        self.found, self.expected, self.do = found, expected, do
        super().__init__(self._text())

    def at(self, where: str | Path) -> UserError:
        """The same error in another place: in the file that the value came from, say."""
        return UserError(
            self.problem, where=where, field=self.field, found=self.found, expected=self.expected, do=self.do
        )

    def _text(self) -> str:
        text = self.problem or self.field
        if self.found is not ABSENT:
            text += f", found {shown(self.found)}" if self.problem else f" is {shown(self.found)}"
        if self.expected:
            text += f", expected {self.expected}"
        if self.do:
            text += f"; {self.do}"
        # Sentences are folded. Names of files are whatever somebody has written, and are to be told apart.
        text = printable(" ".join(text.splitlines()))
        return f"{printable(self.where)}: {text}" if self.where else text


class Preempted(Exception):
    """The run was asked to stop (SIGTERM, or a preemption notice), and has saved all it did.

    The same command goes on from there. Scripts print the message and exit with status 75, which is
    sysexits.h's EX_TEMPFAIL: "try again later".
    """


def cannot_read(
    path: str | Path, error: OSError | ValueError, *, expected: str = "", do: str = ""
) -> UserError:
    """The UserError for a file or folder that the operating system does not let us read."""
    do = do or "check the path and its permissions"
    return UserError(f"cannot be read ({reason(error)})", where=path, expected=expected, do=do)


def cannot_write(path: str | Path, error: Exception, *, do: str = "") -> UserError:
    """The UserError for a file or folder that the operating system, or a library, cannot write."""
    do = do or "see to the disk's space and permissions, or give another place"
    return UserError(f"cannot be written ({reason(error)})", where=path, do=do)


def reason(error: BaseException) -> str:
    """Why another library's call failed: the system's words, or the first line of the exception's.

    Colour codes are left out, and so are sentences of advice, which is about that library and not about this
    one. The exception's type, where nothing is left.
    """
    said = str(getattr(error, "strerror", None) or str(error))
    lines = _COLOUR.sub("", said).strip().splitlines() or [""]
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", lines[0]) if not _ADVICE.search(part)]
    return " ".join(sentences) or type(error).__name__


def did_you_mean(name: str, names: Iterable[str], *, cutoff: float = 0.6, prefix: str = "") -> str:
    """ "did you mean 'NAME'?" for the nearest of the names; "" where none is near.

    `prefix` stands before the name in the text, and does not count where names are compared.
    """
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"did you mean {prefix + near[0]!r}?" if near else ""


def some(items: Collection[Any], most: int = MOST_ITEMS) -> str:
    """The items with commas between them; of many the first ten, and how many more there are."""
    texts = [str(item) for _, item in zip(range(most), items, strict=False)]
    more = len(items) - len(texts)
    return ", ".join(texts) + (f" and {more:,} more" if more else "")


# C0 and C1 controls (a terminal obeys them), separators of lines, what turns text around.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text on one line, with control characters and undecodable bytes of names escaped as Python does."""

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
            return f"\\x{code - 0xDC00:02x}"
        return match[0].encode("unicode_escape", "backslashreplace").decode("ascii")

    return _UNPRINTABLE.sub(escaped, text)


def shown(value: Any) -> str:
    """A value as a message shows it: a list cut at ten items, any other value at 200 characters."""
    if isinstance(value, list | tuple | set | frozenset):
        items = value if isinstance(value, list | tuple) else sorted(value, key=str)
        return some([shown(item) for item in items]) or "none"
    text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."

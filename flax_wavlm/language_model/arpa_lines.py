"""The lines of an ARPA file, plain or gzip, from somebody whom nobody need trust.

The file is read in blocks. No more is read than `HEADER` bytes at first, and then what the counts in the
header promise. So a small file that unpacks to gigabytes is refused early.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from flax_wavlm.errors import UserError, cannot_read
from flax_wavlm.files import is_file

BLOCK = 1 << 22  # bytes read at a time
HEADER = 1 << 20  # bytes that may be read beside those that the counts promise
LONGEST_LINE = 1 << 20
# Bytes that a promised n-gram may have, on average: for each word, and for its numbers and its line.
_WORD, _NUMBERS = 256, 256
_LINE = 64  # bytes that a line counts for beside its own, so that blank ones are bounded, too
# Text of n-grams, each of which differs from the others, is never packed to less than a hundredth.
_BEST_RATIO = 100

_GZIP = b"\x1f\x8b"
_MAGIC = {
    b"mmap lm http://kheafield.com/code": "is a binary file of KenLM",
    b"PK\x03\x04": "is a zip file",
    b"BZh": "is packed by bzip2",
    b"\xfd7zXZ": "is packed by xz",
    b"\x28\xb5\x2f\xfd": "is packed by zstd",
    b"\xff\xfe": "is UTF-16",
    b"\xfe\xff": "is UTF-16",
    _GZIP: "is packed by gzip twice",
}
_DO = {
    "is a binary file of KenLM": "give the ARPA file that it was made from",
    "is UTF-16": "convert it to UTF-8",
}
_BOM = b"\xef\xbb\xbf"


class Lines:
    """The lines of a file one after the other, without their ends; `number` have been taken."""

    def __init__(self, path: Path, file: BinaryIO | gzip.GzipFile, size: int, packed: bool):
        self.path, self.number = path, 0
        self._file, self._size, self._packed = file, size, packed
        self._bound, self._spent, self._begun = HEADER, 0, False
        self._lines: list[bytes] = []
        self._next, self._rest, self._ended = 0, b"", False

    @property
    def where(self) -> str:
        """The file and the line that was taken last."""
        return self.at(self.number)

    def at(self, number: int) -> str:
        """The file and a line of it, for messages."""
        return f"{self.path}, line {number}"

    def take(self, most: int) -> Sequence[bytes]:
        """Some of the next lines, `most` or fewer; none at the end of the file."""
        while self._next == len(self._lines) and not self._ended:
            self._fill()
        taken = self._lines[self._next : self._next + most]
        self._next += len(taken)
        self.number += len(taken)
        self._spend(sum(map(len, taken)) + _LINE * len(taken))
        return taken

    def take_back(self, count: int) -> None:
        """The last ones that `take` gave are to be taken again."""
        self._next -= count
        self.number -= count

    def filled(self) -> bytes | None:
        """The next line that is not blank, without white space around it; None at the end of the file."""
        while taken := self.take(1):
            if line := taken[0].strip():
                return line
        return None

    def rest(self) -> None:
        """Reads to the end of the file. There gzip compares the check sum."""
        while block := self._block():
            self._spend(len(block))

    def promise(self, counts: Sequence[int], line: int) -> None:
        """Allows for this number of n-grams of each length; UserError where the file cannot hold them.

        The promise is made on that line.
        """
        least = sum(count * (2 * n + 2) for n, count in enumerate(counts, start=1))
        room = self._size * (_BEST_RATIO if self._packed else 1)
        if least > room:
            raise UserError(
                f"the counts promise {sum(counts):,} n-grams, which the {self._size:,} bytes of the file "
                "cannot hold",
                where=self.at(line),
                expected="counts that are true",
                do="make or copy the file again, it may be cut off",
            )
        self._bound += sum(count * (_WORD * n + _NUMBERS) for n, count in enumerate(counts, start=1))

    def _spend(self, amount: int) -> None:
        self._spent += amount
        if self._spent > self._bound:
            problem = "is no ARPA file, or has very much before its header"
            if self._bound > HEADER:
                problem = "holds far more than the counts in its header promise"
            raise UserError(
                problem,
                where=self.path,
                expected="an ARPA file, plain or packed by gzip",
                do="check the file",
            )

    def _fill(self) -> None:
        block = self._block()
        if not self._begun:
            _check_kind(self.path, block)
            block, self._begun = block.removeprefix(_BOM), True
        else:
            self._ended = not block
        lines = (self._rest + block).split(b"\n")
        self._rest = b"" if self._ended else lines.pop()
        if self._ended and not lines[-1]:
            lines.pop()
        if b"\0" in block or max(map(len, [*lines, self._rest])) > LONGEST_LINE:
            self._refuse([*lines, self._rest])
        self._lines, self._next = lines, 0

    def _block(self) -> bytes:
        try:
            return self._file.read(BLOCK)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"is damaged or cut off: gzip cannot unpack it ({error})",
                where=self.path,
                expected="a whole file",
                do="make or fetch the file again",
            ) from None
        except OSError as error:
            raise cannot_read(self.path, error) from None

    def _refuse(self, lines: Sequence[bytes]) -> None:
        """Names a line that no text has."""
        for number, line in enumerate(lines, start=self.number + 1):
            if b"\0" in line or len(line) > LONGEST_LINE:
                problem = (
                    "there is a byte 0" if b"\0" in line else f"a line of more than {LONGEST_LINE:,} bytes"
                )
                raise UserError(
                    problem, where=self.at(number), expected="lines of UTF-8 text", do="restore the file"
                )


def _check_kind(path: Path, block: bytes) -> None:
    """UserError for a file that is known to be of another kind, by its first bytes, and for an empty one."""
    for magic, problem in _MAGIC.items():
        if block.startswith(magic):
            do = _DO.get(problem, "unpack it")
            raise UserError(problem, where=path, expected="an ARPA file, plain or packed by gzip", do=do)
    if not block:
        raise UserError("is empty", where=path, expected="an ARPA file", do="make or fetch the file again")


@contextlib.contextmanager
def open_lines(path: Path) -> Iterator[Lines]:
    """The lines of a file; UserError where there is none, or it is another kind of file."""
    if not is_file(path):
        raise UserError("no such file", where=path, expected="an ARPA file", do="check the path")
    try:
        file = path.open("rb")
    except OSError as error:
        raise cannot_read(path, error) from None
    with file:
        size = path.stat().st_size
        packed = file.read(2) == _GZIP
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if packed else contextlib.nullcontext(file) as unpacked:
            yield Lines(path, unpacked, size, packed)

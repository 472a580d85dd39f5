"""Fields of a line that say which part of a file was said: offset and duration, start and end, segments."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax_wavlm.errors import UserError

# The words of a field's name that say what it is, the surer one first; "end_offset" is an end.
_ROLES = {
    "duration": ("duration", "dur"),
    "end": ("end", "stop", "xmax", "tmax"),
    "start": ("start", "begin", "onset", "xmin", "tmin", "offset"),
}
_SECONDS = frozenset({"s", "sec", "secs", "second", "seconds"})
# The like in another unit: whoever passes over it trains on the whole file.
_OTHER_UNITS = frozenset(
    {"ms", "msec", "msecs", "milli", "millis", "millisec", "millisecond", "milliseconds"}
    | {"us", "usec", "microseconds", "ns", "nanoseconds", "min", "minutes"}
    | {"sample", "samples", "frame", "frames", "idx", "index"}
)
_SAY_NOTHING = frozenset(
    {"time", "times", "timestamp", "timestamps", "stamp", "ts", "t", "at", "in", "pos", "position"}
    | {"audio", "segment", "seg", "clip", "chunk", "utt", "utterance", "speech", "speaker"}
)
_PAIRS = re.compile(r"timestamps?|segment|interval|span|time|start_?end", re.IGNORECASE)  # [1.0, 2.5]
_JOINED = re.compile(r"\b(start|begin|end|stop|offset)(time|ms|msec|sec|seconds|samples?|frames?)\b")
_AGREE = 0.1  # seconds that end - start and a stated duration may differ by, since both are rounded


class Part(NamedTuple):
    """Seconds from the beginning of a file; None: from its beginning, to its end, and no stated length."""

    start: float | None = None
    end: float | None = None
    duration: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole file."""
        return self.start is None and self.end is None

    @property
    def is_empty(self) -> bool:
        """Whether it ends where it begins."""
        return self.end is not None and self.end == (self.start or 0.0)

    @property
    def name(self) -> str:
        """What to append to the name of a file, "@3.000-6.500"; "" for the whole file."""
        if self.is_whole:
            return ""
        return f"@{self.start or 0:.3f}-" + ("" if self.end is None else f"{self.end:.3f}")


def part_of(where: str, row: dict[str, Any]) -> Part:
    """The part that a line names.

    `offset` (or `start`, `begin_time`, `startSec`, `segment_start`, ...) with `duration` or `end` is a part,
    also from 0 on. `duration` alone states the length of the whole file, and an offset of 0 alone says
    nothing.

    Raises UserError for a value that is not a time, an end before its start, an end and a duration that
    contradict each other, and fields that say the like in another unit.
    """
    _check_units(where, row)
    start_name, start = _time(where, row, "start")
    end_name, end = _time(where, row, "end")
    duration_name, duration = _time(where, row, "duration")
    if start is not None and end is None and duration is None and row.get("length") is not None:
        raise UserError(
            f"{start_name} has no duration, and `length` does not say its unit",
            where=where,
            field="length",
            found=row["length"],
            expected="duration or end, in seconds",
            do="correct the line",
        )
    if end is not None:
        begin = start or 0.0
        if end < begin:
            raise UserError(
                f"{end_name} lies before {start_name or 'the beginning'}, {begin:g} s",
                where=where,
                field=end_name,
                found=row[end_name],
                expected="an end after the start",
                do="correct the line",
            )
        if duration is not None and abs(end - begin - duration) > _AGREE:
            raise UserError(
                f"{duration_name} contradicts {end_name}, which makes {end - begin:g} s",
                where=where,
                field=duration_name,
                found=duration,
                expected="the length of the part",
                do="correct the line, or leave one of them out",
            )
        return Part(begin, end, end - begin if duration is None else duration)
    if start is not None and duration is not None:
        return Part(start, start + duration, duration)
    return Part(start or None, None, duration)


def names_of_times(row: dict[str, Any]) -> list[str]:
    """The fields of a line that may say which part of a file was said."""
    return [
        name for name, value in row.items() if value is not None and _meaning(name)[0] in ("start", "end")
    ]


def segments_of(where: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects in `segments`, a part of the file each; none where the line has no such field.

    Raises UserError where it is no list of objects, or the line itself names a part as well.
    """
    segments = row.get("segments")
    if segments is None or segments == []:
        return []
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise UserError(
            where=where,
            field="segments",
            found=segments,
            expected="a list of objects with start, end and text",
            do="correct the line",
        )
    for name in row:
        if row[name] and _meaning(name)[0] in ("start", "end"):
            raise UserError(
                f"both segments and {name} say which part it is",
                where=where,
                field=name,
                expected="one of them",
                do="correct the line",
            )
    return segments


def alias(where: str, row: dict[str, Any], names: Sequence[str]) -> str:
    """The name under which a line has a field, "" where it has none. None counts as absent.

    Raises UserError where it has the field under two names with different values.
    """
    there = [name for name in names if row.get(name) is not None]
    for other in there[1:]:
        if row[other] != row[there[0]]:
            raise UserError(
                f"{there[0]} is {row[there[0]]!r:.80} and {other} is {row[other]!r:.80}",
                where=where,
                field=other,
                expected="one of the two fields, as they mean the same",
                do="remove or rename one",
            )
    return there[0] if there else ""


@functools.lru_cache(maxsize=1000)
def _meaning(name: str) -> tuple[str, bool]:
    """ "startTime_ms" to "start" and whether it is in seconds; "" for the name of anything else.

    Each word of the name must be known: "start_word" and "end_of_turn" are of something else.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    found = _JOINED.sub(r"\1 \2", re.sub(r"[^a-z]+", " ", words)).split()
    role = next((role for role, known in _ROLES.items() if set(known) & set(found)), "")
    rest = set(found) - {word for known in _ROLES.values() for word in known}
    if not role or not rest <= _SECONDS | _OTHER_UNITS | _SAY_NOTHING:
        return "", True
    return role, not rest & _OTHER_UNITS


def _time(where: str, row: dict[str, Any], role: str) -> tuple[str, float | None]:
    """The field's name in this line, and its seconds; "" and None where the line has none."""
    there = [name for name in row if row[name] is not None and _meaning(name) == (role, True)]
    times = {name: _seconds(where, row, name) for name in there}
    name = alias(where, times, there)
    return name, times[name] if name else None


def _seconds(where: str, row: dict[str, Any], name: str) -> float:
    value = row[name]
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(
            where=where, field=name, found=value, expected="seconds from 0", do="correct the line"
        )
    return seconds


def _check_units(where: str, row: dict[str, Any]) -> None:
    """UserError for what may say the part, and cannot be understood; a length alone need not be."""
    there = {name: _meaning(name) for name, value in row.items() if value is not None}
    for name, (role, in_seconds) in there.items():
        other_unit = not in_seconds and (role != "duration" or ("start", True) in there.values())
        if other_unit or (_PAIRS.fullmatch(name) and _is_pair(row[name])):
            raise UserError(
                where=where,
                field=name,
                found=row[name],
                expected="times in seconds, in fields named start and end, or offset and duration",
                do="convert it, or rename the field where it does not say which part of the file was said",
            )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(time) in (int, float) for time in value)

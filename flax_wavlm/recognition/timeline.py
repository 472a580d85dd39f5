"""Times as files of transcripts have them: whole milliseconds, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]  # begin and end, in milliseconds


def milliseconds(seconds: Sequence[tuple[float, float]], duration: float, *, least: int = 0) -> list[Span]:
    """`in_order` of begins and ends in seconds; `duration` is the recording's, in seconds."""
    spans = [(round(1000 * start), round(1000 * end)) for start, end in seconds]
    return in_order(spans, round(1000 * duration), least=least)


def in_order(spans: Sequence[Span], whole: int, *, least: int = 0) -> list[Span]:
    """Spans without overlap that follow one another between 0 and `whole`; those that do so stay as they are.

    Begins count more than ends: a span that goes on beyond the next one's begin ends there.

    Args:
        least: how long each span must be. Its neighbours give way. Where the recording is too short for all,
            the last ones lie beyond it.
    """
    whole = max(whole, least * len(spans))
    starts, earliest = [], 0
    for start, _ in spans:
        starts.append(max(start, earliest))
        earliest = starts[-1] + least
    nexts, latest = [], whole
    for i in reversed(range(len(starts))):
        nexts.append(latest)
        starts[i] = latest = min(starts[i], latest - least)
    return [
        (start, min(max(end, start + least), following))
        for start, (_, end), following in zip(starts, spans, reversed(nexts), strict=True)
    ]

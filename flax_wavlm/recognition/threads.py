"""Decoding that goes on in threads while the device, and whoever collects what it gives, go on too."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

import jax
import numpy as np

T = TypeVar("T")

MOST_BYTES = 2**28  # of arrays that wait for a thread, or are worked on


class Decoding(Generic[T]):
    """Calls a function in threads, one for each core; or at once, where that takes no time.

    Use it in a `with` block: at its end, calls that have not begun are dropped.
    """

    def __init__(self, function: Callable[..., T], *, in_threads: bool, most_bytes: int = MOST_BYTES):
        """
        Args:
            function: of arrays, and of anything else.
            in_threads: False: each call is done when its future is returned.
            most_bytes: of the arrays of calls that are not done; one call alone may have more.
        """
        self._function, self._most = function, most_bytes
        self._threads = ThreadPoolExecutor(cores()) if in_threads else None
        self._waiting: deque[tuple[Future[T], int]] = deque()
        self._bytes = 0

    def __call__(self, *arguments: Any) -> Future[T]:
        """The function's result, or its exception, once it is there. It waits where much waits already."""
        if self._threads is None:
            done: Future[T] = Future()
            done.set_result(self._function(*arguments))
            return done
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments) if isinstance(leaf, np.ndarray))
        while self._waiting and (self._waiting[0][0].done() or self._bytes + size > self._most):
            future, held = self._waiting.popleft()
            future.exception()  # waits; it is raised where the result is asked for
            self._bytes -= held
        future = self._threads.submit(self._function, *arguments)
        self._waiting.append((future, size))
        self._bytes += size
        return future

    def __enter__(self) -> Decoding[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


def cores() -> int:
    """The cores that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(items: Iterable[T], ready: Callable[[T], bool]) -> Iterator[T]:
    """The same items in their order: each when it and all before it are ready, or when no other comes."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        while waiting and ready(waiting[0]):
            yield waiting.popleft()
    yield from waiting

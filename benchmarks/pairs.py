"""Two libraries measured fairly: a long-lived process each, working in turns, and what they took as JSON.

The ratio of a pair of neighbouring blocks is what counts: a machine that is slow for a minute is slow for
both. The processes keep the libraries' thread pools and memory apart, and only one of them works at a time.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy")


# --- Command line -------------------------------------------------------------------------------------------


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for each side, with --device cpu")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes: does the script work?")
    parser.add_argument("--results", type=Path, help="folder; default: benchmarks/results, none to rehearse")
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Settings of the environment that both sides inherit; to be called before the first worker starts."""
    os.environ["JAX_PLATFORMS"] = options.device
    # Large arrays in large pages, as flax_wavlm.cli.huge_pages does it. It speeds both sides up.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # of a card that two processes share
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.rehearse:
        options.cores = 1  # torch's threads wait for each other, for seconds where the machine is busy
    if options.device == "cpu":
        # Both libraries count their threads by it, and this process's own short work stays there too.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, str]:
    """The options, and the command that a result is kept under."""
    return parser.parse_args(), " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


# --- Workers ------------------------------------------------------------------------------------------------


class Worker:
    """An object in a process of its own. Calling the worker calls one of the object's methods there.

    `maker`, "module:name", is imported there and called with the other arguments.
    """

    def __init__(self, maker: str, *args: Any, **kwargs: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, maker, args, kwargs))
        self._process.start()
        theirs.close()
        self._receive()

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self._pipe.send((method, args, kwargs))
        return self._receive()

    def _receive(self) -> Any:
        try:
            done, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(f"a worker died with status {self._process.exitcode}; out of memory?") from None
        if not done:
            raise SystemExit(f"a worker failed:\n{value}")
        return value

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, maker: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        module, name = maker.split(":")
        side = getattr(importlib.import_module(module), name)(*args, **kwargs)
        pipe.send((True, None))
        while True:
            method, args, kwargs = pipe.recv()
            pipe.send((True, getattr(side, method)(*args, **kwargs)))
    except EOFError:
        return
    except Exception:
        pipe.send((False, traceback.format_exc()))


@contextmanager
def workers(**makers: Callable[[], Worker]) -> Iterator[list[Worker]]:
    """The workers, started one after the other, and ended with the block."""
    started: list[Worker] = []
    try:
        for make in makers.values():
            started.append(make())
        yield started
    finally:
        for worker in started:
            worker.close()


def at_once(function: Callable[[Worker], Any], several: list[Worker]) -> list[Any]:
    """What the function gives for each worker, all of them working at the same time: not for timings."""
    with ThreadPoolExecutor(len(several)) as pool:
        return list(pool.map(function, several))


def peak_rss() -> int:
    """The most bytes of memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- Statistics ---------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Median and range of some blocks."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


class Pairs(NamedTuple):
    """Blocks in turns: ours, theirs, ours, theirs; and each pair's ratio, below 1 where ours is faster."""

    ours: Spread
    theirs: Spread
    ratio: Spread
    blocks: int


def alternate(ours: Callable[[], float], theirs: Callable[[], float], blocks: int) -> Pairs:
    """Measures `blocks` pairs after one of each to warm up. Both functions give seconds."""
    ours(), theirs()
    a, b = [], []
    for _ in range(blocks):
        a.append(ours())
        b.append(theirs())
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return Pairs(Spread.of(a), Spread.of(b), Spread.of(ratios), blocks)


# --- Results ------------------------------------------------------------------------------------------------


def row(
    job: str,
    unit: str,
    ours: float,
    *,
    theirs: float | None = None,
    ratio: Spread | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
    **details: Any,
) -> dict[str, Any]:
    """One line of the table. The target, if there is one, is on the ratio where there is a ratio."""
    value = ours if ratio is None else ratio.median
    target, met = None, None
    if at_most is not None:
        target, met = f"<= {at_most:g}", value <= at_most
    if at_least is not None:
        target, met = f">= {at_least:g}", value >= at_least
    return {
        "job": job,
        "unit": unit,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio._asdict() if ratio else None,
        "target": target,
        "met": met,
        **details,
    }


def write(options: argparse.Namespace, ran: str, device: str, rows: list[dict[str, Any]]) -> None:
    """Prints the rows, and puts them in place of those of the same command, and of the same jobs."""
    for line in rows:
        print(f"{describe(line)}")
    folder = options.results or (None if options.rehearse else RESULTS)
    if folder is None:
        return
    name = Path(sys.argv[0]).stem
    path = folder / f"{name}-{device}.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    common = {"command": ran, "environment": environment()}
    new = [line | common for line in rows]
    jobs = {line["job"] for line in rows}
    old = [line for line in kept if line["command"] != ran and line["job"] not in jobs]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as scratch:
        json.dump({"benchmark": name, "device": device, "rows": old + new}, scratch, indent=1)
        scratch.write("\n")
    os.chmod(scratch.name, 0o644)
    os.replace(scratch.name, path)
    print(f"written to {path}")


def describe(line: dict[str, Any]) -> str:
    """A row as one line for a person."""
    text = f"{line['job']}: {line['ours']:.4g} {line['unit']}"
    if line["theirs"] is not None:
        text += f", theirs {line['theirs']:.4g}"
    if line["ratio"] is not None:
        text += ", ratio {median:.3f} ({low:.3f} to {high:.3f})".format(**line["ratio"])
    if line["target"] is not None:
        text += f", target {line['target']}: {'met' if line['met'] else 'MISSED'}"
    return text


def environment() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "python": platform.python_version(),
        "cpu": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[2],  # processes that wanted to run, mean of 15 minutes: 2 cores need <= 2
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        **versions,
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def slug(device: str) -> str:
    """A device's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")

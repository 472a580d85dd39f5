"""What `train --dry_run` foretells, against the run that follows it: memory and time.

    python benchmarks/dry_run.py

For the demo (cut to 300 steps) and a model of wavlm-base's size (random weights, 4 clips a step), both on
synthetic speech. The dry run comes first and keeps what it compiled, as for anybody who makes one. Memory is
the largest amount that the training process holds for itself (RssAnon and RssShmem of Linux, which leave out
what is mapped from files), read every few milliseconds from its first step to its end. Time counts from the
first step to the end of the last evaluation. The runs fit no aligner at their end, which a dry run does not
foretell. Both ratios are foretold over measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pairs

ROOT = Path(__file__).parents[1]
MEMORY, SECONDS = 0.1, 0.2  # how far foretold and measured may be apart
PAUSE = 0.003  # seconds between two readings of a process's memory

BASE = """
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.training.config import *

def get_config():
    return TrainConfig(
        name="base",
        model=ModelSettings(config=WavLMConfig()),
        data=DataSettings(corpus="synthetic", buckets=2, dev="dev"),
        train=LoopSettings(batch_size=4),
        optim=OptimSettings(warmup_steps=1),
    )
"""


class Job(NamedTuple):
    name: str
    config: str  # a recipe, or the text of one
    clips: tuple[int, int]  # of train and dev
    steps: int
    eval_every: int


JOBS = (Job("demo", "demo", (2000, 100), 300, 100), Job("base", BASE, (200, 16), 24, 8))


class Measured(NamedTuple):
    bytes: int
    seconds: float


def command(job: Job, folder: Path) -> list[str]:
    recipe = folder / f"{job.name}.py"
    if job.config == BASE:
        recipe.write_text(BASE)
    train, dev = job.clips
    return [
        sys.executable,
        "-u",
        str(ROOT / "scripts" / "train_flax.py"),
        f"--config={recipe if recipe.exists() else job.config}",
        f"--workdir={folder / job.name}",
        f"--config.data.path={folder / f'speech-{train}'}",
        f"--config.data.synthetic.train_clips={train}",
        f"--config.data.synthetic.dev_clips={dev}",
        f"--config.data.synthetic.test_clips={dev}",
        f"--config.train.steps={job.steps}",
        f"--config.train.eval_every={job.eval_every}",
        "--config.train.log_every=1000",
        "--config.train.aligner=false",
        "--config.optim.warmup_steps=1",
    ]


def held(pid: int) -> int:
    """Bytes that a process holds for itself."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in status)
    return sum(int(sizes[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in sizes)


def measure(job: Job, folder: Path, environment: dict[str, str]) -> Measured:
    """The run itself, watched."""
    first, last, most = 0.0, 0.0, 0
    with subprocess.Popen(
        command(job, folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:

        def watch() -> None:
            nonlocal most
            while process.poll() is None:
                try:
                    now = held(process.pid)
                except OSError:  # it has ended meanwhile
                    return
                most = max(most, now if first else 0)
                time.sleep(PAUSE)

        watcher = threading.Thread(target=watch)
        watcher.start()
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("compiling the step") and not first:
                first = time.perf_counter()
            if f"step {job.steps}/{job.steps}  dev" in line:
                last = time.perf_counter()
        watcher.join()
    if process.returncode or not last:
        raise SystemExit("".join(said))
    return Measured(most, last - first)


def compared(job: Job, folder: Path, *, full: bool) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command(job, folder), "--dry_run"], check=True, env=environment)
    found = json.loads((folder / job.name / "dry_run.json").read_text())
    measured = measure(job, folder, environment)
    lines = []
    for what, unit, foretold, there, limit in (
        ("memory", "GB", found["peak_bytes"] / 1e9, measured.bytes / 1e9, MEMORY),
        ("time", "s", found["total_seconds"], measured.seconds, SECONDS),
    ):
        off = abs(foretold / there - 1)
        lines += [
            pairs.row(f"{job.name}: {what} foretold, against the run's", unit, foretold, theirs=there),
            pairs.row(f"{job.name}: {what}, off by", "of the run's", off, at_most=limit if full else None),
        ]
    return lines


def command_line() -> argparse.ArgumentParser:
    return pairs.arguments(__doc__)


def main() -> None:
    options, ran = pairs.parse(command_line())
    options.device = "cpu"
    pairs.prepare(options)
    jobs = [Job("demo", "demo", (60, 10), 4, 2)] if options.rehearse else JOBS
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            lines += compared(job, Path(folder), full=not options.rehearse)
    pairs.write(options, ran, "cpu", lines)


if __name__ == "__main__":
    main()

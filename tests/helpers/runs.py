"""Starting scripts/train_flax.py as users do, in processes of its own, and looking at what they leave."""

import ctypes
import json
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from helpers import xla

ROOT = Path(__file__).parents[2]
TIMES = ("audio_seconds_per_second", "data_wait")
TRAIN_CLIPS, TEST_CLIPS = 20, 12  # three batches of 8 an epoch, the last one half full


def write_noise_corpus(folder: Path, *, train: int = TRAIN_CLIPS, test: int = TEST_CLIPS) -> Path:
    """A manifest corpus of noise, 0.5 to 1.2 s a clip, with short random texts."""
    rng, words = np.random.default_rng(0), random.Random(0)
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        lines = []
        for i in range(count):
            name = f"{split}{i:02d}.wav"
            samples = rng.normal(0, 1000, rng.integers(8_000, 19_200)).astype(np.int16)
            soundfile.write(folder / name, samples, 16_000)
            text = "".join(words.choices("abc ", k=6)).strip() or "a"
            lines.append(json.dumps({"audio_filepath": name, "text": text}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


class Trainer:
    """A training process: its output line by line as it comes, and its end."""

    def __init__(
        self,
        data: Path,
        workdir: Path,
        *flags: str,
        devices: int = 1,
        process: tuple[int, int, int] | None = None,  # index, count, port of the coordinator
        environment: dict[str, str] | None = None,
        **popen: Any,
    ):
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla.flags(devices),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            # What takes under a second to compile is kept too: many short starts.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if process:
            index, count, port = process
            env |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "scripts/train_flax.py"),
                f"--config={ROOT / 'tests/helpers/tiny_config.py'}",
                f"--workdir={workdir}",
                f"--config.data.path={data}",
                *flags,
            ],
            env=env | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=workdir.parent,
            **popen,
        )
        self.output = ""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, text: str, seconds: float = 480) -> bool:
        """True once a line holds the text; False if the process ends without."""
        end = time.monotonic() + seconds
        while True:
            line = self._lines.get(timeout=max(end - time.monotonic(), 0.001))
            if line is None:
                self._lines.put(None)
                return False
            self.output += line
            if text in line:
                return True

    def finish(self, seconds: float = 480) -> int:
        """Its exit status; all its output is then in `output`."""
        self.wait_for("\0", seconds)
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(
    data: Path, workdir: Path, *flags: str, count: int = 2, devices: int = 4, **kwargs: Any
) -> list[Trainer]:
    """A run of several processes, which find each other on the loopback interface."""
    port = free_port()
    return [
        Trainer(data, workdir, *flags, devices=devices, process=(index, count, port), **kwargs)
        for index in range(count)
    ]


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what a wall clock measured."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def final_state(workdir: Path, step: int) -> dict[str, int]:
    """Checksums of all that the last checkpoint holds: parameters, optimizer, totals."""
    record = json.loads((workdir / f"checkpoints/{step}/record/metadata").read_text())
    return record["record"]["checksums"]


def assert_same_run(ours: Path, expected: Path, step: int) -> None:
    """Bit for bit: metrics, parameters and optimizer, predictions, exported weights."""
    assert metrics(ours) == metrics(expected)
    keys = [(row["step"], row["split"], row.get("averaged")) for row in metrics(ours)]
    assert len(keys) == len(set(keys))
    assert final_state(ours, step) == final_state(expected, step)
    for file in ("export/model.safetensors", f"predictions/{step}.jsonl"):
        assert (ours / file).read_bytes() == (expected / file).read_bytes(), file


def without_root_rights() -> None:
    """For a child process: root too is to obey the permissions of files (Linux; capabilities(7))."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP

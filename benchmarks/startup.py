"""Everything before the first step: the command, compiling, and porting a checkpoint.

    python benchmarks/startup.py

demo      seconds from `train_flax.py --config configs/demo.py` to its first step, its corpus being there:
          with an empty compilation cache, and with the one that a run before has filled.
compile   the 24-layer training step of wavlm-large, tracing and compiling, without a cache.
port      wavlm-large of random weights, from safetensors: seconds, and the process's peak memory over the
          file's size. Theirs is transformers' from_pretrained. Imports are not counted in the seconds;
          in the memory they are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pairs
import workload
from pairs import Spread, Worker

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_flax.py"
CONFIG = Path(__file__).parents[1] / "configs" / "demo.py"


def first_step(scratch: Path, cache: Path, *, small: bool) -> float:
    """Seconds from the command to the log line of the first step; then the run is ended."""
    tiny = ("data.synthetic.train_clips=64", "data.synthetic.test_clips=24", "data.buckets=1")
    arguments = [
        sys.executable,
        str(SCRIPT),
        f"--config={CONFIG}",
        f"--config.data.path={scratch / 'speech'}",
        "--config.train.log_every=1",
        *(f"--config.{setting}" for setting in tiny if small),
    ]
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
    }
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(dir=scratch) as workdir,
        subprocess.Popen(
            [*arguments, f"--workdir={workdir}"],
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("step 1/"):
                taken = time.perf_counter() - start
                process.kill()
                return taken
    raise SystemExit(f"no first step:\n{''.join(said)}")


class Compilation:
    """The training step of random weights that never exist: shapes are enough to compile it."""

    def __init__(self, chosen: dict[str, Any], clips: int, seconds: float):
        import jax

        from flax_wavlm.models.config import WavLMConfig
        from flax_wavlm.models.heads import structure
        from flax_wavlm.models.parameters import partition
        from flax_wavlm.parallel import sharding
        from flax_wavlm.recognition.ctc_loss import loss_of_ctc
        from flax_wavlm.training.optimizer import adamw, linear_schedule
        from flax_wavlm.training.state import init_state
        from flax_wavlm.training.step import jit_encode, jit_train_step, make_train_step, with_features

        start = time.perf_counter()
        config = WavLMConfig(**chosen)
        graphdef, shapes = structure(config)
        trained, frozen = partition(shapes, freeze_feature_encoder=True)
        optimizer = adamw(linear_schedule(1e-4, 0, 100_000), weight_decay=0.005, clip_norm=1.0)
        state = jax.eval_shape(lambda *p: init_state(*p, optimizer), trained, frozen)
        step = make_train_step(graphdef, optimizer, loss_of_ctc(0), seed=0)
        batch = workload.make_batch(clips, seconds)
        mesh = sharding.make_mesh()
        encode = jit_encode(config, mesh)
        batch = with_features(jax.eval_shape(encode, state.frozen, batch), batch)
        lowered = [
            encode.lower(state.frozen, workload.make_batch(clips, seconds)),
            jit_train_step(step, mesh, state).step.lower(state, batch),
        ]
        traced = time.perf_counter()
        for program in lowered:
            program.compile()
        self.taken = (traced - start, time.perf_counter() - traced)

    def seconds(self) -> tuple[float, float]:
        """Tracing and compiling."""
        return self.taken


def write_checkpoint(folder: Path, chosen: dict[str, Any]) -> None:
    """Random weights, as transformers would save them."""
    import json

    import numpy as np
    from safetensors.numpy import save_file

    from flax_wavlm.models.config import WavLMConfig
    from flax_wavlm.porting.table import table

    config = WavLMConfig(**chosen)
    random = np.random.default_rng(0)
    tensors = {entry.name: random.random(entry.shape, np.float32) for entry in table(config)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_hf()))


class FlaxPort:
    """A checkpoint in our model, on the device."""

    def __init__(self, folder: Path):
        import jax

        from flax_wavlm.models.parameters import split
        from flax_wavlm.porting.load import load_model

        jax.devices()
        start = time.perf_counter()
        jax.block_until_ready(split(load_model(folder))[1])
        self.taken = time.perf_counter() - start
        self.peak = pairs.peak_rss()

    def figures(self) -> tuple[float, int]:
        """Seconds, and bytes of peak memory."""
        return self.taken, self.peak


class TorchPort(FlaxPort):
    """The same checkpoint in transformers' model."""

    def __init__(self, folder: Path, threads: int):
        import torch
        from transformers import WavLMForCTC

        torch.set_num_threads(threads)
        start = time.perf_counter()
        model = WavLMForCTC.from_pretrained(folder)
        sum(float(tensor.flatten()[0]) for tensor in model.state_dict().values())
        self.taken = time.perf_counter() - start
        self.peak = pairs.peak_rss()


def ask(method: str, maker: str, *args: Any) -> Any:
    """What a method of an object in a fresh process gives."""
    worker = Worker(maker, *args)
    answer = worker(method)
    worker.close()
    return answer


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--parts", nargs="+", default=["demo", "compile", "port"], metavar="PART")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    large = workload.settings("large")
    if options.rehearse:
        large, options.repeats = workload.settings("tiny"), 1
    pairs.prepare(options)
    full = not options.rehearse
    lines = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if "demo" in options.parts:
            if full:
                first_step(scratch, scratch / "unused", small=False)  # makes the corpus
            cold, warm = [], []
            for i in range(options.repeats):
                cold.append(first_step(scratch, scratch / f"cache{i}", small=not full))
                warm.append(first_step(scratch, scratch / f"cache{i}", small=not full))
            for job, taken, target in (("cold", cold, None), ("warm", warm, 12)):
                spread = Spread.of(taken)
                lines.append(
                    pairs.row(
                        f"demo, command to first step, {job} compilation cache",
                        "s",
                        spread.median,
                        at_most=target if full else None,
                        range=spread[1:],
                    )
                )
        if "compile" in options.parts:
            os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
            taken = [
                ask("seconds", "startup:Compilation", large, 2, 4.0 if full else 1.0)
                for _ in range(options.repeats)
            ]
            spread = Spread.of([sum(pair) for pair in taken])
            lines.append(
                pairs.row(
                    f"compile the {large['num_hidden_layers']}-layer training step",
                    "s",
                    spread.median,
                    at_most=6 if full else None,
                    range=spread[1:],
                    trace_seconds=statistics.median(pair[0] for pair in taken),
                    compile_seconds=statistics.median(pair[1] for pair in taken),
                )
            )
        if "port" in options.parts:
            Worker("startup:write_checkpoint", scratch, large).close()
            size = (scratch / "model.safetensors").stat().st_size
            peaks: list[tuple[int, int]] = []

            def ours() -> float:
                taken, peak = ask("figures", "startup:FlaxPort", scratch)
                peaks.append((peak, 0))
                return taken

            def theirs() -> float:
                taken, peak = ask("figures", "startup:TorchPort", scratch, options.cores)
                peaks[-1] = (peaks[-1][0], peak)
                return taken

            measured = pairs.alternate(ours, theirs, options.repeats)
            share = [statistics.median(peak[i] for peak in peaks) / size for i in (0, 1)]
            what = f"port {'wavlm-large' if full else 'a tiny model'} ({size / 1e9:.2f} GB)"
            lines += [
                pairs.row(
                    f"{what}, time",
                    "s",
                    measured.ours.median,
                    theirs=measured.theirs.median,
                    at_most=8 if full else None,
                    seconds_ratio=measured.ratio._asdict(),
                ),
                pairs.row(
                    f"{what}, peak memory",
                    "of the file",
                    share[0],
                    theirs=share[1],
                    at_most=1.6 if full else None,
                ),
            ]
    pairs.write(options, ran, options.device, lines)


if __name__ == "__main__":
    main()

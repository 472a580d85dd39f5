"""Where the time of our training step goes: each part's share of the busy time that the profiler saw.

    python benchmarks/profile_step.py --size base --batch 4 --steps 2
    python benchmarks/profile_step.py --device cuda --size large --batch 32 --dtype bfloat16 --steps 5

Parts are the model's and the step's named scopes, forward and backward together. On a CPU an operation's time
is that of the thread that began it, however many worked at it.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import workload
from pairs import Worker

SCOPES = (
    "feature_encoder",
    "feature_projection",
    "positional_conv",
    "attention",
    "feed_forward",
    "ctc_loss",
    "optimizer",
)


def part(name: str) -> str:
    """The part of the step that an operation's `op_name` puts it into."""
    found = next((scope for scope in SCOPES if re.search(rf"\b{scope}\b", name)), None)
    if found:
        return found
    # A loop's slices of stacked arrays; copies and zeros of the compiler's own have no name.
    if re.search(r"dynamic_(update_)?index_in_dim|dynamic_(update_)?slice", name) or not name:
        return "moving and filling arrays"
    return "layer norms, residuals, LayerDrop" if re.search(r"while/body|eval_jaxpr", name) else "rest"


def op_names(hlo: str) -> dict[str, str]:
    """The `op_name` of every operation of a compiled program, "" where it has none."""
    lines = re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", hlo, re.MULTILINE)
    found = ((name, re.search(r'op_name="([^"]*)"', text)) for name, text in lines)
    return {_plain(name): match[1] if match else "" for name, match in found}


def _plain(name: str) -> str:
    """An operation's name, as the kernel of a GPU spells it."""
    return re.sub(r"[.\-]", "_", name)


# Kernels on a GPU that XLA did not make. Inside of a CUDA graph nothing tells which operation they belong to.
KERNELS = {
    r"nvjet|gemm|cutlass": "matrix products by cuBLAS, of any part",
    r"sdpa|fmha|matmul_dq|compute_dot_do_o": "attention by cuDNN",
    r"^(attention_(forward|backward)|gates_backward)": "attention by our kernels",
    r"^(layer|residual)_norm": "layer norms, residuals, LayerDrop",
    r"^ctc_forward": "ctc_loss",
    r"memcpy|memset": "moving and filling arrays",
}


def busy(folder: Path, program: str, names: dict[str, str]) -> dict[str, float]:
    """Microseconds of each part, from the trace that jax.profiler has left in the folder."""
    (trace,) = folder.rglob("*.trace.json.gz")
    taken: collections.Counter[str] = collections.Counter()
    with gzip.open(trace) as file:
        for event in json.load(file)["traceEvents"]:
            details = event.get("args", {})
            if event.get("ph") != "X" or "hlo_op" not in details:
                continue
            operation = _plain(details["hlo_op"])
            if re.match(r"while(_|$)", operation):  # its body's operations are counted
                continue
            # The frozen encoder is a program of its own.
            inside = details.get("hlo_module", "").startswith(program)
            taken[_where(operation, event["name"], names) if inside else "feature_encoder"] += event["dur"]
    if not taken:
        raise SystemExit(f"{trace} names no operation: this profiler does not tell where the time goes")
    return dict(taken)


def _where(operation: str, kernel: str, names: dict[str, str]) -> str:
    """The part that an operation belongs to, or, in a CUDA graph of many operations, one of its kernels."""
    if not operation.startswith("command_buffer"):
        return part(names.get(operation, ""))
    if _plain(kernel) in names:
        return part(names[_plain(kernel)])
    found = (name for pattern, name in KERNELS.items() if re.search(pattern, kernel, re.IGNORECASE))
    return next(found, "rest")


class Profiled:
    """Our side, in a process of its own."""

    def __init__(self, folder: Path, overrides: dict[str, Any], batch: dict[str, np.ndarray]):
        from flax_side import FlaxTraining  # here: jax reads the environment that `prepare` sets

        self.side = FlaxTraining(folder, overrides)
        self.side.compile(batch)

    def measure(self, steps: int) -> tuple[float, dict[str, float]]:
        """Seconds a step, and each part's share of the busy time."""
        import jax

        self.side.block(2)
        seconds = self.side.block(steps)
        with tempfile.TemporaryDirectory() as scratch:
            with jax.profiler.trace(scratch):
                self.side.block(steps)
            taken = busy(Path(scratch), "jit_train_step", op_names(self.side.step.as_text()))
        whole = sum(taken.values())
        return seconds, {name: value / whole for name, value in taken.items()}

    def device(self) -> str:
        return self.side.device()


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--size", choices=tuple(workload.SIZES), default="base")
    parser.add_argument("--batch", type=int, default=8, help="clips")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the longest clip")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--recipe", action="store_true", help="dropouts, LayerDrop, SpecAugment as released")
    parser.add_argument("--attention", help="WavLMConfig.attention")
    parser.add_argument("--steps", type=int, default=10)
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    if options.rehearse:
        options.size, options.batch, options.seconds, options.steps = "tiny", 2, 1.0, 2
    pairs.prepare(options)
    overrides = {"dtype": options.dtype} | ({"attention": options.attention} if options.attention else {})
    batch = workload.make_batch(options.batch, options.seconds)
    chosen = workload.settings(options.size, recipe=options.recipe)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Worker("workload:save_weights", folder, chosen).close()
        with pairs.workers(ours=lambda: Worker("profile_step:Profiled", folder, overrides, batch)) as (
            profiled,
        ):
            seconds, shares = profiled("measure", options.steps)
            device = profiled("device")
    name = f"{options.size}, {options.batch} x {options.seconds:g} s, {options.dtype}"
    name += ", recipe" if options.recipe else ""
    lines = [pairs.row(f"{name}: a step", "s", seconds)]
    for where, share in sorted(shares.items(), key=lambda item: -item[1]):
        lines.append(pairs.row(f"{name}: {where}", "of the busy time", share))
    pairs.write(options, ran, "cpu" if options.device == "cpu" else pairs.slug(device), lines)


if __name__ == "__main__":
    main()

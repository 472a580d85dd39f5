"""Logits and gradients of one training step on this device, ours and PyTorch's, against PyTorch's in float64.

    python benchmarks/parity.py --size base
    python benchmarks/parity.py --device cuda --size base

In float32 the distance must be at most 1e-4 of the reference's norm. In bfloat16 each of our attentions must
come as close as PyTorch's autocast does, give or take a half: rounding is all that may differ.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pairs
import workload
from pairs import Worker

DEEP = 1e-4
ATTENTIONS = {"cpu": ("xla",), "cuda": ("xla", "cudnn", "pallas")}


class Outcome(NamedTuple):
    """What one side computes: logits [B, T, V], and the gradient of each trained tensor by its torch name."""

    logits: np.ndarray
    gradients: dict[str, np.ndarray]

    def distance(self, reference: Outcome, frames: np.ndarray) -> tuple[float, float]:
        """From the reference, relative to its norm: of the logits of valid frames, and of all gradients."""
        real = np.arange(self.logits.shape[1]) < frames[:, None]
        names = sorted(reference.gradients)  # none for the mask embedding, which is not used
        ours, theirs = (
            np.concatenate([side.gradients[name].ravel() for name in names]) for side in (self, reference)
        )
        return relative(self.logits[real], reference.logits[real]), relative(ours, theirs)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


class FlaxSide:
    """One step of ours with an optimizer that keeps the gradient."""

    def __init__(self, folder: Path, batch: dict[str, np.ndarray]):
        self.folder, self.batch = folder, batch

    def outcome(self, dtype: str, attention: str) -> tuple[Outcome, np.ndarray]:
        """And the valid frames of each clip."""
        import jax
        import jax.numpy as jnp
        import optax

        from flax_wavlm.models.parameters import combine, merge, partition, split
        from flax_wavlm.parallel import sharding
        from flax_wavlm.porting.load import load_model
        from flax_wavlm.porting.save import hf_tensors
        from flax_wavlm.recognition.ctc_loss import loss_of_ctc
        from flax_wavlm.training.state import init_state
        from flax_wavlm.training.step import jit_train_step, make_train_step

        keep = optax.GradientTransformation(
            lambda params: jax.tree.map(jnp.zeros_like, params),
            lambda grads, _, __: (jax.tree.map(jnp.zeros_like, grads), grads),
        )
        model = load_model(self.folder, overrides={"dtype": dtype, "attention": attention})
        graphdef, params = split(model)
        mesh = sharding.make_mesh(1)
        batch = sharding.put_batch(mesh, self.batch)
        logits, frames = jax.jit(lambda params, x, n: merge(graphdef, params)(x, n))(
            params, batch["samples"], batch["lengths"]
        )
        state = init_state(*partition(params, freeze_feature_encoder=True), keep)
        step = make_train_step(graphdef, keep, loss_of_ctc(workload.BLANK), seed=0)
        state = jit_train_step(step, mesh, state)(state, batch)
        tensors = hf_tensors(model.config, combine(state.opt_state, state.frozen))
        gradients = {name: value for name, value in tensors.items() if "feature_extractor" not in name}
        return Outcome(np.asarray(logits), gradients), np.asarray(frames)

    def device(self) -> str:
        import jax

        return jax.devices()[0].device_kind


class TorchSide:
    """transformers' loss and its gradient."""

    def __init__(self, folder: Path, batch: dict[str, np.ndarray], device: str):
        self.folder, self.batch, self.where = folder, batch, device

    def outcome(self, dtype: str) -> Outcome:
        """In float64, float32 or, by autocast, bfloat16."""
        import torch
        import transformers
        from torch_side import inputs

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        wide = torch.float64 if dtype == "float64" else torch.float32
        model = transformers.WavLMForCTC.from_pretrained(self.folder).train().to(self.where, wide)
        model.freeze_feature_encoder()
        batch = inputs(self.batch, self.where)
        batch["input_values"] = batch["input_values"].to(wide)
        with torch.autocast(self.where, torch.bfloat16, enabled=dtype == "bfloat16"):
            result = model(**batch)
        result.loss.backward()
        gradients = {
            name: value.grad.double().cpu().numpy()
            for name, value in model.named_parameters()
            if value.grad is not None
        }
        return Outcome(result.logits.detach().double().cpu().numpy(), gradients)


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--size", choices=tuple(workload.SIZES), default="base")
    parser.add_argument("--batch", type=int, default=4, help="clips")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the longest clip")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    if options.rehearse:
        options.size, options.batch, options.seconds = "tiny", 2, 1.0
    pairs.prepare(options)
    chosen = workload.settings(options.size)
    batch = workload.make_batch(options.batch, options.seconds)
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Worker("workload:save_weights", folder, chosen).close()
        with pairs.workers(
            ours=lambda: Worker("parity:FlaxSide", folder, batch),
            theirs=lambda: Worker("parity:TorchSide", folder, batch, options.device),
        ) as (flax, torch):
            device, reference = flax("device"), torch("outcome", "float64")
            ours, frames = flax("outcome", "float32", "xla")
            found["float32"] = ours.distance(reference, frames)
            found["float32, PyTorch"] = torch("outcome", "float32").distance(reference, frames)
            found["bfloat16, PyTorch"] = torch("outcome", "bfloat16").distance(reference, frames)
            for attention in ATTENTIONS[options.device]:
                ours, _ = flax("outcome", "bfloat16", attention)
                found[f"bfloat16, {attention}"] = ours.distance(reference, frames)
    name = f"{options.size}, {options.batch} x {options.seconds:g} s"
    lines = []
    for i, what in enumerate(("logits", "gradient")):
        for which, distances in found.items():
            limit = DEEP if which == "float32" else 1.5 * found["bfloat16, PyTorch"][i]
            lines.append(
                pairs.row(
                    f"{name}, {which}: {what} from PyTorch's in float64",
                    "of the norm",
                    distances[i],
                    at_most=None if "PyTorch" in which else limit,
                )
            )
    pairs.write(options, ran, "cpu" if options.device == "cpu" else pairs.slug(device), lines)
    if any(line["met"] is False for line in lines):
        raise SystemExit("the two sides do not compute the same")


if __name__ == "__main__":
    main()

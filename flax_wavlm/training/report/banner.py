"""The lines at the beginning of a run's log: what it trains, on which devices and clips, and how long."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import printable
from flax_wavlm.models.parameters import count_parameters
from flax_wavlm.recognition.task import TEST
from flax_wavlm.training.config import LoopSettings, ModelSettings, TrainConfig
from flax_wavlm.training.speech import Speech
from flax_wavlm.training.state import TrainState

GIB = 2**30


def device_line(mesh: Mesh, model: ModelSettings) -> str:
    """Devices, their memory where they tell it, mesh and precision: all is known before data is read."""
    devices = mesh.devices.flat
    memory = _memory(devices[0])
    parts = [
        f"{len(devices)} x {devices[0].device_kind}" + (f" of {memory / GIB:.1f} GiB" if memory else ""),
        ", ".join(f"mesh.{axis} = {size}" for axis, size in mesh.shape.items()),
        _precision(model),
    ]
    if jax.process_count() > 1:
        parts.insert(1, f"{jax.process_count()} processes")
    return f"devices: {'; '.join(parts)}"


def _memory(device: jax.Device) -> int:
    """Bytes that this process may use; 0 where the device does not tell, or is another process's."""
    try:
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    except (jax.errors.JaxRuntimeError, NotImplementedError):  # how jax says that it does not know
        return 0


def _precision(model: ModelSettings) -> str:
    if model.dtype == "float32":
        return f"float32, products in {model.matmul_precision} precision"
    return f"products in {model.dtype}, parameters in float32"


def banner(config: TrainConfig, speech: Speech, state: TrainState, attention: str) -> str:
    """What a run is about to do, a line a subject.

    Args:
        config: of the run.
        speech: its clips and batches.
        state: its state, or the shapes of it.
        attention: which attention it takes, in words.
    """
    trained = count_parameters(state.params)
    whole = trained + count_parameters(state.frozen)
    splits = [("train", speech.train.clips), (speech.chooser, speech.dev.clips)]
    if speech.test is not None:
        splits.append((TEST, speech.test.clips))
    weights = printable(config.model.checkpoint) or "random weights"
    lines = [
        f"model: {weights}, {whole / 1e6:.1f} million parameters, {trained / 1e6:.1f} of them trained",
        f"kernels: {config.model.kernels}; {attention}",
        f"corpus: {config.data.corpus}, {printable(config.data.path) or 'in its usual place'}",
        *(f"{name}: {_size(clips)}" for name, clips in splits),
        _length(config.train, speech.train),
    ]
    return "\n".join(lines)


def _size(clips: Sequence[Clip]) -> str:
    hours = sum(len(clip.samples) for clip in clips) / SAMPLE_RATE / 3600
    return f"{len(clips):,} clips, {hours:.2f} hours"


def _length(train: LoopSettings, batches: Batches) -> str:
    size = f"up to {train.batch_seconds:g} s" if train.batch_seconds else f"{train.batch_size} clips"
    parts = f" in {train.accumulation} parts" if train.accumulation > 1 else ""
    return (
        f"steps: {len(batches):,} of {size}{parts}, {batches.steps_per_epoch:,} an epoch, "
        f"{batches.epochs(len(batches)):.4g} epochs; an evaluation every {train.eval_every:,} steps"
    )

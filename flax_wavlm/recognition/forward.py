"""A model's forward pass over clips of any length: batches of a few shapes in, results on the host out."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh

from flax_wavlm.data.batches import Batch as HostBatch
from flax_wavlm.data.batches import eval_batches
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.preprocessor import input_values
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import Params, merge
from flax_wavlm.parallel import sharding
from flax_wavlm.recognition.memory import Batches, out_of_memory_explained
from flax_wavlm.recognition.task import Batch, Task

Array = jax.Array
P = TypeVar("P")  # parameters
T = TypeVar("T")

IN_FLIGHT = 2  # batches that the device may be given before the first one's result is fetched


class ClipBatches:
    """Clips in padded batches of a few shapes, the longest first. It can be iterated over again and again.

    Args:
        clips: the set, in any order; a batch's `clip` entries are indices into it.
        batch_size: over all processes.
        buckets: the most padded lengths that there may be; each compiles once.
        do_normalize: of the model's preprocessor.
        frame_count: the model's; where given, the buckets suit whole batches and have an even number of
            frames each (`choose_buckets`).
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        buckets: int,
        *,
        do_normalize: bool,
        frame_count: Callable[[Any], Any] | None = None,
    ):
        self.clips, self.batch_size, self.do_normalize = clips, batch_size, do_normalize
        self.buckets = choose_buckets(
            [len(clip.samples) for clip in clips],
            buckets,
            batch_size=1 if frame_count is None else batch_size,
            frame_count=frame_count,
        )

    def __iter__(self) -> Iterator[HostBatch]:
        return eval_batches(
            self.clips,
            self.batch_size,
            self.buckets,
            do_normalize=self.do_normalize,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def longest(self) -> HostBatch:
        """The batch of the longest clips."""
        return next(iter(self))


def forward_pass(task: Task, config: WavLMConfig) -> Callable[[Params, Batch], tuple[Array, Array]]:
    """The function (params, batch) -> outputs [B, T, V], frame_lengths [B], without dropout.

    Whatever the configuration says about GroupNorm, here it runs over each clip's own frames: neither a text
    nor a figure of a base model may depend on what else is in the batch.
    """
    graphdef = _structure(task, config)

    def forward(params: Params, batch: Batch) -> tuple[Array, Array]:
        result = merge(graphdef, params)(input_values(batch), batch["lengths"])
        return result[0], result[1]

    return forward


def forward_with_features(
    task: Task, config: WavLMConfig
) -> Callable[[Params, Batch], tuple[Array, Array, Array]]:
    """`forward_pass` that also gives the feature encoder's output [B, T, C]; for models with `features`."""
    graphdef = _structure(task, config)

    def forward(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        model = merge(graphdef, params)
        features = model.features(input_values(batch), batch["lengths"])
        result = model.from_features(features, batch["lengths"])
        return result[0], result[1], features

    return forward


def _structure(task: Task, config: WavLMConfig) -> nnx.GraphDef:
    return structure(dataclasses.replace(config, masked_group_norm=True), model=task.head)[0]


def jit_over_batches(function: Callable[[P, Batch], T], mesh: Mesh) -> Callable[[P, Batch], T]:
    """The function compiled for batches that are split over the mesh; its result is whole on every device."""
    return jax.jit(
        function,
        in_shardings=(None, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )


def run_over(
    function: Callable[[P, Batch], T],
    params: P,
    batches: Batches,
    mesh: Mesh,
    *,
    field: str,
) -> Iterator[T]:
    """The function's result for each batch, on the host. The device works on while the host collects.

    Args:
        function: from `jit_over_batches`.
        params: its first argument.
        batches: its second, one after the other.
        mesh: of the devices.
        field: what sets the batch size.
    Raises:
        UserError: the device's memory does not suffice; a smaller batch that does is named.
    """
    outputs = (function(params, sharding.put_batch(mesh, batch)) for batch in batches)
    with out_of_memory_explained(function, params, batches, mesh.size, field):
        yield from map(jax.device_get, prefetch(outputs, IN_FLIGHT))


def prefetch(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items. Each is made while `count` earlier ones have not been given yet."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting

"""Where arrays live: the mesh, one rule for parameters, and batches. No other file names the mesh's axes.

Parameters and optimizer state are split over the axis "fsdp" and gathered where they are used, as in ZeRO
(Rajbhandari et al. 2020). Batches are split over both axes. XLA's partitioner does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_wavlm.errors import UserError

BATCH_AXES = ("data", "fsdp")
MIN_SPLIT_SIZE = 2**14  # smaller arrays cost more to gather than to keep whole


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh ("data", "fsdp") over all devices of all processes.

    Args:
        data: devices along the first axis; -1: all that `fsdp` leaves.
        fsdp: devices along the second axis.
    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp or data not in (-1, devices // fsdp):
        raise UserError(
            f"mesh.data = {data} and mesh.fsdp = {fsdp} do not fit {devices} devices",
            field="mesh.fsdp",
            expected="mesh.data * mesh.fsdp = devices, or mesh.data = -1 with mesh.fsdp a divisor of them",
        )
    return jax.make_mesh((devices // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch_size(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """UserError unless each of `parts` equal parts of a batch splits evenly over the mesh's devices.

    `name` is the field that set the batch size, for the message.
    """
    count = math.prod(mesh.shape.values()) * parts
    if batch_size < 1 or batch_size % count:
        near = max(round(batch_size / count), 1) * count
        steps = f" times {parts} accumulation steps" if parts > 1 else ""
        raise UserError(
            f"{name} = {batch_size} cannot be split over {count // parts} devices{steps}",
            field=name,
            expected=f"a multiple of {count}, such as {near}",
        )


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Splits the largest axis that "fsdp" divides; of equals the last. Small arrays stay whole."""
    fsdp = mesh.shape["fsdp"]
    fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < MIN_SPLIT_SIZE or not fitting:
        return NamedSharding(mesh, P())
    axis = max(fitting, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, P(*[None] * axis, "fsdp"))


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
    """`parameter_sharding` for every array of a tree. Optimizer state follows its parameters' shapes."""
    return jax.tree.map(lambda leaf: parameter_sharding(mesh, leaf.shape), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The rows are split over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch of all processes, from the rows that this process holds: [B / processes, ...] -> [B, ...]."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}

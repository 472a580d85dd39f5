"""Where arrays live: the mesh, one rule for parameters, and batches. The only file that names mesh axes.

Parameters and optimizer state are split over "fsdp" (and gathered where they are used); batches are split
over both axes. XLA's partitioner does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_wavlm.errors import UserError

BATCH_AXES = ("data", "fsdp")
MIN_SPLIT_SIZE = 2**14  # smaller arrays cost more to gather than to keep whole


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh ("data", "fsdp") over all devices of all processes; `data` -1 takes what `fsdp` leaves."""
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp or data not in (-1, devices // fsdp):
        raise UserError(
            f"mesh.data = {data} and mesh.fsdp = {fsdp} do not fit {devices} devices: "
            "expected mesh.data * mesh.fsdp = devices, or mesh.data = -1 with mesh.fsdp a divisor of them"
        )
    return jax.make_mesh((devices // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch_size(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """UserError unless each of `parts` equal parts of a batch splits evenly over the mesh's devices."""
    count = math.prod(mesh.shape.values()) * parts
    if batch_size < 1 or batch_size % count:
        near = max(round(batch_size / count), 1) * count
        steps = f" times {parts} accumulation steps" if parts > 1 else ""
        raise UserError(
            f"{name} = {batch_size} cannot be split over {count // parts} devices{steps}; "
            f"expected a multiple of {count}, such as {near}"
        )


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Splits the largest axis that "fsdp" divides (the last such of equals); small arrays stay whole."""
    fsdp = mesh.shape["fsdp"]
    fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < MIN_SPLIT_SIZE or not fitting:
        return NamedSharding(mesh, P())
    axis = max(fitting, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, P(*[None] * axis, "fsdp"))


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
    """`parameter_sharding` for every array of a tree: optimizer state follows its parameters' shapes."""
    return jax.tree.map(lambda leaf: parameter_sharding(mesh, leaf.shape), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch, from the rows that this process holds: [B / processes, ...] -> [B, ...]."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def by_rows(
    function: Callable[..., tuple[jax.Array, ...]],
    *,
    whole: Collection[int] = (),
    summed: Collection[int] = (),
) -> Callable[..., tuple[jax.Array, ...]]:
    """`function`, run by each device on its own rows: for what XLA cannot partition, a Pallas kernel.

    The first axis of every array is that of the rows, but for the inputs numbered in `whole`, which each
    device has whole, and the outputs numbered in `summed`, which are summed over the rows.
    """

    def partition(mesh: Mesh, arguments: Any, results: Any) -> Any:
        spec = arguments[0].sharding.spec
        axes = spec[0] if spec else None
        rows, one = NamedSharding(mesh, P(axes)), NamedSharding(mesh, P())

        def on_a_device(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            outputs = function(*arrays)
            return tuple(
                jax.lax.psum(output, axes) if i in summed and axes else output
                for i, output in enumerate(outputs)
            )

        return (
            mesh,
            on_a_device,
            tuple(one if i in summed else rows for i in range(len(results))),
            tuple(one if i in whole else rows for i in range(len(arguments))),
        )

    def rule(mesh: Mesh, arguments: Any, results: Any) -> str:
        """Which axes are the same, as an einsum would say: all first ones, and no others."""
        others = (f"x{i}" for i in range(10**6))

        def axes(types: Any, apart: Collection[int]) -> str:
            return ", ".join(
                " ".join(
                    "rows" if axis == 0 and i not in apart else next(others)
                    for axis in range(len(kind.shape))
                )
                for i, kind in enumerate(types)
            )

        return f"{axes(arguments, whole)} -> {axes(results, summed)}"

    partitioned = custom_partitioning(function)
    partitioned.def_partition(partition=partition, sharding_rule=rule)
    return partitioned

"""How a kernel runs on several devices: each works on its own rows of the batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def shard_batch(
    function: Callable[..., tuple[jax.Array, ...]],
    *,
    whole: Collection[int] = (),
    summed: Collection[int] = (),
) -> Callable[..., tuple[jax.Array, ...]]:
    """`function`, run by each device on its own rows. XLA cannot partition a Pallas kernel by itself.

    Args:
        function: takes and gives arrays whose first axis is that of the rows.
        whole: numbers of the arguments that have no such axis: every device gets them whole.
        summed: numbers of the results that have no such axis: they are summed over the devices.
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

"""Checksums of a checkpoint's arrays and of its record: damage on a disk is noticed before it is used."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_wavlm.errors import some


def checksums(tree: Any) -> dict[str, int]:
    """A 32-bit checksum of every array of a tree, by its path, computed where the arrays are.

    A checksum is the sum, modulo 2**32, of each element's bits times an odd weight that grows with the
    element's place. Integer sums come out alike in any order, so the value does not depend on how an array is
    spread over devices. No single changed element can leave it as it was.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get(_checksums([leaf for _, leaf in leaves]))
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def checksums_plan(tree: Any) -> Any:
    """XLA's `CompiledMemoryStats` of `checksums`. The tree may be of shapes with shardings.

    A CPU has temporary arrays as large as the tree for it.
    """
    return _checksums.lower(jax.tree.leaves(tree)).compile().memory_analysis()


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    def checksum(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, length in enumerate(x.shape):
            place = place * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)

    return [checksum(leaf) for leaf in leaves]


def host_checksum(x: np.ndarray) -> int:
    """The same checksum as `checksums` gives, for an array on the host."""
    bits = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
    return int(np.sum(bits.astype(np.uint32) * (2 * np.arange(x.size, dtype=np.uint32) + 1), dtype=np.uint32))


def altered_arrays(found: Mapping[str, Any], trees: Mapping[str, Any]) -> str:
    """Says which part of a checkpoint is not as it was saved; "" where every part is.

    Args:
        found: the trees' arrays on the host, and `record` as `unsealed` gives it.
        trees: which trees to look at, by name.
    """
    if found["record"] is None:
        return "the record of its position, configuration and checksums was altered"
    wanted = found["record"]["checksums"]
    leaves = jax.tree_util.tree_leaves_with_path({name: found[name] for name in trees})
    wrong = [
        name
        for name, array in ((jax.tree_util.keystr(path), leaf) for path, leaf in leaves)
        if wanted[name] != host_checksum(array)
    ]
    return f"arrays that were altered: {some(wrong, 3)}" if wrong else ""


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its checksum beside it."""
    return {"record": record, "crc32": _crc32(record)}


def unsealed(sealed: Any) -> dict[str, Any] | None:
    """The record that `sealed` was given; None where it has been altered."""
    if not isinstance(sealed, dict) or sealed.get("crc32") != _crc32(sealed.get("record")):
        return None
    return sealed["record"]


def _crc32(record: Any) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())

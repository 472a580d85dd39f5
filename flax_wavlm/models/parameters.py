"""Parameters as plain nested dicts of arrays: taken out of a model, put back, and parted into groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx, traverse_util

Params = dict[str, Any]  # nested; the leaves are arrays


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """The model's structure, and its parameters as a nested dict of arrays."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The model of that structure with those parameters. Under jit it costs nothing."""
    return nnx.merge(graphdef, nnx.State(params))


def partition(params: Params, *, freeze_feature_encoder: bool) -> tuple[Params, Params]:
    """Parameters that are trained, and those that are not: the convolutional feature encoder if frozen."""
    flat = traverse_util.flatten_dict(params)
    frozen = {
        path: leaf for path, leaf in flat.items() if freeze_feature_encoder and "feature_encoder" in path
    }
    trained = {path: leaf for path, leaf in flat.items() if path not in frozen}
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(frozen)


def combine(trained: Params, frozen: Params) -> Params:
    """Puts together what `partition` has parted."""
    return traverse_util.unflatten_dict(
        traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
    )


def decay_mask(params: Params) -> Any:
    """True for what weight decay applies to: everything but biases and the scales of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def flatten(tree: Params, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each leaf with its path, in the order of the tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def count_parameters(params: Params) -> int:
    """Elements in all arrays."""
    return sum(math.prod(leaf.shape) for _, leaf in flatten(params))

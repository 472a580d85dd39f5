"""Pretrained weights into a model: every tensor has its place, or an error lists those that have none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from flax_wavlm.errors import UserError, some
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import WavLMForCTC, structure
from flax_wavlm.models.parameters import Params, flatten, merge, split
from flax_wavlm.porting.pretrained import PretrainedWeights, open_weights
from flax_wavlm.porting.table import HEAD, MASK_EMBEDDING, Entry, has_mask_embedding, table
from flax_wavlm.progress import tracked

log = logging.getLogger(__name__)

ArrayPath = tuple[str, ...]
Placement = Callable[[ArrayPath, tuple[int, ...]], jax.sharding.Sharding]


def load_model(
    source: str | Path | PretrainedWeights,
    *,
    overrides: Mapping[str, Any] | None = None,
    fresh_head: bool = False,
    placement: Placement | None = None,
    seed: int = 0,
) -> WavLMForCTC:
    """A model with pretrained weights, float32.

    Args:
        source: see `open_weights`.
        overrides: fields of the WavLMConfig to replace (dropouts, dtype, vocab_size with a fresh head, ...).
        fresh_head: initialise the CTC head at random, even if the source has one.
        placement: gives the sharding of the array at a path with a shape; each array is put together on
            the host and sent to its devices before the next one is. Default: the default device.
        seed: for what is initialised at random.
    Raises:
        UserError: with the tensors that have no place, those that are missing, and those of a wrong shape.
            Only the CTC head and the mask embedding may be missing. They are initialised at random, and the
            log says so.
    """
    weights = source if isinstance(source, PretrainedWeights) else open_weights(source)
    config = weights.config.replace(**dict(overrides or {}))
    entries = table(config)
    fresh = _fresh_names(weights, fresh_head)
    _check(weights, entries, fresh)
    _announce(weights, config, fresh)

    graphdef, params = structure(config)
    parts: dict[ArrayPath, list[Entry]] = {}
    for entry in entries:
        parts.setdefault(entry.path, []).append(entry)
    fresh_paths = frozenset(entry.path for entry in entries if entry.name in fresh)
    initial = _initialise(config, fresh_paths, seed) if fresh_paths else {}

    loaded: Params = {}
    arrays = list(flatten(params))
    for path, leaf in tracked(arrays, "loading weights", len(arrays)):
        if path in initial:
            array = np.asarray(initial[path])
        else:
            array = _put_together(weights, parts[path], leaf.shape)
        node = loaded
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = _place(array, path, placement)
    return merge(graphdef, loaded)


def _fresh_names(weights: PretrainedWeights, fresh_head: bool) -> set[str]:
    """The tensors that are to be initialised here, because they may be absent and are."""
    fresh = set(HEAD) if fresh_head or not weights.has_head else set()
    if MASK_EMBEDDING not in weights.tensors:
        fresh.add(MASK_EMBEDDING)
    return fresh


def _check(weights: PretrainedWeights, entries: list[Entry], fresh: set[str]) -> None:
    """Raises a UserError that lists all that does not fit."""
    expected = {entry.name: entry.shape for entry in entries}
    found = weights.tensors
    missing = [name for name in expected if name not in found and name not in fresh]
    unused = [found[name].spelled for name in found if name not in expected]
    wrong = [
        f"{found[name].spelled} is {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and name not in fresh and found[name].shape != shape
    ]
    problems = [
        f"{len(items)} {what}: {some(items)}"
        for what, items in (
            ("tensors that the model needs are missing", missing),
            ("tensors have no place in the model", unused),
            ("tensors have the wrong shape", wrong),
        )
        if items
    ]
    if problems:
        raise UserError(
            f"the weights ({weights.kind}) do not fit the configuration: {'; '.join(problems)}",
            where=weights.source,
            do="see whether its config.json is the one it was saved with",
        )


def _announce(weights: PretrainedWeights, config: WavLMConfig, fresh: set[str]) -> None:
    masks = config.apply_spec_augment and has_mask_embedding(config)
    announced = [name for name in sorted(fresh) if masks or name != MASK_EMBEDDING]
    if announced:
        log.warning("%s: initialised at random: %s", weights.source, ", ".join(announced))


def _put_together(weights: PretrainedWeights, parts: list[Entry], shape: tuple[int, ...]) -> np.ndarray:
    """One of our arrays from the tensors that are its parts; UserError for NaN or Inf in one."""
    array = np.empty(shape, np.float32)
    for part in parts:
        array[part.index] = part.layout.to_ours(weights.tensors[part.name].read())
        if not np.isfinite(array[part.index]).all():
            raise UserError(
                f"{part.name} holds NaN or Inf",
                where=weights.source,
                field=part.name,
                expected="finite weights",
                do="the file is damaged, or training went wrong before it was saved: take another",
            )
    return array


def _place(array: np.ndarray, path: ArrayPath, placement: Placement | None) -> jax.Array:
    if placement is None:
        return jax.device_put(array)
    sharding = placement(path, array.shape)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _initialise(config: WavLMConfig, paths: frozenset[ArrayPath], seed: int) -> dict[ArrayPath, jax.Array]:
    """The arrays of a new model at these paths alone: jit drops the computation of the others."""

    def make() -> list[jax.Array]:
        params = dict(flatten(split(WavLMForCTC(config, nnx.Rngs(seed)))[1]))
        return [params[path] for path in sorted(paths)]

    return dict(zip(sorted(paths), jax.jit(make)(), strict=True))

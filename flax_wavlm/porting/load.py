"""TODO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import WavLMForCTC, structure
from flax_wavlm.models.parameters import Params, flatten, merge, split
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.porting.table import HEAD, MASK_EMBEDDING, Entry, has_mask_embedding, table
from flax_wavlm.porting.weights import PretrainedWeights

log = logging.getLogger(__name__)

# --- Into a model, and out of it ----------------------------------------------------------------------------

Placement = Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding]


def load_model(
    source: str | Path | PretrainedWeights,
    *,
    overrides: Mapping[str, Any] | None = None,
    fresh_head: bool = False,
    placement: Placement | None = None,
    seed: int = 0,
) -> WavLMForCTC:
    """A model with the checkpoint's weights, float32.

    Args:
        source: see `open_weights`.
        overrides: fields of the WavLMConfig to replace (dropouts, dtype, vocab_size with a fresh head, ...).
        fresh_head: take no CTC head from the checkpoint but initialise one at random.
        placement: gives the sharding of the array at a path with a shape; each array is put together on
            the host and sent to its devices before the next one is. Default: the default device.
        seed: of what is initialised here.
    Raises:
        UserError: listing every tensor of the file that has no place, every one that is missing, and every
            wrong shape. The one thing that may be missing is a CTC head (and from torchaudio's files, which
            have no mask embedding, that): it is initialised at random, and that is announced.
    """
    checkpoint = source if isinstance(source, PretrainedWeights) else open_weights(source)
    config = checkpoint.config.replace(**dict(overrides or {}))
    entries = table(config)
    fresh = _fresh_names(checkpoint, config, fresh_head)
    _check(checkpoint, entries, fresh)
    masks = config.apply_spec_augment and has_mask_embedding(config)
    announced = [name for name in sorted(fresh) if masks or name != MASK_EMBEDDING]
    if announced:
        log.warning("%s: initialised at random: %s", checkpoint.source, ", ".join(announced))

    graphdef, params = structure(config)
    parts: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        parts.setdefault(entry.path, []).append(entry)
    fresh_paths = {entry.path for entry in entries if entry.name in fresh}
    initial = _initialise(config, frozenset(fresh_paths), seed) if fresh_paths else {}

    def place(path: tuple[str, ...], array: np.ndarray) -> jax.Array:
        if placement is None:
            return jax.device_put(array)
        sharding = placement(path, array.shape)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    loaded: Params = {}
    for path, leaf in flatten(params):
        if path in initial:
            array = np.asarray(initial[path])
        else:
            array = np.empty(leaf.shape, np.float32)
            for entry in parts[path]:
                values = checkpoint.tensors[entry.name].read()
                array[entry.index] = entry.layout.to_ours(values)
                if not np.isfinite(array[entry.index]).all():
                    raise UserError(
                        f"{checkpoint.source}: {entry.name} holds NaN or Inf, expected finite weights; the "
                        "file is damaged, or training went wrong before it was saved"
                    )
        node = loaded
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = place(path, array)
    return merge(graphdef, loaded)


def _fresh_names(checkpoint: PretrainedWeights, config: WavLMConfig, fresh_head: bool) -> set[str]:
    """The tensors that are to be initialised here, because they may be absent and are."""
    fresh = set(HEAD) if fresh_head or not checkpoint.has_head else set()
    if MASK_EMBEDDING not in checkpoint.tensors and (
        not has_mask_embedding(checkpoint.config) or checkpoint.kind == "torchaudio state dict"
    ):
        fresh.add(MASK_EMBEDDING)
    return fresh


def _check(checkpoint: PretrainedWeights, entries: list[Entry], fresh: set[str]) -> None:
    """Raises a UserError that lists all that does not fit."""
    expected = {entry.name: entry.shape for entry in entries}
    found = checkpoint.tensors
    unfilled = [name for name in expected if name not in found and name not in fresh]
    unused = [found[name].spelled for name in found if name not in expected]
    wrong = [
        f"{found[name].spelled} is {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and name not in fresh and found[name].shape != shape
    ]
    problems = [
        f"{len(items)} {what}: {', '.join(items)}"
        for what, items in (
            ("tensors that the model needs are missing", unfilled),
            ("tensors have no place in the model", unused),
            ("tensors have the wrong shape", wrong),
        )
        if items
    ]
    if problems:
        raise UserError(
            f"{checkpoint.source} ({checkpoint.kind}): the weights do not fit the configuration. "
            + "; ".join(problems)
            + ". Is its config.json the one it was saved with?"
        )


def _initialise(
    config: WavLMConfig, paths: frozenset[tuple[str, ...]], seed: int
) -> dict[tuple[str, ...], jax.Array]:
    """A new model's arrays at the paths alone: jit drops the making of the others."""

    def make() -> list[jax.Array]:
        params = dict(flatten(split(WavLMForCTC(config, nnx.Rngs(seed)))[1]))
        return [params[path] for path in sorted(paths)]

    return dict(zip(sorted(paths), jax.jit(make)(), strict=True))

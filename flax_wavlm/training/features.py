"""The frozen feature encoder's output, computed once for every training clip and kept on the disk.

SpecAugment and every dropout come after the feature encoder. So while it is frozen, a clip has the same
features in every epoch. At the released sizes they take 51 kB a second of audio in bfloat16.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from flax_wavlm.data.batches import Batches, eval_batches
from flax_wavlm.data.cache import cached
from flax_wavlm.data.preprocessor import INPUTS
from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import Params
from flax_wavlm.parallel import sharding
from flax_wavlm.progress import tracked
from flax_wavlm.training.step import Batch


def cached_features(
    config: WavLMConfig,
    encode: Callable[[Params, Batch], jax.Array],
    frozen: Params,
    batches: Batches,
    mesh: Mesh,
    folder: Path,
) -> list[np.ndarray]:
    """The features of each of `batches.clips`, [T, C] in the model's dtype, memory-mapped.

    XLA sums in an order that depends on the shapes that it compiles for. So each clip goes through the
    program that would encode it in training, in the same shape and on the same devices. Its features, and all
    that is trained on them, are then those of training without a cache, to the last bit.

    Args:
        config: the model's.
        encode: from `step.jit_encode`.
        frozen: the parameters that `encode` takes.
        batches: the training batches.
        mesh: of the run.
        folder: of caches, see `cache.cached`.
    Raises:
        UserError: for a group-norm (base) model, whose frames change with the padding of a batch; and on
            more than one process.
    """
    if config.feat_extract_norm == "group":
        raise UserError(
            "data.cache_features is True for a group-norm model (base), whose first GroupNorm runs over the "
            "padding",
            field="data.cache_features",
            expected="a layer-norm model (large)",
            do="set it to False",
        )
    if jax.process_count() > 1:
        raise UserError(
            f"data.cache_features is True on {jax.process_count()} processes",
            field="data.cache_features",
            expected="one process",
            do="set it to False",
        )

    def make() -> Iterator[np.ndarray]:
        same_shapes = eval_batches(
            batches.clips, batches.batch_size, batches.buckets, do_normalize=batches.do_normalize
        )
        for batch in same_shapes:
            put = sharding.put_batch(mesh, {name: batch[name] for name in INPUTS})
            features = np.asarray(encode(frozen, put))
            for row in np.flatnonzero(batch["valid"]):
                yield features[row][: config.frame_count(int(batch["lengths"][row]))]

    def make_in_sight() -> Iterator[np.ndarray]:
        return tracked(make(), "features", len(batches.clips))

    kept = cached(folder, "features", _identity(config, frozen, batches, mesh), make_in_sight)
    order = np.argsort(-batches.lengths, kind="stable")  # the order of `eval_batches`
    by_clip = dict(zip(order.tolist(), kept, strict=True))
    return [array for i in range(len(order)) if (array := by_clip[i]) is not None]


def _identity(config: WavLMConfig, frozen: Params, batches: Batches, mesh: Mesh) -> list[Any]:
    """All that the features depend on: weights, samples, shapes, settings and devices."""
    contents = hashlib.sha256()
    for path, array in sorted(traverse_util.flatten_dict(jax.device_get(frozen)).items()):
        contents.update("/".join(path).encode() + np.ascontiguousarray(array).tobytes())
    for clip in batches.clips:
        contents.update(clip.samples.data)
    fields = ["conv_dim", "conv_stride", "conv_kernel", "conv_bias", "feat_extract_activation", "dtype"]
    if config.kernels != "auto":  # a field of later versions: without it, older caches stay of use
        fields.append("kernels")
    return [
        contents.hexdigest(),
        [str(clip.samples.dtype) for clip in batches.clips],
        batches.lengths.tolist(),
        [batches.do_normalize, batches.batch_size, batches.buckets],
        [getattr(config, name) for name in (*fields, "matmul_precision")],
        [dict(mesh.shape), jax.devices()[0].device_kind, jax.__version__, os.environ.get("XLA_FLAGS", "")],
    ]

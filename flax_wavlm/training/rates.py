"""Learning rates that differ between parts of the model: what the schedule's rate is multiplied by."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flax_wavlm.models.parameters import Params


def in_head(path: tuple[Any, ...]) -> bool:
    """Whether a path in the tree of parameters leads into the head: all but the encoder is."""
    return path[0].key != "wavlm"


def rate_multipliers(params: Params, *, head: float, layer_decay: float, norm_last: bool) -> Params:
    """A multiplier for each parameter, which broadcasts over it: a number, or [L, 1, ...] for the layers.

    Layer i = 1, ..., L of the transformer has layer_decay^(L - i): the last one has the whole rate. What
    comes before the layers counts as layer 0: feature encoder, projection, mask embedding, positional
    convolution, and the encoder's norm where it stands there. The bias table of the relative positions,
    which all layers share, has the whole rate, as in BEiT.

    Sources: ELECTRA (Clark et al. 2020) and BEiT (Bao et al. 2022). Their code counts the head as layer
    L + 1 of one scale, so there every exponent is greater by one or two; a rate of the head corrects that.

    Args:
        params: or their shapes.
        head: multiplier of the head.
        layer_decay: 1 makes no difference between layers.
        norm_last: whether the encoder's norm comes after the layers (`do_stable_layer_norm`).
    """
    layers = jax.tree.leaves(params["wavlm"]["encoder"]["layers"])[0].shape[0]
    by_layer = layer_decay ** np.arange(layers - 1, -1, -1, dtype=np.float32)

    def multiplier(path: tuple[Any, ...], leaf: Any) -> Any:
        if in_head(path):
            return head
        names = [key.key for key in path[1:3]]
        if names == ["encoder", "layers"]:
            return by_layer.reshape(-1, *[1] * (len(leaf.shape) - 1))
        if names == ["encoder", "bucket_bias"] or (norm_last and names == ["encoder", "norm"]):
            return 1.0
        return layer_decay**layers

    return jax.tree_util.tree_map_with_path(multiplier, params)

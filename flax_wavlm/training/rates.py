"""Learning rates that differ between parts of the model: what the schedule's rate is multiplied by."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flax_wavlm.models.parameters import Params


def in_head(path: tuple[Any, ...]) -> bool:
    """Whether a path in the tree of parameters leads into the head: all but the encoder is."""
    return path[0].key != "wavlm"


def rates_by_group(
    rate: float, updates: int, *, head: float, layer_decay: float, layers: int, head_first_steps: int
) -> dict[str, float]:
    """The learning rate of an update for metrics.jsonl: one, or that of each group where they differ.

    The groups are the head, the last layer of the transformer, and all that comes before its first layer.

    Args:
        rate: of the schedule.
        updates: made before this one.
        head, layer_decay: as in `rate_multipliers`.
        layers: L, of the transformer.
        head_first_steps: updates in which the head learns alone.
    """
    if (head, layer_decay, head_first_steps) == (1.0, 1.0, 0):
        return {"learning_rate": rate}
    encoder = rate if updates >= head_first_steps else 0.0
    return {
        "learning_rate": rate,
        "learning_rate_head": rate * head,
        "learning_rate_last_layer": encoder,
        "learning_rate_first_layers": encoder * layer_decay**layers,
    }


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

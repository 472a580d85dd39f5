"""The reversible table between Hugging Face's tensors and our arrays: names, layouts, places.

Loading and saving both read it, so that a checkpoint goes through them bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import flatten


@dataclass(frozen=True)
class Layout:
    """How one of our arrays is made of torch's: axes of size 1 are dropped, then the axes are permuted."""

    dropped: tuple[int, ...] = ()
    axes: tuple[int, ...] | None = None

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        array = np.squeeze(array, self.dropped)
        return array if self.axes is None else array.transpose(self.axes)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        array = array if self.axes is None else array.transpose(np.argsort(self.axes))
        return np.expand_dims(array, self.dropped)


SAME = Layout()
LINEAR = Layout(axes=(1, 0))  # [out, in] -> [in, out]
CONV = Layout(axes=(2, 1, 0))  # [out, in, taps] -> [taps, in, out]
TAPS = Layout(dropped=(0, 1))  # [1, 1, taps] -> [taps]
HEADS = Layout(dropped=(0, 2, 3))  # [1, H, 1, 1] -> [H]
ALL = slice(None)

# Hugging Face's name in WavLMForCTC | our path | layout | the part's index, where it is part of an array.
# {conv} counts the convolutions; {layer} counts the encoder layers, which we stack along a leading axis.
ROWS: tuple[tuple[Any, ...], ...] = (
    ("wavlm.masked_spec_embed", "wavlm.mask_embedding", SAME),
    *(
        (
            f"wavlm.feature_extractor.conv_layers.{{conv}}.{theirs}",
            f"wavlm.feature_encoder.conv{{conv}}.{ours}",
            layout,
        )
        for theirs, ours, layout in (
            ("conv.weight", "conv.kernel", CONV),
            ("conv.bias", "conv.bias", SAME),
            ("layer_norm.weight", "norm.scale", SAME),
            ("layer_norm.bias", "norm.bias", SAME),
        )
    ),
    ("wavlm.feature_projection.layer_norm.weight", "wavlm.feature_projection.norm.scale", SAME),
    ("wavlm.feature_projection.layer_norm.bias", "wavlm.feature_projection.norm.bias", SAME),
    ("wavlm.feature_projection.projection.weight", "wavlm.feature_projection.projection.kernel", LINEAR),
    ("wavlm.feature_projection.projection.bias", "wavlm.feature_projection.projection.bias", SAME),
    ("wavlm.encoder.pos_conv_embed.conv.bias", "wavlm.encoder.positions.bias", SAME),
    (
        "wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "wavlm.encoder.positions.magnitude",
        TAPS,
    ),
    (
        "wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "wavlm.encoder.positions.direction",
        CONV,
    ),
    ("wavlm.encoder.layer_norm.weight", "wavlm.encoder.norm.scale", SAME),
    ("wavlm.encoder.layer_norm.bias", "wavlm.encoder.norm.bias", SAME),
    ("wavlm.encoder.layers.0.attention.rel_attn_embed.weight", "wavlm.encoder.bucket_bias", SAME),
    *(
        (f"wavlm.encoder.layers.{{layer}}.{theirs}", f"wavlm.encoder.layers.{ours}", layout, *part)
        for theirs, ours, layout, *part in (
            ("attention.q_proj.weight", "attention.qkv.kernel", LINEAR, (ALL, 0)),
            ("attention.q_proj.bias", "attention.qkv.bias", SAME, (0,)),
            ("attention.k_proj.weight", "attention.qkv.kernel", LINEAR, (ALL, 1)),
            ("attention.k_proj.bias", "attention.qkv.bias", SAME, (1,)),
            ("attention.v_proj.weight", "attention.qkv.kernel", LINEAR, (ALL, 2)),
            ("attention.v_proj.bias", "attention.qkv.bias", SAME, (2,)),
            ("attention.out_proj.weight", "attention.out.kernel", LINEAR),
            ("attention.out_proj.bias", "attention.out.bias", SAME),
            ("attention.gru_rel_pos_const", "attention.gate_const", HEADS),
            ("attention.gru_rel_pos_linear.weight", "attention.gate.kernel", LINEAR),
            ("attention.gru_rel_pos_linear.bias", "attention.gate.bias", SAME),
            ("layer_norm.weight", "attention_norm.scale", SAME),
            ("layer_norm.bias", "attention_norm.bias", SAME),
            ("feed_forward.intermediate_dense.weight", "feed_forward.up.kernel", LINEAR),
            ("feed_forward.intermediate_dense.bias", "feed_forward.up.bias", SAME),
            ("feed_forward.output_dense.weight", "feed_forward.down.kernel", LINEAR),
            ("feed_forward.output_dense.bias", "feed_forward.down.bias", SAME),
            ("final_layer_norm.weight", "final_norm.scale", SAME),
            ("final_layer_norm.bias", "final_norm.bias", SAME),
        )
    ),
    ("lm_head.weight", "head.kernel", LINEAR),
    ("lm_head.bias", "head.bias", SAME),
)
HEAD = ("lm_head.weight", "lm_head.bias")
MASK_EMBEDDING = "wavlm.masked_spec_embed"


@dataclass(frozen=True)
class Entry:
    """One of Hugging Face's tensors, and the part of one of our arrays that holds it."""

    name: str
    path: tuple[str, ...]
    index: tuple[int | slice, ...]
    layout: Layout
    shape: tuple[int, ...]  # the tensor's, in Hugging Face's layout


def table(config: WavLMConfig) -> list[Entry]:
    """Every tensor of a checkpoint of this configuration, in Hugging Face's order of names above."""
    shapes = {path: leaf.shape for path, leaf in flatten(structure(config)[1])}
    counts = {"{conv}": len(config.conv_dim), "{layer}": config.num_hidden_layers}
    entries = []
    for name, path, layout, *part in ROWS:
        counter = next((key for key in counts if key in name), None)
        for i in range(counts[counter] if counter else 1):
            where = tuple((path.replace(counter, str(i)) if counter else path).split("."))
            if where not in shapes:
                continue  # a bias or a norm that this kind of model does not have
            index = ((i,) if counter == "{layer}" else ()) + (part[0] if part else ())
            ours = np.broadcast_to(np.int8(0), shapes[where])[index]
            theirs = layout.to_theirs(ours).shape
            entries.append(
                Entry(name.replace(counter, str(i)) if counter else name, where, index, layout, theirs)
            )
    return entries


def has_mask_embedding(config: WavLMConfig) -> bool:
    """Whether transformers' model of this configuration has `masked_spec_embed`."""
    return config.mask_time_prob > 0 or config.mask_feature_prob > 0

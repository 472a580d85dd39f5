"""What holds for the table of names of every small model, in every format's spelling."""

import re

import jax
import numpy as np
from helpers.properties import PROPERTY
from helpers.spellings import microsoft_name
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_wavlm import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.porting.names import canonical_names
from flax_wavlm.porting.save import hf_tensors
from flax_wavlm.porting.table import HEAD, MASK_EMBEDDING, table


@st.composite
def architectures(draw: st.DrawFn) -> WavLMConfig:
    """Small models of every kind."""
    convs, heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = st.lists(st.integers(1, 3), min_size=convs, max_size=convs).map(tuple)
    return WavLMConfig(
        vocab_size=draw(st.integers(1, 5)),
        hidden_size=heads * groups * draw(st.integers(1, 2)),
        num_hidden_layers=draw(st.integers(1, 12)),
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(1, 5)),
        feat_extract_norm=draw(st.sampled_from(["group", "layer"])),
        conv_dim=draw(sizes),
        conv_stride=draw(sizes),
        conv_kernel=draw(sizes),
        conv_bias=draw(st.booleans()),
        num_conv_pos_embeddings=draw(st.integers(1, 4)),
        num_conv_pos_embedding_groups=groups,
        num_buckets=8,
        do_stable_layer_norm=draw(st.booleans()),
    )


# Hugging Face's names, without "wavlm.", as the other formats spell them.
OLD_WEIGHT_NORM = (
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
)
TORCHAUDIO = (
    *OLD_WEIGHT_NORM,
    (r"^encoder\.", "encoder.transformer."),
    (r"^feature_projection\.", "encoder.feature_projection."),
    (r"^lm_head\.", "aux."),
    (r"attention\.out_proj", "attention.attention.out_proj"),
)


def spelled(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    name = name.removeprefix("wavlm.")
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@settings(PROPERTY, max_examples=12)
@given(architectures(), st.integers(0, 2**31 - 1))
def test_every_name_has_one_place_and_back(config: WavLMConfig, seed: int) -> None:
    entries = table(config)
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    rng = np.random.default_rng(seed)
    theirs = {entry.name: rng.standard_normal(entry.shape).astype(np.float32) for entry in entries}

    ours = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), structure(config)[1])
    filled = jax.tree.map(lambda leaf: np.zeros(leaf.shape, int), ours)
    for entry in entries:
        array, count = ours, filled
        for key in entry.path:
            array, count = array[key], count[key]
        array[entry.index] = entry.layout.to_ours(theirs[entry.name])
        count[entry.index] += 1
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(filled))  # every element, once
    again = hf_tensors(config, ours)
    assert set(names) - set(again) <= {MASK_EMBEDDING}
    for name, array in again.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name, strict=True)

    # Every format's spelling of every name leads to this name, and no two names to one spelling.
    of_microsoft = [name for name in names if name not in HEAD]  # it has no head
    layer_norm = config.feat_extract_norm == "layer"
    for spellings in (
        *({name: spelled(name, rules) for name in names} for rules in ((), OLD_WEIGHT_NORM, TORCHAUDIO)),
        {name: microsoft_name(name.removeprefix("wavlm."), layer_norm=layer_norm) for name in of_microsoft},
    ):
        assert len(set(spellings.values())) == len(spellings)
        for name, spelling in spellings.items():
            assert canonical_names(spelling) == [name]
    joint = {f"{part}_proj.{what}" for part in "qkv" for what in ("weight", "bias")}
    for what in ("weight", "bias"):
        joined = canonical_names(f"encoder.transformer.layers.0.attention.attention.in_proj_{what}")
        assert set(joined) <= set(names)
        joint -= {name.removeprefix("wavlm.encoder.layers.0.attention.") for name in joined}
    assert not joint

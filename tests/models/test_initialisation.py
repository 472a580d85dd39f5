"""New models are initialised as transformers initialises them."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from flax_wavlm import WavLMConfig, WavLMForCTC
from flax_wavlm.models.parameters import split
from flax_wavlm.porting.save import hf_tensors


def test_initialisation_is_the_references() -> None:
    """The spread of every tensor of a new model, against transformers' own initialisation."""
    torch.manual_seed(0)
    hf = transformers.WavLMForCTC(
        transformers.WavLMConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            conv_dim=(64,) * 7,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
        )
    )
    config = WavLMConfig.from_hf(hf.config.to_dict())
    ours = hf_tensors(config, split(WavLMForCTC(config, nnx.Rngs(0)))[1])
    assert set(ours) == set(hf.state_dict())
    for name, expected in hf.state_dict().items():
        assert ours[name].shape == tuple(expected.shape)
        if "pos_conv_embed.conv.parametrizations" in name:
            # transformers means to draw N(0, 4 / (taps * size)), as fairseq does and as we do, but its weight
            # norm is a parametrization by then and keeps torch's default.
            continue
        a, b = ours[name], expected.numpy()
        assert abs(a.std() - b.std()) <= 0.15 * b.std() + 1e-7, name
        assert abs(a.mean() - b.mean()) <= 0.3 * b.std() + 1e-7, name


def test_initialisation_of_positions() -> None:
    config = WavLMConfig(hidden_size=128, num_hidden_layers=1, num_attention_heads=4)
    positions = WavLMForCTC(config, nnx.Rngs(0)).wavlm.encoder.positions
    assert positions.direction[...].std() == pytest.approx(2 / np.sqrt(128 * 128), rel=0.02)
    norms = np.linalg.norm(positions.direction[...], axis=(1, 2))
    np.testing.assert_allclose(positions.magnitude[...], norms, rtol=1e-5)


def test_layers_are_initialised_apart() -> None:
    params = split(WavLMForCTC(dataclasses.replace(WavLMConfig(), hidden_size=48), nnx.Rngs(0)))[1]
    kernel = params["wavlm"]["encoder"]["layers"]["feed_forward"]["up"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01

"""Dropout and LayerDrop: every rate is used, and each layer draws its own masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.reference import NO_REGULARISATION, Reference, pad

from flax_wavlm.models.heads import structure
from flax_wavlm.models.layers import Residual, Update
from flax_wavlm.models.parameters import merge, split
from flax_wavlm.models.wavlm import EncoderLayer
from flax_wavlm.ops.dropout import dropout
from flax_wavlm.porting.load import load_model

SIMPLE = 1e-5  # tolerance for a simple module


def test_evaluation_is_deterministic_and_training_is_not(reference: Reference, speech: list) -> None:
    rows, lengths = pad(speech[:2])
    graphdef, params = split(load_model(reference.folder))
    call = jax.jit(lambda params, key: merge(graphdef, params)(rows, lengths, key=key)[0])
    one, again, other = (call(params, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


def test_training_call_without_regularisation_is_the_evaluation(reference: Reference, speech: list) -> None:
    rows, lengths = pad(speech[:2])
    model = load_model(reference.folder, overrides=NO_REGULARISATION)
    np.testing.assert_allclose(
        model(rows, lengths, key=jax.random.key(0))[0], model(rows, lengths)[0], rtol=0, atol=SIMPLE
    )


@pytest.mark.parametrize("field", [f for f in NO_REGULARISATION if f != "apply_spec_augment"])
def test_every_rate_is_used(large_reference: Reference, speech: list[np.ndarray], field: str) -> None:
    rows, lengths = pad(speech[:1])
    model = load_model(large_reference.folder, overrides=NO_REGULARISATION | {field: 0.5})
    assert np.abs(model(rows, lengths, key=jax.random.key(0))[0] - model(rows, lengths)[0]).max() > 0.01


def test_dropout_masks_differ_between_layers(large_reference: Reference) -> None:
    """Two layers with the same weights and inputs: a key repeated under the scan would make them equal."""
    config = large_reference.config.replace(**NO_REGULARISATION | {"hidden_dropout": 0.5})
    graphdef, params = structure(config)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    params["wavlm"]["encoder"]["positions"]["direction"] += 1.0
    params["wavlm"]["encoder"]["layers"]["attention"]["out"]["bias"] += 1.0
    x = jnp.zeros((1, 400 + 320 * 30))
    states = merge(graphdef, params).with_hidden_states(x, key=jax.random.key(0))[2]
    masks = [np.asarray(after - before) for before, after in itertools.pairwise(states)]
    assert all(set(np.unique(np.round(mask, 3))) == {0.0, 2.0} for mask in masks)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert 0.4 < np.mean(masks[one] == masks[other]) < 0.6


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_biases_are_dropped_with_their_products(large_reference: Reference, rate: float) -> None:
    """A layer against the formula, in a training call: dropout is of an update with its bias."""
    config = large_reference.config.replace(**NO_REGULARISATION | {"hidden_dropout": rate})
    layer = EncoderLayer(config, nnx.Rngs(0))
    for number, dense in enumerate((layer.attention.out, layer.feed_forward.down), start=1):
        dense.bias.set_value(jnp.full(config.hidden_size, float(number)))
    x, delta = jax.random.normal(jax.random.key(0), (2, 2, 50, config.hidden_size))
    bias = jnp.arange(float(config.hidden_size))
    keys = jax.random.split(jax.random.key(1), 4)

    def attend(qkv: jax.Array, qkv_bias: jax.Array, gates: jax.Array, key: jax.Array) -> jax.Array:
        return qkv[:, :, 0] + qkv_bias[0]

    stream = Residual(x, Update(delta, bias if rate == 0 else None))
    new = layer(stream, attend, jax.random.key(1))
    assert jax.tree.structure(new) == jax.tree.structure(stream)
    expected = x + delta + bias if rate == 0 else x + delta
    product, bias = layer.attention(layer.attention_norm(expected), attend, keys[0])
    expected += dropout(product + bias, rate, keys[1])
    product, bias = layer.feed_forward(layer.final_norm(expected), keys[2])
    expected += dropout(product + bias, rate, keys[3])
    np.testing.assert_allclose(new.total(), expected, rtol=0, atol=SIMPLE)


def test_layerdrop_drops_biases_too(large_reference: Reference) -> None:
    """Of three layers the last two are dropped, and their biases get no gradient."""
    overrides = NO_REGULARISATION | {"layerdrop": 1.0}
    graphdef, params = split(load_model(large_reference.folder, overrides=overrides))
    biases = params["wavlm"]["encoder"]["layers"]["feed_forward"]["down"]["bias"]
    biases += jnp.arange(1.0, 4)[:, None]

    def loss(biases: jax.Array) -> tuple[jax.Array, jax.Array]:
        params["wavlm"]["encoder"]["layers"]["feed_forward"]["down"]["bias"] = biases
        x = jax.random.normal(jax.random.key(0), (1, 4000))
        logits, _, states = merge(graphdef, params).with_hidden_states(x, key=jax.random.key(0))
        return jnp.sum(jnp.square(logits)), states

    gradient, states = jax.jit(jax.grad(loss, has_aux=True))(biases)
    np.testing.assert_array_equal(states[2], states[1])
    np.testing.assert_array_equal(states[3], states[1])
    assert np.abs(gradient[0]).max() > 0
    np.testing.assert_array_equal(gradient[1:], 0)


def test_layerdrop_never_drops_the_first_layer(large_reference: Reference, speech: list) -> None:
    rows, lengths = pad(speech[:1])
    model = load_model(large_reference.folder, overrides=NO_REGULARISATION | {"layerdrop": 1.0})
    states = model.with_hidden_states(rows, lengths, key=jax.random.key(0))[2]
    assert np.abs(states[1] - states[0]).max() > 0.1
    np.testing.assert_array_equal(states[2], states[1])
    np.testing.assert_array_equal(states[3], states[1])


def test_layerdrop_rate(large_reference: Reference) -> None:
    graphdef, params = split(
        load_model(large_reference.folder, overrides=NO_REGULARISATION | {"layerdrop": 0.3})
    )
    x = jnp.ones((1, 2000))

    def dropped(key: jax.Array) -> jax.Array:
        states = merge(graphdef, params).with_hidden_states(x, key=key)[2]
        return jnp.all(states[1:] == states[:-1], axis=(1, 2, 3))

    share = np.mean(jax.vmap(dropped)(jax.random.split(jax.random.key(0), 400)), axis=0)
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], 0.3, atol=0.1)

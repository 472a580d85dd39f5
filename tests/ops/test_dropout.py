"""Dropout: its share, its mean, and that its elements do not depend on one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_wavlm.ops.dropout import draw_keep_mask, dropout

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [199, 200])
def test_share_and_mean(rate: float, size: int):
    x = jnp.ones((50, 20, size))
    y = np.asarray(dropout(x, rate, KEY))
    assert set(np.unique(y)) == {0.0, np.float32(1 / (1 - round(rate * 2**16) / 2**16))}
    tolerance = 5 * np.sqrt(rate * (1 - rate) / y.size)  # five standard deviations
    assert abs(np.mean(y == 0) - rate) < tolerance
    assert abs(np.mean(y) - 1) < tolerance / (1 - rate)


def test_no_key_and_the_ends_of_the_range():
    x = jnp.arange(1.0, 6.0)
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, KEY), x)
    np.testing.assert_array_equal(dropout(x, 1.0, KEY), np.zeros(5))


def test_two_halves_of_a_word_are_independent():
    """Elements half a row apart come from one random word: they must not be dropped together."""
    keep = np.asarray(draw_keep_mask(KEY, (2000, 101), 0.5)).astype(float)
    correlation = np.corrcoef(keep.T)  # [101, 101]
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 6 / np.sqrt(2000)


def test_gradient_is_of_the_same_mask():
    x = jnp.linspace(1, 2, 64).reshape(8, 8)
    gradient = jax.grad(lambda x: dropout(x, 0.3, KEY).sum())(x)
    np.testing.assert_allclose(gradient * x, dropout(x, 0.3, KEY), rtol=1e-6)


def test_dtype_stays():
    assert dropout(jnp.ones((4, 4), jnp.bfloat16), 0.1, KEY).dtype == jnp.bfloat16

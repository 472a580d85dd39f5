"""GELU beside torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flax_wavlm.ops.gelu.api import gelu


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_gelu(dtype: str, tolerance: float) -> None:
    """Values and slope against torch's in float64: in bfloat16 nothing but the result is rounded."""
    x = jnp.linspace(-9, 9, 2001).astype(dtype)
    exact = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    expected = torch.nn.functional.gelu(exact)
    expected.sum().backward()
    y, slope = gelu(x), jax.vmap(jax.grad(gelu))(x)
    assert slope.dtype == y.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), expected.detach(), rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(np.asarray(slope, np.float64), exact.grad, rtol=tolerance, atol=1e-6)

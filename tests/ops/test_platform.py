"""The switch that turns kernels off, and a jax that cannot import them."""

import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernels import normal, triton_kernels

from flax_wavlm.errors import UserError
from flax_wavlm.ops import platform
from flax_wavlm.ops.gelu.api import gelu
from flax_wavlm.ops.norm.api import layer_norm
from flax_wavlm.ops.switch import VARIABLE, kernels, references_only


def normed(x: jax.Array) -> jax.Array:
    return layer_norm(x, jnp.ones(24), jnp.zeros(24), 1e-5, jnp.float32)


def test_switch_is_undone() -> None:
    with kernels("reference"):
        assert references_only()
        with kernels("auto"):  # does not turn on again what somebody further out has turned off
            assert references_only()
    assert not references_only()


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "reference")
    assert references_only()
    assert "custom_vjp" not in str(jax.make_jaxpr(gelu)(jnp.ones(3)))
    monkeypatch.setenv(VARIABLE, "")
    assert not references_only()
    monkeypatch.setenv(VARIABLE, "no")
    with pytest.raises(UserError, match="FLAX_WAVLM_KERNELS is 'no', expected 'auto' or 'reference'"):
        gelu(jnp.ones(3))


def test_unknown_mode() -> None:
    with pytest.raises(UserError) as raised, kernels("fast"):
        pass
    assert (raised.value.field, raised.value.found) == ("model.kernels", "fast")


def test_kernels_are_traced_only_where_they_may_run() -> None:
    """Not at all in a process without a GPU, unless it lowers for one."""
    x = normal(0, 2, 5, 24)
    assert "pallas" not in str(jax.make_jaxpr(normed)(x))
    with platform.compiling_for_cuda():
        assert "pallas" in str(jax.make_jaxpr(lambda x: normed(x))(x))
    assert triton_kernels(lambda x: normed(x), x) == 1


def test_without_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A jax whose Pallas has no Triton: one line in the log, and programs for CUDA without our kernels."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    platform.has_triton.cache_clear()
    try:
        x = normal(0, 2, 5, 24)
        with caplog.at_level(logging.WARNING, "flax_wavlm"):
            assert triton_kernels(lambda x: normed(x), x) == 0
            np.testing.assert_allclose(normed(x).mean(-1), 0, atol=1e-6)
        assert [record.message for record in caplog.records if "no Pallas on Triton" in record.message]
        assert len(caplog.records) == 1
    finally:
        platform.has_triton.cache_clear()


def test_model_trains_where_no_pallas_can_be_imported() -> None:
    """In a process of its own, from which Triton and Mosaic are hidden before anything is imported."""
    code = """
import sys
for name in ("triton", "tpu"):
    sys.modules[f"jax.experimental.pallas.{name}"] = None
import jax
from flax import nnx
from flax_wavlm import WavLMConfig, WavLMForCTC
from flax_wavlm.models.parameters import merge, split
from flax_wavlm.ops.ctc.api import ctc_loss
import flax_wavlm.training.train
large = dict(feat_extract_norm="layer", do_stable_layer_norm=True)
config = WavLMConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    conv_dim=(8,) * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **large)
graphdef, params = split(WavLMForCTC(config, nnx.Rngs(0)))
def loss(params):
    logits, frames = merge(graphdef, params)(jax.numpy.ones((1, 1000)), key=jax.random.key(0))
    return ctc_loss(logits, frames, jax.numpy.array([[1]]), jax.numpy.array([1]), blank_id=0)[0].sum()
value, gradient = jax.jit(jax.value_and_grad(loss))(params)
assert jax.numpy.isfinite(value)
print("trained")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "trained\n", done.stderr

"""The gradients of the training step against transformers', tensor by tensor."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.reference import NO_REGULARISATION, Reference, attention_mask
from helpers.steps import (
    BLANK,
    DEEP,
    SAME,
    gradient_step,
    keep_gradient,
    make_batch,
    relative,
)

from flax_wavlm.models.parameters import merge, split
from flax_wavlm.ops.ctc.api import ctc_loss
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.save import hf_tensors
from flax_wavlm.training.state import init_state

GRADIENT = 1e-3  # relative, each tensor


def reference_gradients(
    reference: Reference, batch: dict[str, np.ndarray], mask: np.ndarray | None = None
) -> tuple[float, dict[str, np.ndarray]]:
    """transformers' mean CTC loss and its gradients, the model and torch's loss in float64.

    In float32 torch's own CTC gradient is off by 4e-5, which small differences of large sums (the gates of
    the position bias) turn into 1e-3 of a tensor: more than the error of ours.
    """
    model = copy.deepcopy(reference.model).double()
    hidden = model.wavlm(
        torch.tensor(batch["samples"], dtype=torch.float64),
        attention_mask=attention_mask(batch["samples"], batch["lengths"]),
        mask_time_indices=None if mask is None else torch.tensor(mask),
    )[0]
    loss = torch.nn.functional.ctc_loss(
        torch.log_softmax(model.lm_head(hidden), -1).transpose(0, 1),
        torch.tensor(batch["labels"]),
        model._get_feat_extract_output_lengths(torch.tensor(batch["lengths"])),
        torch.tensor(batch["label_lengths"]),
        blank=BLANK,
    )
    loss.backward()
    return loss.item(), gradients_of(model)


def gradients_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {
        name: np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy().copy()
        for name, parameter in model.named_parameters()
    }


def transformers_own(
    reference: Reference, batch: dict[str, np.ndarray]
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss that transformers itself computes from labels, and its gradients, in float32."""
    model = reference.model
    assert (model.config.ctc_loss_reduction, model.config.pad_token_id) == ("mean", BLANK)
    model.zero_grad()
    real = np.arange(batch["labels"].shape[1]) < batch["label_lengths"][:, None]
    loss = model(
        torch.tensor(batch["samples"]),
        attention_mask=attention_mask(batch["samples"], batch["lengths"]),
        labels=torch.tensor(np.where(real, batch["labels"], -100), dtype=torch.long),
    ).loss
    loss.backward()
    return loss.item(), gradients_of(model)


def no_gradient(reference: Reference, masked: bool) -> set[str]:
    """Tensors whose gradient is 0 in exact arithmetic: softmax does not see a key's bias, nor a norm over
    time what it takes the mean of; and nothing is masked."""
    names = {f"wavlm.encoder.layers.{i}.attention.k_proj.bias" for i in range(3)}
    if reference.kind == "base":
        names.add("wavlm.feature_extractor.conv_layers.0.conv.bias")
    return names if masked else names | {"wavlm.masked_spec_embed"}


def assert_gradients(
    label: str,
    ours: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    zero: set[str],
    measured: Callable[[str], None],
) -> None:
    assert ours.keys() == expected.keys()
    whole = float(np.sqrt(sum(np.sum(np.square(gradient)) for gradient in expected.values())))
    errors = {name: relative(ours[name], expected[name]) for name in expected.keys() - zero}
    noise = {name: float(np.linalg.norm(ours[name])) / whole for name in zero}
    worst = max(errors, key=errors.__getitem__)
    measured(
        f"{label}: {len(errors)} gradients, worst relative error {errors[worst]:.1e} ({worst}); "
        f"where it is 0, {max(noise.values()):.0e} of the whole norm"
    )
    assert {name: error for name, error in errors.items() if not error <= GRADIENT} == {}
    assert {name: share for name, share in noise.items() if not share <= 1e-6} == {}


WAYS = {
    "scan": {},
    "unrolled": {"unroll": 3},
    "remat full": {"remat": "full"},
    "remat dots": {"remat": "dots"},
}


@pytest.mark.parametrize(
    "way", ["scan", *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS if way != "scan")]
)
def test_gradients_are_the_references(
    reference: Reference, speech: list[np.ndarray], way: str, measured: Callable[[str], None]
) -> None:
    """Of every tensor, through the training step itself, in every way of running the layers."""
    batch = make_batch(speech[:3])
    expected_loss, expected = reference_gradients(reference, batch)
    own_loss, own = transformers_own(reference, batch)
    assert own_loss == pytest.approx(expected_loss, rel=SAME)
    zero = no_gradient(reference, masked=False)
    own_error = max(relative(own[name], expected[name]) for name in expected.keys() - zero)
    measured(f"{reference.kind}, transformers' own float32 gradients: {own_error:.1e}")
    config = reference.config.replace(**NO_REGULARISATION | WAYS[way])
    params = split(load_model(reference.folder))[1]
    state = gradient_step(config)(init_state(params, {}, keep_gradient()), batch)
    assert float(state.totals["loss"]) == pytest.approx(expected_loss, rel=DEEP)
    gradients = hf_tensors(config, state.opt_state)
    assert_gradients(f"{reference.kind}, {way}", gradients, expected, zero, measured)
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in expected.values()))
    assert float(state.totals["grad_norm"]) == pytest.approx(norm, rel=GRADIENT)


def test_gradients_with_a_fixed_mask(
    reference: Reference, speech: list[np.ndarray], measured: Callable[[str], None]
) -> None:
    """The mask embedding's as well."""
    batch = make_batch(speech[:2], seed=1)
    frames = int(reference.config.frame_count(batch["samples"].shape[1]))
    mask = np.random.default_rng(0).random((2, frames)) < 0.3
    expected_loss, expected = reference_gradients(reference, batch, mask)
    graphdef, params = split(load_model(reference.folder))

    def mean_loss(params: Any) -> jax.Array:
        logits, frames = merge(graphdef, params)(batch["samples"], batch["lengths"], mask_time=mask)
        loss, _ = ctc_loss(logits, frames, batch["labels"], batch["label_lengths"], blank_id=BLANK)
        return jnp.sum(jnp.where(batch["valid"], loss / batch["label_lengths"], 0)) / 2

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    assert float(loss) == pytest.approx(expected_loss, rel=DEEP)
    ours = hf_tensors(reference.config, gradients)
    zero = no_gradient(reference, masked=True)
    assert_gradients(f"{reference.kind}, fixed mask", ours, expected, zero, measured)

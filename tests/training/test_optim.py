"""Schedule, parameter groups and optimizer against transformers' and torch's."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import traverse_util
from helpers.reference import Reference, tiny_reference

from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import combine, decay_mask, partition, split
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.table import table
from flax_wavlm.training.optimizer import adamw, linear_schedule
from flax_wavlm.training.state import init_state

# --- Schedule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "warmup"), [(12500, 1000), (300, 0), (20, 19), (7, 1)])
def test_linear_schedule_is_the_references(total: int, warmup: int) -> None:
    """Every step of it, in float32's precision of the peak."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    factor = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total).lr_lambdas[0]
    steps = np.arange(total + 3)
    rates = jax.vmap(linear_schedule(1e-4, warmup, total))(steps)
    np.testing.assert_allclose(rates, [1e-4 * factor(int(step)) for step in steps], rtol=0, atol=1e-10)


def test_landmarks_of_the_recipe() -> None:
    schedule = linear_schedule(1e-4, 1000, 12500)
    assert float(schedule(0)) == 0
    assert float(schedule(12500)) == 0
    landmarks = {1: 1e-7, 500: 5e-5, 1000: 1e-4, 6750: 5e-5}
    for step, rate in landmarks.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


# --- The optimizer ------------------------------------------------------------------------------------------

SHAPES = {
    ("encoder", "layers", "up", "kernel"): (3, 7, 5),
    ("encoder", "layers", "up", "bias"): (3, 5),
    ("encoder", "norm", "scale"): (7,),
    ("encoder", "norm", "bias"): (7,),
    ("encoder", "bucket_bias"): (8, 2),
}
DECAYED = {("encoder", "layers", "up", "kernel"), ("encoder", "bucket_bias")}


def random_tree(rng: np.random.Generator, scale: float = 1.0) -> dict[str, Any]:
    arrays = {path: (scale * rng.normal(size=shape)).astype(np.float32) for path, shape in SHAPES.items()}
    return traverse_util.unflatten_dict(arrays)


@pytest.mark.parametrize("clip_norm", [1.0, 0.0], ids=["clipped", "not clipped"])
def test_adamw_is_torchs(clip_norm: float) -> None:
    """Ten updates, gradients above and below the norm, with the Trainer's two parameter groups."""
    rng = np.random.default_rng(0)
    rate, warmup, total, weight_decay = 0.05, 3, 12, 0.1
    params = jax.tree.map(jnp.asarray, random_tree(rng))
    optimizer = adamw(linear_schedule(rate, warmup, total), weight_decay=weight_decay, clip_norm=clip_norm)
    opt_state = optimizer.init(params)

    theirs = {
        path: torch.nn.Parameter(torch.tensor(np.array(leaf)))
        for path, leaf in traverse_util.flatten_dict(params).items()
    }
    groups = [
        {"params": [theirs[path] for path in SHAPES if path in DECAYED], "weight_decay": weight_decay},
        {"params": [theirs[path] for path in SHAPES if path not in DECAYED], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8)
    scheduler = transformers.get_linear_schedule_with_warmup(reference, warmup, total)

    update = jax.jit(optimizer.update)
    for step in range(10):
        before = params
        grads = random_tree(rng, scale=(0.01, 1.0, 10.0)[step % 3])
        assert (np.sqrt(sum(np.sum(grad**2) for grad in jax.tree.leaves(grads))) > 1) == (
            step % 3 > 0
        )  # some are clipped, some are not
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        for path, grad in traverse_util.flatten_dict(grads).items():
            theirs[path].grad = torch.tensor(grad)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
        reference.step()
        scheduler.step()
        if step == 0:
            assert not any(map(np.any, jax.tree.leaves(updates)))  # the first update has learning rate 0
        else:
            assert all(
                np.abs(new - old).max() > 1e-3
                for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True)
            )
        for path, leaf in traverse_util.flatten_dict(params).items():
            np.testing.assert_allclose(
                leaf, theirs[path].detach(), rtol=0, atol=2e-6, err_msg=f"{path} after step {step}"
            )


def test_update_is_clipped_to_the_norm() -> None:
    """Seen through plain state: AdamW itself hides a gradient's scale."""
    optimizer = adamw(optax.constant_schedule(1.0), weight_decay=0.0, clip_norm=1.0)
    params = {"kernel": jnp.zeros(2)}
    for grads, expected in (([30.0, 40.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        _, opt_state = optimizer.update({"kernel": jnp.array(grads)}, optimizer.init(params), params)
        np.testing.assert_allclose(first_moments(opt_state)["kernel"], 0.1 * np.array(expected), rtol=1e-5)


def first_moments(opt_state: Any) -> Any:
    return optax.tree_utils.tree_get(opt_state, "mu")


# --- Parameter groups ---------------------------------------------------------------------------------------


def leaf_at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def test_weight_decay_is_for_what_the_trainer_decays(reference: Reference) -> None:
    """By Hugging Face's names; for GroupNorm the Trainer of transformers 5 is followed: no decay."""
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, reference.model))
    mask = decay_mask(structure(reference.config)[1])
    entries = table(reference.config)
    assert {entry.name for entry in entries} == {name for name, _ in reference.model.named_parameters()}
    assert {entry.name for entry in entries if leaf_at(mask, entry.path)} == decayed
    # What its rule amounts to.
    assert decayed == {
        name
        for name, _ in reference.model.named_parameters()
        if not name.endswith("bias") and not name.endswith("layer_norm.weight")
    }


def test_partition_and_combine(large_reference: Reference) -> None:
    params = split(load_model(large_reference.folder))[1]
    flat = traverse_util.flatten_dict(params)
    for freeze in (True, False):
        trained, frozen = partition(params, freeze_feature_encoder=freeze)
        together = traverse_util.flatten_dict(combine(trained, frozen))
        assert together.keys() == flat.keys()
        assert all(together[path] is leaf for path, leaf in flat.items())
        assert len(jax.tree.leaves(frozen)) == (3 * 7 if freeze else 0)  # kernel, scale and bias of 7 convs
        assert all("feature_encoder" in path for path in traverse_util.flatten_dict(frozen))
        assert not any(freeze and "feature_encoder" in path for path in traverse_util.flatten_dict(trained))


def test_frozen_is_what_transformers_freezes(tmp_path) -> None:
    """Projection and its norm stay trained."""
    reference = tiny_reference("base", tmp_path)
    reference.model.freeze_feature_encoder()
    theirs = {name for name, parameter in reference.model.named_parameters() if not parameter.requires_grad}
    frozen = traverse_util.flatten_dict(
        partition(structure(reference.config)[1], freeze_feature_encoder=True)[1]
    )
    assert {entry.name for entry in table(reference.config) if entry.path in frozen} == theirs
    assert theirs


def test_frozen_has_no_optimizer_state(large_reference: Reference) -> None:
    optimizer = adamw(linear_schedule(1e-4, 1, 10), weight_decay=0.005, clip_norm=1.0)
    params = split(load_model(large_reference.folder))[1]
    for freeze in (True, False):
        trained, frozen = partition(params, freeze_feature_encoder=freeze)
        state = init_state(trained, frozen, optimizer)
        elements = sum(leaf.size for leaf in jax.tree.leaves(trained))
        arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        assert len(arrays) == 2 * len(jax.tree.leaves(trained))
        assert sum(leaf.size for leaf in arrays) == 2 * elements
        assert jax.tree.structure(first_moments(state.opt_state)) == jax.tree.structure(trained)
        assert {leaf.dtype for leaf in arrays} == {jnp.dtype("float32")}
        expected = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["wavlm"]["feature_encoder"]))
        assert sum(leaf.size for leaf in jax.tree.leaves(frozen)) == (expected if freeze else 0)

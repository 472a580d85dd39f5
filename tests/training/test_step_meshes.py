"""The training step over one, two and eight devices: one result, split states, donated buffers."""

from typing import Any, NamedTuple

import jax
import optax
import pytest
from helpers.steps import (
    BLANK,
    SAME,
    SMALL,
    assert_trees_near,
    relative,
    small_batch,
    small_params,
    small_state,
)

from flax_wavlm.models.heads import structure
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.save import hf_tensors
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.training.optimizer import adamw, linear_schedule
from flax_wavlm.training.state import TrainState
from flax_wavlm.training.step import jit_train_step, make_train_step

DEVICES = jax.device_count()
MESHES = (1, 2, 8) if DEVICES == 8 else (1,)  # the sizes of "fsdp"


class Run(NamedTuple):
    placed: TrainState  # given up to the first step
    state: TrainState


@pytest.fixture(scope="module")
def runs() -> dict[int, Run]:
    """Three steps of the recipe on every mesh, regularisation on, from the same state."""
    optimizer = adamw(linear_schedule(1e-3, 1, 100), weight_decay=0.005, clip_norm=1.0)
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "MIN_SPLIT_SIZE", 512)  # of so small a model much would stay whole
        for fsdp in MESHES:
            mesh = sharding.make_mesh(fsdp=fsdp)
            state = small_state(optimizer)
            placed = state = jax.device_put(state, sharding.tree_sharding(mesh, state))
            step = make_train_step(structure(SMALL)[0], optimizer, loss_of_ctc(BLANK), seed=0)
            batches = [sharding.put_batch(mesh, small_batch(seed=seed)) for seed in range(3)]
            jitted = jit_train_step(step, mesh, state).step.lower(state, batches[0])
            compiled = jitted.compile()
            for batch in batches:
                state = compiled(state, batch)
            results[fsdp] = Run(placed, state)
    return results


def test_state_is_donated(runs: dict[int, Run]) -> None:
    for run in runs.values():
        for leaf in jax.tree.leaves(run.placed.params) + jax.tree.leaves(run.placed.opt_state):
            assert leaf.is_deleted()
        assert int(run.state.step) == 3


@pytest.mark.skipif(DEVICES != 8, reason="needs 8 devices")
def test_same_result_on_every_mesh(runs: dict[int, Run]) -> None:
    def visible(params: Any) -> Any:
        """Without the keys' biases: AdamW makes whole updates of what is rounding in their gradients."""
        tensors = hf_tensors(SMALL, params)
        return {name: tensor for name, tensor in tensors.items() if not name.endswith("k_proj.bias")}

    expected = runs[1].state
    start = visible(small_params())
    for fsdp in MESHES[1:]:
        state = runs[fsdp].state
        for name, total in expected.totals.items():
            assert float(state.totals[name]) == pytest.approx(float(total), rel=SAME), name
        assert_trees_near(visible(state.params), visible(expected.params), SAME)
    moved = {name: relative(tensor, start[name]) for name, tensor in visible(expected.params).items()}
    assert min(moved.values()) > 10 * SAME  # so that staying where they are would not pass


@pytest.mark.skipif(DEVICES != 8, reason="needs 8 devices")
@pytest.mark.parametrize("fsdp", MESHES)
def test_parameters_and_optimizer_state_are_split(runs: dict[int, Run], fsdp: int) -> None:
    state = runs[fsdp].state
    for params in (
        state.params,
        *(optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu")),
    ):
        leaves = jax.tree.leaves(params)
        split_leaves = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
        if fsdp == 1:
            assert not split_leaves
            continue
        assert len(split_leaves) >= 8
        assert all(leaf.addressable_data(0).size * fsdp == leaf.size for leaf in split_leaves)
        held = sum(leaf.addressable_data(0).size for leaf in leaves)
        assert held < 0.2 * sum(leaf.size for leaf in leaves) + 0.8 * sum(leaf.size for leaf in leaves) / fsdp

"""The training step: what must not change its result, and what a step that is not finite leaves."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.steps import (
    BLANK,
    QUIET,
    ROWS,
    SAME,
    SAMPLES,
    SMALL,
    assert_same_gradients,
    gradient_step,
    keep_gradient,
    make_batch,
    small_batch,
    small_state,
)

from flax_wavlm.models.heads import WavLMForCTC, structure
from flax_wavlm.models.parameters import partition, split
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.training import step as step_module
from flax_wavlm.training.optimizer import adamw
from flax_wavlm.training.state import SKIPPED_KEPT, TOTALS, TrainState, init_state, skipped_steps
from flax_wavlm.training.step import _compiler_options, make_train_step


def test_accumulation_gives_the_gradient_of_the_whole() -> None:
    """In four parts or one; a part may have more valid rows, labels and infeasible clips than another."""
    batch = small_batch()
    batch["valid"][[1, 4, 5]] = False
    batch["lengths"][2] = 300  # labels that do not fit
    whole, parts = (gradient_step(QUIET, accumulation=n)(small_state(), batch) for n in (1, 4))
    assert_same_gradients(parts.opt_state, whole.opt_state)
    for name, total in whole.totals.items():
        assert float(parts.totals[name]) == pytest.approx(float(total), rel=SAME), name
    assert float(whole.totals["clips"]) == ROWS - 3
    assert float(whole.totals["infeasible"]) == 1
    assert float(whole.totals["samples"]) == batch["lengths"][batch["valid"]].sum()


def test_filler_rows_change_nothing() -> None:
    """Whatever they hold: the means are those of the valid rows, which a batch has that repeats them."""
    batch = small_batch()
    half = ROWS // 2
    repeated = {name: np.concatenate([rows[:half], rows[:half]]) for name, rows in batch.items()}
    expected = gradient_step(QUIET)(small_state(), repeated)
    order = np.random.default_rng(0).permutation(ROWS)
    batch["valid"][half:] = False
    for length, label_length, value in ((0, 0, 0.0), (SAMPLES, 24, 1.0), (300, 24, -1.0)):
        batch["lengths"][half:] = length
        batch["label_lengths"][half:] = label_length
        batch["samples"][half:] = value
        state = gradient_step(QUIET)(small_state(), {name: rows[order] for name, rows in batch.items()})
        assert_same_gradients(state.opt_state, expected.opt_state)
        for name in ("loss", "grad_norm"):
            assert float(state.totals[name]) == pytest.approx(float(expected.totals[name]), rel=SAME)
        assert float(state.totals["clips"]) == half
        assert float(state.totals["infeasible"]) == 0
        assert float(state.totals["samples"]) == batch["lengths"][:half].sum()


def test_batch_of_nothing_but_filler() -> None:
    """Of one process's last batch, say: finite, and no gradient."""
    batch = small_batch()
    batch["valid"][:] = False
    state = gradient_step(QUIET)(small_state(), batch)
    assert not any(map(np.any, jax.tree.leaves(state.opt_state)))
    assert jax.device_get(state.totals) == {name: name == "steps" for name in TOTALS}


def test_infeasible_clips_are_counted_and_give_nothing() -> None:
    """They stay in the mean's denominator, as torch's zero_infinity leaves them."""
    batch = small_batch()
    before = gradient_step(QUIET)(small_state(), batch)
    assert float(before.totals["infeasible"]) == 0
    short = np.array([3, 8, 9])
    batch["lengths"][short] = 400  # four frames for five labels and more
    both = gradient_step(QUIET)(small_state(), batch)
    assert float(both.totals["infeasible"]) == 3
    assert float(both.totals["clips"]) == ROWS
    batch["valid"][short] = False
    without = gradient_step(QUIET)(small_state(), batch)
    assert float(without.totals["infeasible"]) == 0
    share = (ROWS - 3) / ROWS
    expected = jax.tree.map(lambda gradient: share * gradient, without.opt_state)
    assert_same_gradients(both.opt_state, expected)
    assert float(both.totals["loss"]) == pytest.approx(share * float(without.totals["loss"]), rel=SAME)
    # And totals go on from step to step.
    again = gradient_step(QUIET)(both, batch)
    assert float(again.totals["steps"]) == 2
    assert float(again.totals["infeasible"]) == 3
    assert float(again.totals["clips"]) == 2 * ROWS - 3
    assert int(again.step) == 2


def test_reduction_sum_divides_by_nothing() -> None:
    """Against "mean" where every clip has the same number of labels."""
    batch = small_batch()
    batch["label_lengths"][:] = 7
    mean, total = (gradient_step(QUIET, reduction=name)(small_state(), batch) for name in ("mean", "sum"))
    scaled = jax.tree.map(lambda gradient: gradient * 7 * ROWS, mean.opt_state)
    assert_same_gradients(total.opt_state, scaled)
    assert float(total.totals["loss"]) == pytest.approx(7 * ROWS * float(mean.totals["loss"]), rel=SAME)


def test_frozen_parameters_have_no_gradient_and_stay() -> None:
    batch = small_batch()
    free = gradient_step(QUIET)(small_state(), batch)
    state = gradient_step(QUIET)(small_state(freeze=True), batch)
    assert "feature_encoder" not in state.opt_state["wavlm"]
    expected, skipped = partition(free.opt_state, freeze_feature_encoder=True)
    assert_same_gradients(state.opt_state, expected)
    assert all(np.abs(gradient).max() > 0 for gradient in jax.tree.leaves(skipped))  # it would have one
    for one, other in zip(
        jax.tree.leaves(state.frozen), jax.tree.leaves(small_state(freeze=True).frozen), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_randomness_is_of_seed_and_step() -> None:
    batch, state = small_batch(), small_state()

    def any_seed(state: TrainState, batch: dict[str, jax.Array], seed: jax.Array) -> TrainState:
        step = make_train_step(structure(SMALL)[0], keep_gradient(), loss_of_ctc(BLANK), seed=seed)
        return step(state, batch)

    jitted = jax.jit(any_seed)  # compiled once for all seeds

    def loss(step: int, seed: int) -> float:
        return float(jitted(state._replace(step=jnp.int32(step)), batch, seed).totals["loss"])

    assert loss(0, 0) == loss(0, 0)
    assert loss(7, 0) == loss(7, 0)
    assert len({loss(0, 0), loss(1, 0), loss(7, 0), loss(0, 1), loss(1, 1)}) == 5
    quiet = gradient_step(QUIET)
    assert float(quiet(state, batch).totals["loss"]) == float(
        quiet(state._replace(step=jnp.int32(7)), batch).totals["loss"]
    )


def test_step_that_is_not_finite_changes_nothing_but_is_noted() -> None:
    """Parameters and optimizer as before, bit for bit; means over the others; the steps by their numbers."""
    optimizer = adamw(optax.constant_schedule(1e-2), weight_decay=0.01, clip_norm=1.0)
    graphdef, params = split(WavLMForCTC(SMALL, nnx.Rngs(0)))
    trained, frozen = partition(params, freeze_feature_encoder=True)
    step = make_train_step(graphdef, optimizer, loss_of_ctc(BLANK), seed=0)
    step = jax.jit(step)
    rng = np.random.default_rng(0)
    good = make_batch([rng.normal(size=8_000).astype(np.float32) for _ in range(2)])
    bad = {**good, "scale": good["scale"] * np.float32(np.inf)}

    state = step(init_state(trained, frozen, optimizer), good)
    assert skipped_steps(state) == []
    after = step(state, bad)
    for name in ("params", "frozen", "opt_state", "totals"):
        for (path, ours), before in zip(
            jax.tree_util.tree_leaves_with_path(getattr(after, name)),
            jax.tree.leaves(getattr(state, name)),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, before, err_msg=f"{name}{jax.tree_util.keystr(path)}")
    assert int(after.step) == 2
    assert skipped_steps(after) == [2]
    state = step(step(after, good), bad)
    assert (skipped_steps(state), skipped_steps(state, since=1)) == ([2, 4], [4])
    assert float(state.totals["steps"]) == 2
    for _ in range(SKIPPED_KEPT):
        state = step(state, bad)
    assert int(state.skipped["count"]) == 2 + SKIPPED_KEPT
    assert skipped_steps(state) == list(range(5, 5 + SKIPPED_KEPT))
    assert np.isfinite(float(state.totals["loss"]))


@pytest.mark.parametrize(
    ("platform", "options", "taken"),
    [
        ("gpu", {"xla_gpu_enable_while_loop_double_buffering": True}, True),
        ("gpu", {"xla_gpu_no_such_option": True}, False),
        ("cpu", {"xla_gpu_no_such_option": True}, False),
    ],
)
def test_compiler_options_are_taken_where_they_are_known(
    platform: str, options: dict[str, bool], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that no longer knows one still compiles the step."""
    monkeypatch.setattr(step_module, "GPU_OPTIONS", options)
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    assert _compiler_options(mesh) == (options if taken else None)

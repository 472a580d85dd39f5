"""The training step: its gradients against transformers', and all that must not change its result."""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from helpers.reference import NO_REGULARISATION, Reference, attention_mask, pad

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import WavLMForCTC, structure
from flax_wavlm.models.parameters import merge, partition, split
from flax_wavlm.ops.ctc.api import ctc_loss, reduced_sum
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.save import hf_tensors
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.training import step as step_module
from flax_wavlm.training.optimizer import adamw, linear_schedule
from flax_wavlm.training.state import SKIPPED_KEPT, TOTALS, TrainState, init_state, skipped_steps
from flax_wavlm.training.step import _compiler_options, jit_train_step, make_train_step

DEEP = 1e-4
GRADIENT = 1e-3  # relative, each tensor
SAME = 1e-5  # relative, between two ways of computing the same
BLANK = 29
DEVICES = jax.device_count()


def make_batch(clips: list[np.ndarray], *, seed: int = 0, samples: int = 0) -> dict[str, np.ndarray]:
    """The clips with random labels that fit, repeats among them."""
    rng = np.random.default_rng(seed)
    rows, lengths = pad(clips, samples)
    label_lengths = rng.integers(5, 25, len(clips)).astype(np.int32)
    labels = rng.integers(0, BLANK, (len(clips), 24)).astype(np.int32)
    labels[:, 1] = labels[:, 0]
    return {
        "samples": rows,
        "mean": np.zeros(len(clips), np.float32),
        "scale": np.ones(len(clips), np.float32),
        "lengths": lengths,
        "labels": labels,
        "label_lengths": label_lengths,
        "valid": np.ones(len(clips), bool),
    }


def keep_gradient() -> optax.GradientTransformation:
    """An optimizer whose state is the last gradient, and that changes nothing."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, _, __: (jax.tree.map(jnp.zeros_like, grads), grads),
    )


# A third of the time to compile: the same operations, less care with their machine code.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@functools.cache
def gradient_step(config: WavLMConfig, *, quick: bool = True, **changes: Any):
    """The step with `keep_gradient` jitted for a single device, its input kept."""
    settings = {"reduction": "mean", "seed": 0} | changes
    loss = loss_of_ctc(BLANK, settings.pop("reduction"))
    step = make_train_step(structure(config)[0], keep_gradient(), loss, **settings)
    return jax.jit(step, compiler_options=QUICK if quick else None)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(a) - np.ravel(b)) / np.linalg.norm(np.ravel(b)))


def assert_trees_near(ours: Any, expected: Any, tolerance: float) -> None:
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-12, jax.tree_util.keystr(path)


# --- Gradients equal to the reference's ---------------------------------------------------------------------


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


def test_gradients_are_the_references(
    reference: Reference, speech: list[np.ndarray], measured: Callable[[str], None]
) -> None:
    """Of every tensor, through the training step itself, in every way of running the layers."""
    batch = make_batch(speech[:3])
    expected_loss, expected = reference_gradients(reference, batch)
    own_loss, own = transformers_own(reference, batch)
    assert own_loss == pytest.approx(expected_loss, rel=SAME)
    zero = no_gradient(reference, masked=False)
    own_error = max(relative(own[name], expected[name]) for name in expected.keys() - zero)
    measured(f"{reference.kind}, transformers' own float32 gradients: {own_error:.1e}")
    params = split(load_model(reference.folder))[1]
    for way, changes in WAYS.items():
        config = reference.config.replace(**NO_REGULARISATION | changes)
        step = gradient_step(config, quick=way != "scan")
        state = step(init_state(params, {}, keep_gradient()), batch)
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
        return reduced_sum(loss, batch["label_lengths"], batch["valid"], reduction="mean") / 2

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss), compiler_options=QUICK)(params)
    assert float(loss) == pytest.approx(expected_loss, rel=DEEP)
    ours = hf_tensors(reference.config, gradients)
    zero = no_gradient(reference, masked=True)
    assert_gradients(f"{reference.kind}, fixed mask", ours, expected, zero, measured)


# --- One result, however it is computed ---------------------------------------------------------------------

SMALL = WavLMConfig(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_dim=(16, 16, 16),
    conv_kernel=(10, 4, 4),
    conv_stride=(5, 4, 4),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    num_buckets=32,
    max_bucket_distance=40,
    hidden_dropout=0.1,
    attention_dropout=0.1,
    layerdrop=0.2,
    mask_time_prob=0.2,
    mask_feature_prob=0.1,
    pad_token_id=BLANK,
)
QUIET = SMALL.replace(**NO_REGULARISATION)
ROWS, SAMPLES = 16, 4000


def small_batch(rows: int = ROWS, *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SAMPLES * 3 // 4, SAMPLES, rows)
    return make_batch([rng.normal(size=n) for n in lengths], seed=seed, samples=SAMPLES)


@functools.cache
def small_params() -> dict[str, Any]:
    """On the host: a step that takes its state's buffers takes copies of them."""
    params = jax.jit(lambda: split(WavLMForCTC(SMALL, nnx.Rngs(0)))[1])()
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (np.asarray(leaf) + 0.05 * rng.normal(size=leaf.shape)).astype(np.float32), params
    )


def small_state(optimizer: optax.GradientTransformation | None = None, *, freeze: bool = False) -> TrainState:
    trained, frozen = partition(jax.tree.map(jnp.array, small_params()), freeze_feature_encoder=freeze)
    return init_state(trained, frozen, optimizer or keep_gradient())


def assert_same_gradients(ours: Any, expected: Any) -> None:
    """1e-5 of the whole, and 1e-4 of each array: some are small differences of large sums."""
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (ours, expected)]
    assert relative(*flat) <= SAME
    assert_trees_near(ours, expected, DEEP)


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


# --- Randomness ---------------------------------------------------------------------------------------------


def test_randomness_is_of_seed_and_step() -> None:
    batch, state = small_batch(), small_state()

    def any_seed(state: TrainState, batch: dict[str, jax.Array], seed: jax.Array) -> TrainState:
        step = make_train_step(structure(SMALL)[0], keep_gradient(), loss_of_ctc(BLANK), seed=seed)
        return step(state, batch)

    jitted = jax.jit(any_seed, compiler_options=QUICK)  # compiled once for all seeds

    def loss(step: int, seed: int) -> float:
        return float(jitted(state._replace(step=jnp.int32(step)), batch, seed).totals["loss"])

    assert loss(0, 0) == loss(0, 0)
    assert loss(7, 0) == loss(7, 0)
    assert len({loss(0, 0), loss(1, 0), loss(7, 0), loss(0, 1), loss(1, 1)}) == 5
    quiet = gradient_step(QUIET)
    assert float(quiet(state, batch).totals["loss"]) == float(
        quiet(state._replace(step=jnp.int32(7)), batch).totals["loss"]
    )


# --- Over a mesh --------------------------------------------------------------------------------------------

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
            jitted = jit_train_step(step, mesh, state).lower(state, batches[0])
            compiled = jitted.compile(compiler_options=QUICK)
            for batch in batches:
                state = compiled(state, batch)
            results[fsdp] = Run(placed, state)
    return results


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


def test_step_that_is_not_finite_changes_nothing_but_is_noted() -> None:
    """Parameters and optimizer as before, bit for bit; means over the others; the steps by their numbers."""
    optimizer = adamw(optax.constant_schedule(1e-2), weight_decay=0.01, clip_norm=1.0)
    graphdef, params = split(WavLMForCTC(SMALL, nnx.Rngs(0)))
    trained, frozen = partition(params, freeze_feature_encoder=True)
    step = make_train_step(graphdef, optimizer, loss_of_ctc(BLANK), seed=0)
    step = jax.jit(step, compiler_options=QUICK)
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

"""The CTC loss against torch's and against every path counted one by one; greedy decoding in plain Python."""

import functools
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers.kernels import triton_kernels
from hypothesis import given
from hypothesis import strategies as st

from flax_wavlm.ops.ctc import api as ctc_api
from flax_wavlm.ops.ctc.api import ctc_loss
from flax_wavlm.ops.ctc.gpu import forward as forward_by_kernel
from flax_wavlm.ops.ctc.reference import forward as forward_by_scan
from flax_wavlm.parallel import sharding
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.recognition.decoding import best_path, collapse, path_of_clip
from flax_wavlm.recognition.task import ClipLosses, Loss

Array = np.ndarray
RELATIVE, ABSOLUTE = 1e-4, 1e-5
# A third of the time to compile: the same operations, less care with their machine code.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
ROWS, FRAMES, OUTPUTS, WIDTH = 8, 24, 9, 10  # of the random cases: one shape, so that each is one compilation
BLANKS = (0, 5)


class Case(NamedTuple):
    logits: Array  # [B, T, V]
    frames: Array  # [B]
    labels: Array  # [B, S]
    label_lengths: Array  # [B]


def needed(labels: Array) -> int:
    """The frames that these labels need."""
    return len(labels) + int(np.sum(labels[1:] == labels[:-1]))


def random_case(seed: int, blank_id: int, *, scale: float = 2.0) -> Case:
    """Row 0 has no labels, row 1 all equal ones, row 2 and 3 one frame more and one fewer than they need,
    row 4 exactly those, row 5 no frame but labels; the others are as they come."""
    rng = np.random.default_rng(seed)
    others = [v for v in range(OUTPUTS) if v != blank_id]
    label_lengths = np.array([0, 6, 7, 7, 8, 2, WIDTH, *rng.integers(1, WIDTH, ROWS - 7)])
    labels = rng.choice(others[:3], (ROWS, WIDTH))  # of three only: many repeats
    labels[1] = labels[1, 0]
    frames = np.array([FRAMES - 3, FRAMES, 0, 0, 0, 0, FRAMES, *rng.integers(WIDTH * 2, FRAMES, ROWS - 7)])
    for row, more in ((2, 1), (3, -1), (4, 0)):
        frames[row] = needed(labels[row, : label_lengths[row]]) + more
    logits = rng.normal(scale=scale, size=(ROWS, FRAMES, OUTPUTS)).astype(np.float32)
    return Case(logits, frames.astype(np.int32), labels.astype(np.int32), label_lengths.astype(np.int32))


def feasible_rows(case: Case) -> Array:
    rows = zip(case.labels, case.label_lengths, case.frames, strict=True)
    return np.array([needed(labels[:length]) <= frames for labels, length, frames in rows])


@functools.lru_cache
def ours(blank_id: int):
    """(logits, frames, labels, label_lengths, weights) -> loss, feasible, gradient of sum(weights * loss)."""

    def weighted(logits, frames, labels, label_lengths, weights):
        loss, feasible = ctc_loss(logits, frames, labels, label_lengths, blank_id=blank_id)
        return jnp.sum(weights * loss), (loss, feasible)

    def call(*arguments):
        (_, (loss, feasible)), gradient = jax.value_and_grad(weighted, has_aux=True)(*arguments)
        return loss, feasible, gradient

    return jax.jit(call, compiler_options=QUICK)


def torchs(case: Case, blank_id: int, reduction: str, weights: Array | None = None) -> tuple[Array, Array]:
    """torch's loss with zero_infinity, and its gradient with respect to the logits.

    In float64: in float32 its gradient is off by 2e-4 where the loss is in the hundreds.
    """
    logits = torch.tensor(case.logits, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        torch.log_softmax(logits, -1).transpose(0, 1),
        torch.tensor(case.labels),
        torch.tensor(case.frames),
        torch.tensor(case.label_lengths),
        blank=blank_id,
        reduction=reduction,
        zero_infinity=True,
    )
    (loss if weights is None else loss * torch.tensor(weights)).sum().backward()
    return loss.detach().numpy(), logits.grad.numpy()


# --- The loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank_id", BLANKS)
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_are_torchs(seed: int, blank_id: int) -> None:
    case = random_case(seed, blank_id)
    weights = np.random.default_rng(seed).uniform(0.5, 2, ROWS).astype(np.float32)
    loss, feasible, gradient = ours(blank_id)(*case, weights)
    expected_loss, expected_gradient = torchs(case, blank_id, "none", weights)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected_loss, rtol=RELATIVE, atol=ABSOLUTE)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=RELATIVE, atol=ABSOLUTE)
    np.testing.assert_array_equal(feasible, feasible_rows(case))


def test_random_cases_hold_what_they_should() -> None:
    for blank_id, seed in itertools.product(BLANKS, range(4)):
        case = random_case(seed, blank_id)
        feasible = feasible_rows(case)
        assert feasible.tolist() == [True, True, True, False, True, False, True, True]
        assert (case.labels != blank_id).all()
        assert case.label_lengths[0] == 0
        assert len(set(case.frames)) >= 5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_is_torchs(reduction: str) -> None:
    """Torch is given the valid rows only."""
    blank_id = 5
    case = random_case(9, blank_id)

    def reduced(logits: jax.Array, valid: jax.Array) -> jax.Array:
        batch = {"labels": case.labels, "label_lengths": case.label_lengths, "valid": valid}
        loss = loss_of_ctc(blank_id, reduction)
        return loss(logits, case.frames, batch).total * loss.scale(valid.sum())

    jitted = jax.jit(jax.value_and_grad(reduced), compiler_options=QUICK)
    for dropped in ((), (1, 4, 6)):
        valid = np.array([row not in dropped for row in range(ROWS)])
        loss, gradient = jitted(case.logits, valid)
        expected_loss, expected_gradient = torchs(Case(*(part[valid] for part in case)), blank_id, reduction)
        np.testing.assert_allclose(loss, expected_loss, rtol=RELATIVE, atol=ABSOLUTE)
        np.testing.assert_allclose(gradient[valid], expected_gradient, rtol=RELATIVE, atol=ABSOLUTE)
        assert not np.any(gradient[~valid])


def test_not_even_nan_comes_out_of_rows_that_are_not_valid() -> None:
    loss = jnp.array([1.0, np.nan, np.inf])
    valid = np.array([True, False, False])
    given = Loss(lambda *_: ClipLosses(loss, jnp.ones(3, bool)))
    found = given(jnp.zeros((3, 1, 1)), jnp.ones(3), {"valid": valid})
    assert float(found.total) == 1.0


def test_labels_after_their_length_do_not_matter() -> None:
    blank_id = 5
    case, weights = random_case(1, blank_id), np.ones(ROWS, np.float32)
    expected = ours(blank_id)(*case, weights)
    after = np.arange(WIDTH) >= case.label_lengths[:, None]
    last = np.take_along_axis(case.labels, np.maximum(case.label_lengths - 1, 0)[:, None], axis=1)
    for padding in (0, blank_id, OUTPUTS - 1, -1, -100, 10_000, last):
        labels = np.where(after, padding, case.labels).astype(np.int32)
        loss, feasible, gradient = ours(blank_id)(*case._replace(labels=labels), weights)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        np.testing.assert_array_equal(feasible, expected[1])
        np.testing.assert_allclose(gradient, expected[2], rtol=0, atol=1e-6)


def test_logits_after_the_frames_do_not_matter() -> None:
    blank_id = 5
    case, weights = random_case(2, blank_id), np.ones(ROWS, np.float32)
    expected = ours(blank_id)(*case, weights)
    after = (np.arange(FRAMES) >= case.frames[:, None])[:, :, None]
    logits = np.where(after, 50 * case.logits[::-1], case.logits)
    for one, other in zip(ours(blank_id)(*case._replace(logits=logits), weights), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.any(np.where(after, expected[2], 0))


@pytest.mark.parametrize("scale", [0.1, 30.0], ids=["flat", "sharp"])
def test_flat_and_sharp_logits(scale: float) -> None:
    case, weights = random_case(3, 0, scale=scale), np.ones(ROWS, np.float32)
    loss, _, gradient = ours(0)(*case, weights)
    expected_loss, expected_gradient = torchs(case, 0, "none")
    np.testing.assert_allclose(loss, expected_loss, rtol=RELATIVE, atol=ABSOLUTE)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=RELATIVE, atol=ABSOLUTE)


def test_labels_that_do_not_fit() -> None:
    """Exactly zero loss and gradient, and told apart; one frame more and they fit."""
    blank_id = 5
    rng = np.random.default_rng(0)
    labels = np.zeros((ROWS, WIDTH), np.int32)
    labels[:4, :4] = [1, 1, 2, 2]  # 6 frames
    labels[4:, :4] = [1, 2, 1, 2]  # 4 frames
    frames = np.array([6, 5, 4, 0, 4, 3, 1, 0], np.int32)
    case = Case(
        rng.normal(size=(ROWS, FRAMES, OUTPUTS)).astype(np.float32),
        frames,
        labels,
        np.full(ROWS, 4, np.int32),
    )
    loss, feasible, gradient = ours(blank_id)(*case, np.ones(ROWS, np.float32))
    assert feasible.tolist() == [True, False, False, False, True, False, False, False]
    assert (loss[~feasible] == 0).all()
    assert (gradient[~feasible] == 0).all()
    assert (loss[feasible] > 1).all()
    assert all(np.abs(gradient[row]).max() > 0.01 for row in (0, 4))
    expected_loss, expected_gradient = torchs(case, blank_id, "none")
    np.testing.assert_allclose(loss, expected_loss, rtol=RELATIVE, atol=ABSOLUTE)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=RELATIVE, atol=ABSOLUTE)


def test_no_labels_and_no_frames() -> None:
    """The empty path stands for the empty text: likelihood 1."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    loss, feasible = ctc_loss(
        logits, np.array([0, 3]), np.zeros((2, 2), np.int32), np.array([0, 0]), blank_id=1
    )
    assert feasible.all()
    log_probabilities = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(loss, [0, -log_probabilities[1, :, 1].sum()], rtol=1e-6, atol=1e-6)


def test_bfloat16_logits_are_worked_on_in_float32() -> None:
    case = random_case(4, 0)
    rounded = jnp.asarray(case.logits, jnp.bfloat16)
    weights = np.ones(ROWS, np.float32)
    loss, _, gradient = ours(0)(rounded, *case[1:], weights)
    expected = ours(0)(rounded.astype(jnp.float32), *case[1:], weights)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(gradient, expected[2].astype(jnp.bfloat16))


def test_long_clips_keep_their_digits() -> None:
    """8 s of speech: loss and gradient are torch's in float64, and the loss is optax's.

    optax's own float32 gradient is off by 6e-4 here.
    """
    rng = np.random.default_rng(0)
    frames, label_lengths = np.array([399, 310, 120]), np.array([110, 80, 40])
    logits = rng.normal(scale=3, size=(3, 399, 32)).astype(np.float32)
    labels = rng.integers(1, 32, (3, 110))

    def loss_sum(logits: Array) -> Array:
        return ctc_loss(logits, frames, labels, label_lengths, blank_id=0)[0].sum()

    loss, gradient = jax.jit(jax.value_and_grad(loss_sum), compiler_options=QUICK)(logits)
    double = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        torch.log_softmax(double, -1).transpose(0, 1),
        torch.tensor(labels),
        torch.tensor(frames),
        torch.tensor(label_lengths),
        reduction="sum",
    )
    expected.backward()
    assert double.grad is not None
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, double.grad.numpy(), atol=1e-4)

    padding = [np.arange(n) >= lengths[:, None] for n, lengths in ((399, frames), (110, label_lengths))]
    optaxs = optax.ctc_loss(logits, padding[0].astype(float), labels, padding[1].astype(float)).sum()
    np.testing.assert_allclose(loss, optaxs, rtol=1e-5)


# --- Every path, one by one ---------------------------------------------------------------------------------


def plain_collapse(path: tuple[int, ...], blank_id: int) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != blank_id]


@pytest.mark.parametrize("blank_id", [0, 1, 2])
def test_loss_is_the_sum_over_all_paths(blank_id: int) -> None:
    """Every text of up to three labels, for one to five frames of three outputs, in one batch."""
    outputs = 3
    letters = [v for v in range(outputs) if v != blank_id]
    texts = [text for size in range(4) for text in itertools.product(letters, repeat=size)]
    cases = [(frames, text) for frames in range(1, 6) for text in texts]
    logits = np.random.default_rng(blank_id).normal(scale=2, size=(len(cases), 5, outputs)).astype(np.float32)
    labels = np.array([(*text, *[0] * (3 - len(text))) for _, text in cases], np.int32)
    loss, feasible = ctc_loss(
        logits,
        np.array([frames for frames, _ in cases]),
        labels,
        np.array([len(text) for _, text in cases]),
        blank_id=blank_id,
    )
    shifted = np.exp(logits.astype(np.float64))
    probabilities = shifted / shifted.sum(-1, keepdims=True)
    for row, (frames, text) in enumerate(cases):
        likelihood = sum(
            np.prod([probabilities[row, t, label] for t, label in enumerate(path)])
            for path in itertools.product(range(outputs), repeat=frames)
            if plain_collapse(path, blank_id) == list(text)
        )
        assert bool(feasible[row]) == (likelihood > 0), (frames, text)
        expected = -np.log(likelihood) if likelihood else 0.0
        assert float(loss[row]) == pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE), (frames, text)


def test_log_prior_changes_the_paths_and_not_the_outputs() -> None:
    """Path by path, in float64: the gradient is the softmax less the posterior, and the prior has none."""
    blank_id, outputs, frames = 2, 3, np.array([4, 5, 2, 3, 2])
    texts = [(0, 1), (1, 1, 0), (0,), (), (0, 0)]  # the last does not fit
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(5, 5, outputs)).astype(np.float32)
    log_prior = np.array([-3.0, -1.0, -0.2], np.float32)

    def loss_sum(logits: jax.Array, log_prior: jax.Array) -> tuple[jax.Array, jax.Array]:
        labels = jnp.array([(*text, *[0] * (3 - len(text))) for text in texts])
        lengths = jnp.array([len(text) for text in texts])
        loss, _ = ctc_loss(logits, frames, labels, lengths, blank_id=blank_id, log_prior=log_prior)
        return loss.sum(), loss

    differentiate = jax.jit(jax.grad(loss_sum, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
    (gradient, of_prior), loss = differentiate(logits, log_prior)
    assert not np.any(of_prior)
    shifted = np.exp(logits.astype(np.float64))
    probabilities = shifted / shifted.sum(-1, keepdims=True)
    scores = probabilities / np.exp(log_prior.astype(np.float64))
    for row, text in enumerate(texts):
        posterior, likelihood = np.zeros((5, outputs)), 0.0
        for path in itertools.product(range(outputs), repeat=int(frames[row])):
            if plain_collapse(path, blank_id) == list(text):
                places = (np.arange(frames[row]), list(path))
                score = np.prod(scores[row][places])
                likelihood += score
                posterior[places] += score
        expected = np.zeros((5, outputs))
        if likelihood:
            own = np.arange(5)[:, None] < frames[row]
            expected = np.where(own, probabilities[row] - posterior / likelihood, 0)
            assert float(loss[row]) == pytest.approx(-np.log(likelihood), rel=RELATIVE, abs=ABSOLUTE)
        np.testing.assert_allclose(gradient[row], expected, atol=1e-6)


# --- The kernel for GPUs ------------------------------------------------------------------------------------

interpreted = functools.partial(forward_by_kernel, interpret=True)


def states_case(rows: int, time: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Emissions [B, T, S] and may_skip [B, S] at random; row 0 may skip nothing, row 1 all blanks."""
    rng = np.random.default_rng(count)
    emission = jax.nn.log_softmax(rng.normal(scale=3, size=(rows, time, count)).astype(np.float32))
    label = np.arange(count) % 2 == 1
    may_skip = (rng.random((rows, count)) < 0.5) & label
    may_skip[0], may_skip[1] = False, label
    return emission, jnp.asarray(may_skip)


@pytest.mark.parametrize(
    ("time", "count"), [(24, 21), (7, 3), (1, 5), (40, 33)], ids=["some", "one label", "one frame", "wide"]
)
def test_kernel_is_the_scan(time: int, count: int) -> None:
    """S fills no power of two; 33 is the first that a width of 32 does not hold."""
    arrays = states_case(3, time, count)
    expected = jax.jit(forward_by_scan, compiler_options=QUICK)(*arrays)
    got = jax.jit(interpreted, compiler_options=QUICK)(*arrays)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-5)


def test_loss_and_gradient_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats, no labels, lengths of all kinds, labels that do not fit."""
    case, weights = random_case(0, 5), np.ones(ROWS, np.float32)
    expected = ours(5)(*case, weights)
    monkeypatch.setattr(ctc_api, "by_platform", lambda *arguments: interpreted(*arguments[-2:]))
    got = ours.__wrapped__(5)(*case, weights)
    np.testing.assert_array_equal(got[1], expected[1])
    for x, y in zip((got[0], got[2]), (expected[0], expected[2]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-5)


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_kernel_over_devices() -> None:
    """Each device runs the kernel on its own rows: nothing is sent."""
    arrays = states_case(16, 9, 7)
    rows = sharding.batch_sharding(sharding.make_mesh(fsdp=2))
    compiled = jax.jit(interpreted, in_shardings=rows).lower(*arrays).compile(QUICK)
    assert not re.search(r"all-|collective-permute", compiled.as_text())
    got = compiled(*jax.device_put(arrays, rows))
    for x, y in zip(got, forward_by_scan(*arrays), strict=True):
        assert x.sharding.is_equivalent_to(rows, x.ndim)
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "labels", "kernels"), [("cuda", 52, 1), ("cuda", 2048, 0), ("tpu", 52, 0)]
)
def test_what_runs_where(platform: str, labels: int, kernels: int) -> None:
    """Loss and gradient: one kernel on a GPU, but for more states than it has threads for."""

    def loss_sum(logits: jax.Array, frames: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
        return ctc_loss(logits, frames, labels, lengths, blank_id=0)[0].sum()

    arguments = [
        jax.ShapeDtypeStruct((4, 200, 32), jnp.float32),
        *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((4,), (4, labels), (4,))),
    ]
    got = triton_kernels(jax.value_and_grad(loss_sum), *arguments, platform=platform)
    assert got == kernels


# --- Greedy decoding ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(0, 3))
def test_collapse(path: list[int], blank_id: int) -> None:
    assert collapse(np.array(path, np.int32), blank_id).tolist() == plain_collapse(tuple(path), blank_id)


def test_collapse_by_example() -> None:
    assert collapse(np.array([1, 1, 0, 1, 2, 2, 0, 0, 3]), 0).tolist() == [1, 1, 2, 3]
    assert collapse(np.array([], np.int32), 0).tolist() == []
    assert collapse(np.array([0, 0]), 0).tolist() == []


@pytest.mark.parametrize("blank_id", [0, 3])
def test_greedy_is_the_collapsed_best_path(blank_id: int) -> None:
    ids = np.random.default_rng(0).integers(0, 4, (6, 30))
    frames = np.array([30, 17, 1, 0, 29, 2])
    paths = np.asarray(best_path(jax.nn.one_hot(ids, 4), frames))
    for row, path, valid in zip(paths, ids, frames, strict=True):
        assert path_of_clip(row).tolist() == path[:valid].tolist()
        assert collapse(path_of_clip(row), blank_id).tolist() == plain_collapse(tuple(path[:valid]), blank_id)

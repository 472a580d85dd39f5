"""Buckets and plans: no other choice pads less, and every clip is in every epoch once, in random company."""

import itertools

import numpy as np
import pytest
from helpers.clips import SECOND, frame_count, lengths_strategy, sets
from helpers.errors import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_wavlm.data.buckets import choose_buckets, choose_shapes
from flax_wavlm.data.plans import plan_epoch
from flax_wavlm.data.weights import FILLER


def padded_total(lengths, buckets) -> int:
    return sum(min(b for b in buckets if b >= length) for length in lengths)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 5))
def test_buckets_are_optimal(lengths, n_buckets, batch_size):
    multiple = 40
    buckets = choose_buckets(lengths, n_buckets, batch_size=batch_size, multiple=multiple)
    assert list(buckets) == sorted(set(buckets))
    assert len(buckets) <= n_buckets
    assert all(type(b) is int and b % multiple == 0 for b in buckets)
    assert max(lengths) <= buckets[-1] < max(lengths) + multiple
    longest = -(-max(lengths) // multiple) * multiple
    every_choice = itertools.combinations(range(multiple, longest, multiple), n_buckets - 1)
    batches = sorted(lengths, reverse=True)[::batch_size]
    assert padded_total(batches, buckets) == min(
        (padded_total(batches, [*choice, longest]) for choice in every_choice),
        default=padded_total(batches, range(multiple, longest + 1, multiple)),  # more buckets than sizes
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=6), st.integers(1, 3), st.integers(1, 3))
def test_no_plan_pads_less(lengths, n_buckets, batch_size):
    """Every order of the clips, cut into batches, with every choice of buckets."""
    multiple = 40
    lengths = np.array(lengths)
    buckets = choose_buckets(lengths, n_buckets, batch_size=batch_size, multiple=multiple)
    plan = plan_epoch(lengths, batch_size, buckets, seed=0, epoch=0)
    longest = -(-lengths.max() // multiple) * multiple
    shorter = range(multiple, longest, multiple)
    choices = [
        [*choice, longest]
        for count in range(min(n_buckets, len(shorter) + 1))
        for choice in itertools.combinations(shorter, count)
    ]
    best = min(
        padded_total([max(order[i : i + batch_size]) for i in range(0, len(order), batch_size)], choice)
        for order in set(itertools.permutations(lengths.tolist()))
        for choice in choices
    )
    assert plan.samples.sum() == best


@given(lengths_strategy, st.integers(1, 6), st.integers(1, 8), st.integers(1, 4))
def test_buckets_hold_enough_batches_and_even_frames(lengths, n_buckets, batch_size, min_batches):
    buckets = choose_buckets(
        lengths, n_buckets, batch_size=batch_size, min_batches=min_batches, frame_count=frame_count
    )
    assert len(buckets) <= n_buckets
    assert all(b % 320 == 0 and frame_count(b) % 2 == 0 for b in buckets)
    assert max(lengths) <= buckets[-1] < max(lengths) + 640
    plan = plan_epoch(np.array(lengths), batch_size, buckets, seed=0, epoch=0)
    _, counts = np.unique(plan.samples, return_counts=True)
    assert counts.min() >= max(1, min(min_batches, len(plan.rows) // n_buckets))


def test_choose_buckets_refuses_nothing():
    with refused("no clips"):
        choose_buckets([], 3)
    with refused(field="data.buckets", found=0):
        choose_buckets([1], 0)


@given(sets, st.integers(0, 2**63), st.integers(0, 10**6))
def test_plan_has_every_clip_once_untruncated_in_the_same_shape(case, seed, epoch):
    lengths, batch_size = np.array(case["lengths"]), case["batch_size"]
    buckets = choose_buckets(lengths, case["n_buckets"])
    plan = plan_epoch(lengths, batch_size, buckets, seed=seed, epoch=epoch)
    assert plan.rows.shape == (-(-len(lengths) // batch_size), batch_size)
    assert sorted(plan.rows[plan.rows != FILLER]) == list(range(len(lengths)))
    assert ((plan.rows == FILLER).sum(axis=1) > 0).sum() <= 1  # one incomplete batch at most
    shape = np.zeros(len(lengths), int)
    for rows, samples in zip(plan.rows, plan.samples, strict=True):
        assert samples in buckets
        assert samples >= lengths[rows[rows != FILLER]].max()
        shape[rows[rows != FILLER]] = samples
    other = plan_epoch(lengths, batch_size, buckets, seed=seed, epoch=epoch + 1)
    for rows, samples in zip(other.rows, other.samples, strict=True):
        assert (shape[rows[rows != FILLER]] == samples).all()
    again = plan_epoch(lengths, batch_size, buckets, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(plan.rows, again.rows)


def test_plan_differs_between_epochs_and_seeds():
    lengths = np.full(200, 1000)
    plans = [
        plan_epoch(lengths, 8, [1280], seed=seed, epoch=epoch).rows.tobytes()
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (42, 0)]
    ]
    assert len(set(plans)) == len(plans)


def test_plan_never_changes():
    """A run that is resumed under another NumPy must go on with the same batches."""
    plan = plan_epoch(np.arange(400, 1300, 50), 4, [640, 960, 1280], seed=42, epoch=3)
    assert plan.rows.tolist() == [
        [0, 1, FILLER, FILLER],
        [8, 4, 9, 5],
        [12, 15, 17, 10],
        [6, 3, 7, 2],
        [16, 11, 14, 13],
    ]
    assert plan.samples.tolist() == [640, 960, 1280, 960, 1280]


def timit_like_lengths(n: int = 3978) -> np.ndarray:
    seconds = np.random.default_rng(0).normal(3.07, 0.86, 3 * n)
    return (seconds[(seconds > 0.9) & (seconds < 4.0)][:n] * SECOND).astype(int)


def test_plan_groups_by_length_but_is_random():
    lengths = timit_like_lengths()
    buckets = choose_buckets(lengths, 6, batch_size=32, min_batches=4, frame_count=frame_count)
    plan = plan_epoch(lengths, 32, buckets, seed=0, epoch=0)
    assert len(plan.rows) == 125
    # No plan with six shapes can pad less than the first, odd numbers of frames allowed.
    least = plan_epoch(lengths, 32, choose_buckets(lengths, 6, batch_size=32), seed=0, epoch=0)
    assert least.padding(lengths) == pytest.approx(0.0740, abs=0.0005)
    assert plan.padding(lengths) <= least.padding(lengths) + 0.002
    # Ten shapes are enough for 5 %.
    ten = choose_buckets(lengths, 10, batch_size=32, min_batches=4, frame_count=frame_count)
    assert plan_epoch(lengths, 32, ten, seed=0, epoch=0).padding(lengths) <= 0.05
    # Long and short batches come in no order.
    steps = np.arange(125)
    assert abs(np.corrcoef(steps[:-1], plan.samples[:-1])[0, 1]) < 0.25
    assert abs(np.corrcoef(plan.samples[:-1], plan.samples[1:])[0, 1]) < 0.25


def padding_of(lengths, shapes) -> float:
    rows, buckets = [shape.rows for shape in shapes], [shape.samples for shape in shapes]
    return plan_epoch(lengths, rows, buckets, seed=0, epoch=0).padding(lengths)


def clipwise(lengths, n_buckets) -> float:
    """The padding of every clip in the smallest bucket that holds it: no plan of so many shapes has less."""
    return 1 - lengths.sum() / padded_total(lengths, choose_buckets(lengths, n_buckets))


@pytest.mark.parametrize("batch_seconds", [32, 64, 96, 128])
def test_batches_of_so_many_seconds_pad_little(batch_seconds):
    lengths = timit_like_lengths()
    shapes = {
        n: choose_shapes(
            lengths, n, batch_samples=batch_seconds * SECOND, min_batches=3, frame_count=frame_count
        )
        for n in (6, 16)
    }
    assert padding_of(lengths, shapes[6]) <= clipwise(lengths, 6) + 0.003
    assert padding_of(lengths, shapes[16]) <= 0.03


@given(lengths_strategy, st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_shapes_hold_every_clip_in_so_many_samples(lengths, n_buckets, size, rows_multiple, min_batches):
    lengths = np.array(lengths)
    longest = -(-lengths.max() // 320) * 320
    limit = int(longest) * rows_multiple * size + 100
    shapes = choose_shapes(
        lengths, n_buckets, batch_samples=limit, rows_multiple=rows_multiple, min_batches=min_batches
    )
    assert len(shapes) <= n_buckets
    assert list(shapes) == sorted(shapes)
    assert shapes[-1].samples == longest
    for samples, rows in shapes:
        assert samples % 320 == 0
        assert rows % rows_multiple == 0
        assert 0 < samples * rows <= limit
    plan = plan_epoch(
        lengths, [shape.rows for shape in shapes], [shape.samples for shape in shapes], seed=0, epoch=0
    )
    assert sorted(plan.rows[plan.rows != FILLER]) == list(range(len(lengths)))
    for rows, samples, size_ in zip(*plan, strict=True):
        assert (samples, size_) in shapes
        assert (rows[size_:] == FILLER).all()
        assert lengths[rows[rows != FILLER]].max() <= samples


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 3))
def test_shapes_come_close_to_the_best(lengths, n_buckets):
    """Against every choice of lengths, each with as many rows as there may be, cut as `plan_epoch` cuts."""
    lengths, limit = np.array(lengths), 130
    sizes = sorted({-(-length // 10) * 10 for length in lengths.tolist()})

    def total(shapes) -> int:
        samples, rows = zip(*shapes, strict=True)
        plan = plan_epoch(lengths, rows, samples, seed=0, epoch=0)
        return int((plan.samples * plan.sizes).sum())

    best = min(
        total([(size, limit // size) for size in (*chosen, sizes[-1])])
        for count in range(n_buckets)
        for chosen in itertools.combinations(sizes[:-1], count)
    )
    assert total(choose_shapes(lengths, n_buckets, batch_samples=limit, multiple=10)) <= best + sizes[-1]


def test_a_batch_that_cannot_hold_the_longest_clip():
    with refused(field="train.batch_seconds", found=3.0, expected=r"4\.00 or more.* 2\.00 s.* 2 rows"):
        choose_shapes([32_000, 100], 2, batch_samples=48_000, rows_multiple=2)


@pytest.mark.parametrize("n", [200, 4000])
def test_clips_meet_other_clips_in_every_epoch(n):
    lengths = np.random.default_rng(0).permutation(np.arange(1000, 1000 + n))
    buckets = choose_buckets(lengths, 6, batch_size=8, min_batches=4)

    def pairs(epoch: int) -> set:
        rows = plan_epoch(lengths, 8, buckets, seed=0, epoch=epoch).rows
        return {pair for row in rows for pair in itertools.combinations(sorted(row), 2)}

    assert len(pairs(0) & pairs(1)) < 0.4 * len(pairs(0))


def test_padding_counts_filler_rows():
    plan = plan_epoch(np.array([320, 320, 160]), 2, [320], seed=0, epoch=0)
    assert plan.padding(np.array([320, 320, 160])) == pytest.approx(1 - 800 / 1280)


def test_a_clip_beyond_the_last_bucket_is_an_error_and_not_truncated():
    with refused("1000 samples does not fit the longest bucket", expected="at most 640 samples"):
        plan_epoch(np.array([1000]), 1, [320, 640], seed=0, epoch=0)

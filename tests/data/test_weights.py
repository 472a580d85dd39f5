"""Weights of corpora: how often an epoch has each clip, the same at any step and over any processes."""

import numpy as np
import pytest
from helpers.clips import make_clips
from helpers.errors import refused
from helpers.properties import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

from flax_wavlm.data.batches import FILLER, Batches
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.weights import clips_per_epoch, draw_epoch, spread_copies

weighted = st.lists(
    st.tuples(st.integers(400, 3000), st.sampled_from([0.01, 0.3, 0.5, 1.0, 1.5, 2.0, 3.25])),
    min_size=1,
    max_size=40,
)


def make_batches(case, batch_size=4, *, weights=True, **kwargs) -> Batches:
    lengths = [length for length, _ in case]
    return Batches(
        make_clips(lengths),
        batch_size,
        choose_buckets(lengths, 2),
        steps=1000,
        seed=7,
        do_normalize=False,
        weights=[weight for _, weight in case] if weights else None,
        **kwargs,
    )


def epoch_of(batches: Batches, epoch: int) -> np.ndarray:
    """The clips of an epoch, sorted."""
    rows = batches.plan(epoch).rows
    return np.sort(rows[rows != FILLER])


@PROPERTY
@given(weighted)
def test_an_epoch_has_each_clip_as_often_as_its_weight_says(case):
    batches = make_batches(case)
    weights = np.array([weight for _, weight in case])
    for epoch in range(3):
        plan = batches.plan(epoch)
        assert len(plan.rows) == batches.steps_per_epoch
        counts = np.bincount(epoch_of(batches, epoch), minlength=len(case))
        assert ((counts == np.floor(weights)) | (counts == np.ceil(weights))).all()
        for weight in set(weights):
            expected = weight * (weights == weight).sum()
            assert abs(counts[weights == weight].sum() - expected) <= max(0.5, 1 - expected)
        for rows, samples in zip(plan.rows, plan.samples, strict=True):
            assert all(case[row][0] <= samples for row in rows if row != FILLER)


@PROPERTY
@given(weighted, st.integers(1, 3), st.integers(1, 3))
def test_any_step_is_the_same_alone_and_over_processes(case, share, count):
    whole = make_batches(case, share * count)
    parts = [make_batches(case, share * count, process_index=i, process_count=count) for i in range(count)]
    for step in (2 * whole.steps_per_epoch + 1, 0, whole.steps_per_epoch):
        again = make_batches(case, share * count)[step]
        for key, value in whole[step].items():
            np.testing.assert_array_equal(value, again[key])
            np.testing.assert_array_equal(value, np.concatenate([part[step][key] for part in parts]))


def test_fractions_are_drawn_anew_and_evenly():
    case = [(1000, 1.0)] * 50 + [(1000, 0.25)] * 80
    batches = make_batches(case)
    epochs = [epoch_of(batches, epoch) for epoch in range(200)]
    assert len({tuple(epoch) for epoch in epochs}) == 200
    counts = np.bincount(np.concatenate(epochs), minlength=130)
    assert (counts[:50] == 200).all()
    assert counts[50:].sum() == 200 * 20
    assert 25 < counts[50:].min() <= counts[50:].max() < 75  # 50 on average, and 6 is the deviation


def test_weights_of_one_are_no_weights_and_change_nothing():
    case = [(400 + 37 * i, 1.0) for i in range(30)]
    for epoch in range(3):
        one, other = make_batches(case).plan(epoch), make_batches(case, weights=False).plan(epoch)
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.samples, other.samples)


def test_copies_are_in_different_batches():
    case = [(1000 + i, 3.0) for i in range(12)] + [(1500 + i, 1.0) for i in range(30)]
    batches = make_batches(case, 8)
    for epoch in range(20):
        for rows in batches.plan(epoch).rows:
            real = rows[rows != FILLER]
            assert len(set(real)) == len(real)
    # Where every batch is of one clip, nothing can be done, and nothing is lost.
    assert epoch_of(make_batches([(1000, 3.0)], 2), 0).tolist() == [0, 0, 0]


def test_a_swap_never_puts_a_clip_where_it_is_too_long():
    rows = np.array([[0, 0], [1, 2]])
    lengths = np.array([900, 300, 300])
    assert spread_copies(rows, np.array([960, 640]), lengths).tolist() == rows.tolist()
    assert spread_copies(rows, np.array([960, 960]), lengths).tolist() == [[0, 2], [1, 0]]


def test_a_draw_never_changes():
    """A run that is resumed under another NumPy must go on with the same batches."""
    weights = np.array([0.5] * 8 + [1.25] * 4)
    assert clips_per_epoch(weights) == 9
    assert draw_epoch(weights, seed=42, epoch=3).tolist() == [1, 2, 6, 7, 8, 8, 9, 10, 11]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, -2.0]])
def test_weights_that_cannot_be(weights):
    with refused(field="data.weights", expected="above 0, one for each"):
        Batches(make_clips([1000, 1000]), 1, [1280], steps=1, seed=0, do_normalize=False, weights=weights)

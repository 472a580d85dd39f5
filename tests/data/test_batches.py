"""Batches: what each row holds, the same over any number of processes, and resumed at any step."""

import json

import jax
import numpy as np
import pytest
from helpers.clips import lengths_strategy, make_clips, sets
from helpers.errors import Parts, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_wavlm.data.batches import FILLER, Batches, eval_batches, train_iterator
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.preprocessor import INPUTS, Preprocessor, input_values
from flax_wavlm.errors import UserError

NORMALISE = Preprocessor(do_normalize=True, return_attention_mask=True)


def make_batches(lengths, batch_size, *, steps=1000, seed=7, n_buckets=3, **kwargs) -> Batches:
    return Batches(
        make_clips(lengths),
        batch_size,
        choose_buckets(lengths, n_buckets),
        steps=steps,
        seed=seed,
        do_normalize=True,
        **kwargs,
    )


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key, strict=True)


def test_rows_are_what_the_model_expects():
    lengths = [1000, 3000, 2000, 777, 1500]
    batches = make_batches(lengths, 2, n_buckets=2)
    assert batches.steps_per_epoch == 3
    seen = []
    for step in range(3):
        batch = batches[step]
        b, samples = batch["samples"].shape
        heard = np.asarray(jax.jit(input_values)({name: batch[name] for name in INPUTS}))
        assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
            "samples": (np.int16, (2, samples)),
            "mean": (np.float32, (2,)),
            "scale": (np.float32, (2,)),
            "lengths": (np.int32, (2,)),
            "labels": (np.int32, (2, 8)),
            "label_lengths": (np.int32, (2,)),
            "valid": (bool, (2,)),
            "clip": (np.int32, (2,)),
        }
        assert samples in batches.buckets
        for row in range(b):
            index = batch["clip"][row]
            if not batch["valid"][row]:
                assert index == FILLER
                assert batch["lengths"][row] == samples
                assert batch["label_lengths"][row] == 0
                assert not heard[row].any()
                assert not batch["labels"][row].any()
                continue
            clip, audio = batches.clips[index], heard[row]
            seen.append(clip.id)
            assert batch["lengths"][row] == len(clip.samples)
            np.testing.assert_array_equal(audio[: len(clip.samples)], NORMALISE(clip.samples))
            assert not audio[len(clip.samples) :].any()  # zeros after, not before, the normalisation
            assert batch["label_lengths"][row] == len(clip.labels)
            np.testing.assert_array_equal(batch["labels"][row, : len(clip.labels)], clip.labels)
            assert not batch["labels"][row, len(clip.labels) :].any()
        assert batches.clip_ids(step) == [batches.clips[i].id for i in batch["clip"] if i != FILLER]
    assert sorted(seen) == [f"clip{i}" for i in range(5)]


def test_label_width_is_one_multiple_of_eight():
    assert make_batches([1000] * 8, 4)[0]["labels"].shape == (4, 8)
    assert make_batches([1000] * 11, 4)[0]["labels"].shape == (4, 16)  # the longest has 11


@settings(deadline=None, max_examples=50)
@given(
    st.fixed_dictionaries(
        {"lengths": lengths_strategy, "per_process": st.integers(1, 4), "process_count": st.integers(1, 4)}
    )
)
def test_processes_share_each_batch(case):
    lengths, count = case["lengths"], case["process_count"]
    size = case["per_process"] * count
    whole = make_batches(lengths, size)
    parts = [make_batches(lengths, size, process_index=i, process_count=count) for i in range(count)]
    for step in range(2 * whole.steps_per_epoch):
        shares = [part[step] for part in parts]
        assert_same(whole[step], {key: np.concatenate([s[key] for s in shares]) for key in shares[0]})


@settings(deadline=None, max_examples=50)
@given(sets)
def test_every_epoch_has_every_clip_once(case):
    batches = make_batches(**case)
    per_epoch = batches.steps_per_epoch
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        clips = np.concatenate([batches[step]["clip"] for step in steps])
        assert sorted(clips[clips != FILLER]) == list(range(len(case["lengths"])))


def test_steps_end_the_run_within_an_epoch():
    batches = make_batches([1000] * 10, 4, steps=7)
    assert len(batches) == 7
    assert len(list(batches)) == 7
    for step in (-1, 7):
        with pytest.raises(IndexError):
            batches[step]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"batch_size": 6, "process_count": 4},
            Parts(field="batch_size", found=6, expected="a multiple of the number of processes, 4"),
        ),
        ({"batch_size": 0}, Parts(field="batch_size", found=0)),
        ({"lengths": []}, Parts("no usable clips")),
        ({"seed": -1}, Parts(field="seed", found=-1)),
    ],
)
def test_what_cannot_be_batched(change, parts):
    case = {"lengths": [1000], "batch_size": 4, "seed": 0, "process_count": 1} | change
    with pytest.raises(UserError) as error:
        Batches(
            make_clips(case["lengths"]),
            case["batch_size"],
            [1280],
            steps=1,
            seed=case["seed"],
            do_normalize=True,
            process_count=case["process_count"],
        )
    parts.check(error.value)


@pytest.mark.parametrize("threads", [0, 2])
def test_iterator_gives_the_batches_in_order(threads):
    batches = make_batches(range(500, 3000, 100), 4, steps=17)
    made = list(train_iterator(batches, threads=threads, prefetch=4))
    assert len(made) == 17
    for step, batch in enumerate(made):
        assert_same(batch, batches[step])


def test_iterator_resumes_anywhere_bit_for_bit():
    batches = make_batches(range(500, 3000, 100), 4, steps=24)  # 7 steps an epoch
    iterator = train_iterator(batches)
    states, made = [iterator.get_state()], []
    for batch in iterator:
        made.append(batch)
        states.append(iterator.get_state())
    for step in (0, 3, 7, 12, 23, 24):
        state = json.loads(json.dumps(states[step]))
        assert state == states[step]
        resumed = train_iterator(make_batches(range(500, 3000, 100), 4, steps=24))
        next(resumed)  # what was prefetched before must be forgotten
        resumed.set_state(state)
        assert resumed.get_state() == state
        started = train_iterator(batches, start_step=step)
        assert started.get_state() == state
        for again in (list(resumed), list(started)):
            assert len(again) == 24 - step
            for one, other in zip(made[step:], again, strict=True):
                assert_same(one, other)


def test_iterator_refuses_a_step_outside_the_run():
    batches = make_batches([1000] * 4, 4, steps=3)
    for step in (-1, 4):
        with refused(field="start_step", found=step, expected="0 to 3"):
            train_iterator(batches, start_step=step)


@settings(deadline=None, max_examples=50)
@given(sets, st.integers(1, 3))
def test_evaluation_has_every_clip_once_longest_first(case, count):
    lengths, size = case["lengths"], case["batch_size"] * count
    clips, buckets = make_clips(lengths), choose_buckets(lengths, case["n_buckets"])
    whole = list(eval_batches(clips, size, buckets, do_normalize=True))
    rows = np.concatenate([batch["clip"] for batch in whole])
    order = rows[: len(lengths)]
    assert (rows[len(lengths) :] == FILLER).all()  # filler rows at the very end
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff([lengths[i] for i in order]) <= 0).all()
    parts = [
        list(eval_batches(clips, size, buckets, do_normalize=True, process_index=i, process_count=count))
        for i in range(count)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert_same(batch, {key: np.concatenate([s[key] for s in shares]) for key in batch})


def test_evaluation_complains_when_called_and_not_when_iterated():
    with refused(field="batch_size", found=3):
        eval_batches(make_clips([1000]), 3, [1280], do_normalize=True, process_count=2)

import io
import itertools
import json

import jax
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_wavlm.data.batches import FILLER, Batches, eval_batches, plan_epoch, train_iterator
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.clips import Clip, decode_clips, describe_skipped, min_ctc_frames
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.data.preprocessor import INPUTS, Preprocessor, input_values
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError

NORMALISE = Preprocessor(do_normalize=True, return_attention_mask=True)
SECOND = 16_000


def frame_count(samples: int) -> int:
    """WavLM's conv stem: kernels 10, 3, 3, 3, 3, 2, 2; strides 5, 2, 2, 2, 2, 2, 2."""
    for kernel, stride in [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]:
        samples = (samples - kernel) // stride + 1
    return samples


def make_clips(lengths, seed=0) -> list[Clip]:
    random = np.random.default_rng(seed)
    return [
        Clip(
            id=f"clip{i}",
            samples=random.integers(-9000, 9000, length, dtype=np.int16),
            labels=random.integers(1, 28, 1 + i % 11, dtype=np.int32),
            text="",
            speaker="",
        )
        for i, length in enumerate(lengths)
    ]


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


lengths_strategy = st.lists(st.integers(400, 9000), min_size=1, max_size=60)
sets = st.fixed_dictionaries(
    {"lengths": lengths_strategy, "batch_size": st.integers(1, 9), "n_buckets": st.integers(1, 6)}
)


# ---------------------------------------------------------------------------------------------- clips


def wav(samples: np.ndarray, rate: int = SECOND) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype="PCM_16", format="WAV")
    return file.getvalue()


def tone(samples: int) -> np.ndarray:
    return np.round(8000 * np.sin(np.arange(samples) * 0.05)).astype(np.int16)


@pytest.fixture(scope="module")
def tokenizer() -> CTCTokenizer:
    return CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz' "])


def utterance(id: str, samples: int, text: str) -> Utterance:
    return Utterance(id=id, audio=lambda: wav(tone(samples)), text=text, speaker="s", duration=None)


def test_decode_keeps_order_samples_and_labels(tokenizer, tmp_path):
    (tmp_path / "file.wav").write_bytes(wav(tone(20_000)))
    utterances = [utterance(f"u{i}", 8000 + i, "She had") for i in range(20)]
    utterances.append(Utterance("file", tmp_path / "file.wav", "Don't!", "t", 1.25))
    clips, skipped = decode_clips(utterances, tokenizer, frame_count=frame_count, threads=4)
    assert skipped == []
    assert [clip.id for clip in clips] == [u.id for u in utterances]
    for i, clip in enumerate(clips[:20]):
        assert clip.samples.dtype == np.int16
        np.testing.assert_array_equal(clip.samples, tone(8000 + i))
    assert clips[-1].text == "don't"
    assert clips[-1].speaker == "t"
    assert clips[-1].labels.dtype == np.int32
    assert clips[-1].labels.tolist() == tokenizer.encode("don't")


def test_each_unusable_clip_is_skipped_with_its_reason(tokenizer, tmp_path):
    # 400 to 719 samples make one frame; "a" needs one, "aa" three.
    utterances = [
        utterance("good", 8000, "good"),
        utterance("punctuation", 8000, " ?! "),
        Utterance("text.wav", lambda: b"hello, I am a text file", "a", "s", None),
        Utterance("missing", tmp_path / "missing.wav", "a", "s", None),
        utterance("stub", 399, "a"),
        utterance("one frame", 400, "a"),
        utterance("tight", 719, "aa"),
        utterance("4 s", 64_000, "a"),
        utterance("under 4 s", 63_999, "a"),
    ]
    clips, skipped = decode_clips(utterances, tokenizer, frame_count=frame_count, max_seconds=4.0)
    assert [clip.id for clip in clips] == ["good", "one frame", "under 4 s"]
    assert {clip.id: clip.reason.partition(":")[0] for clip in skipped} == {
        "punctuation": "no text after normalisation",
        "text.wav": "unreadable audio",
        "missing": "unreadable audio",
        "stub": "too short",
        "tight": "labels longer than frames",
        "4 s": "too long",
    }
    reasons = {clip.id: clip.reason for clip in skipped}
    assert str(tmp_path / "missing.wav") in reasons["missing"]
    assert "4.00 s" in reasons["4 s"]
    assert "3 frames needed, 1 there" in reasons["tight"]


def test_evaluation_keeps_clips_whose_labels_do_not_fit(tokenizer):
    utterances = [utterance("tight", 719, "aa"), utterance("stub", 399, "a")]
    clips, skipped = decode_clips(utterances, tokenizer, frame_count=frame_count, drop_infeasible=False)
    assert [clip.id for clip in clips] == ["tight"]
    assert [clip.id for clip in skipped] == ["stub"]


def test_text_that_the_tokenizer_refuses_is_skipped(tokenizer):
    clips, skipped = decode_clips([utterance("pad", 8000, "a [PAD]")], _Refusing(), frame_count=frame_count)
    assert clips == []
    assert skipped[0].reason == "unusable text: spells the blank"


class _Refusing:
    def normalise(self, text):
        return text

    def encode(self, text):
        raise UserError("spells the blank")


@pytest.mark.parametrize(
    ("labels", "frames"), [([], 0), ([5], 1), ([1, 2, 3], 3), ([1, 1], 3), ([1, 1, 1, 2, 2], 8)]
)
def test_min_ctc_frames(labels, frames):
    assert min_ctc_frames(np.array(labels, np.int32)) == frames


def test_describe_skipped_counts_kinds_and_names_the_first():
    skipped = [Skipped(f"b{i}", "no text") for i in range(2)]
    skipped += [Skipped(f"a{i}", f"too long: {i + 4}.00 s") for i in range(1200)]
    assert describe_skipped(skipped).splitlines() == [
        "skipped 1,200 - too long: a0, a1, a2, ... (the first: 4.00 s)",
        "skipped 2 - no text: b0, b1",
    ]
    assert describe_skipped([]) == ""


# -------------------------------------------------------------------------------------------- buckets


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
    with pytest.raises(UserError, match="no clips"):
        choose_buckets([], 3)
    with pytest.raises(UserError, match="at least one bucket"):
        choose_buckets([1], 0)


# ---------------------------------------------------------------------------------------------- plans


@given(sets, st.integers(0, 2**63), st.integers(0, 10**6))
def test_plan_has_every_clip_once_untruncated_in_the_same_shape(case, seed, epoch):
    lengths, batch_size = np.array(case["lengths"]), case["batch_size"]
    buckets = choose_buckets(lengths, case["n_buckets"])
    plan = plan_epoch(lengths, batch_size, buckets, seed=seed, epoch=epoch)
    assert plan.rows.shape == (-(-len(lengths) // batch_size), batch_size)
    assert sorted(plan.rows[plan.rows != FILLER]) == list(range(len(lengths)))
    assert ((plan.rows == FILLER).sum(axis=1) > 0).sum() <= 1  # one incomplete batch at most
    shape = np.zeros(len(lengths), int)
    for rows, samples in zip(*plan, strict=True):
        assert samples in buckets
        assert samples >= lengths[rows[rows != FILLER]].max()
        shape[rows[rows != FILLER]] = samples
    other = plan_epoch(lengths, batch_size, buckets, seed=seed, epoch=epoch + 1)
    for rows, samples in zip(*other, strict=True):
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


# ----------------------------------------------------------------------------------- training batches


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
    ("change", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch size 6 cannot be shared equally by 4"),
        ({"batch_size": 0}, "batch size 0"),
        ({"lengths": []}, "no usable clips"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_batched(change, message):
    case = {"lengths": [1000], "batch_size": 4, "seed": 0, "process_count": 1} | change
    with pytest.raises(UserError, match=message):
        Batches(
            make_clips(case["lengths"]),
            case["batch_size"],
            [1280],
            steps=1,
            seed=case["seed"],
            do_normalize=True,
            process_count=case["process_count"],
        )


def test_a_clip_beyond_the_last_bucket_is_an_error_and_not_truncated():
    with pytest.raises(UserError, match="1000 samples does not fit the longest bucket, 640"):
        plan_epoch(np.array([1000]), 1, [320, 640], seed=0, epoch=0)


# ------------------------------------------------------------------------------------------- iterator


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
        with pytest.raises(UserError, match="3 steps"):
            train_iterator(batches, start_step=step)


# ----------------------------------------------------------------------------------------- evaluation


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
    with pytest.raises(UserError, match="cannot be shared"):
        eval_batches(make_clips([1000]), 3, [1280], do_normalize=True, process_count=2)


def test_data_files_are_read_once(tokenizer):
    reads = []

    def audio() -> bytes:
        reads.append(1)
        return wav(tone(8000))

    clips, _ = decode_clips([Utterance("a", audio, "a", "s", None)], tokenizer, frame_count=frame_count)
    batches = Batches(clips, 1, [8000], steps=5, seed=0, do_normalize=True)
    assert len(list(batches)) == 5
    assert len(reads) == 1

"""What holds for all texts and all sets of clips, and not for examples alone."""

from collections import Counter

import numpy as np
import pytest
from helpers.properties import PROPERTY, SLOWER_PROPERTY
from hypothesis import given
from hypothesis import strategies as st

from flax_wavlm.data.batches import FILLER, Batches, eval_batches
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.tokenizer import CTCTokenizer, normalise

texts = st.lists(st.text(max_size=30), min_size=1, max_size=4)


def spoken(text: str) -> str:
    """A normalised text, where a bar is the space that it stands for in a vocabulary."""
    return " ".join(normalise(text).replace("|", " ").split())


@PROPERTY
@given(texts.filter(lambda drawn: any(spoken(text) for text in drawn)))
def test_a_corpus_can_be_written_with_its_own_vocabulary(drawn: list[str]) -> None:
    """Any text, in any script: labels and back, and none of it unknown."""
    written = [spoken(text) for text in drawn]
    tokenizer = CTCTokenizer.from_texts(written)
    for text in written:
        assert tokenizer.normalise(text) == text
        assert tokenizer.unknown_characters(text) == set()
        assert tokenizer.unknown_share(text) == 0
        labels = tokenizer.encode(text)
        assert len(labels) == len(text)
        assert not set(labels) & tokenizer.special_ids
        assert tokenizer.decode(labels, collapsed=True) == text


@SLOWER_PROPERTY
@given(texts.filter(lambda drawn: any(spoken(text) for text in drawn)))
def test_a_tokenizer_is_the_same_after_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[str]
) -> None:
    tokenizer = CTCTokenizer.from_texts(map(spoken, drawn))
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    again = CTCTokenizer.from_pretrained(folder)
    assert (again.size, again.blank_id, again.special_ids) == (
        tokenizer.size,
        tokenizer.blank_id,
        tokenizer.special_ids,
    )
    assert [again.token(id) for id in range(again.size)] == [tokenizer.token(id) for id in range(again.size)]


def clips_of(lengths: list[int]) -> list[Clip]:
    """Clips whose every sample says whose it is."""
    return [
        Clip(str(i), np.full(length, i + 1, np.float32), np.full(1 + i % 9, 1 + i % 7, np.int32), "", "")
        for i, length in enumerate(lengths)
    ]


lengths_of_clips = st.lists(st.integers(400, 6000), min_size=1, max_size=40)


def check_whole(batches: list[dict[str, np.ndarray]], clips: list[Clip]) -> None:
    """Each clip once, every sample and label of it, and nothing else in its row."""
    seen: Counter[int] = Counter()
    for batch in batches:
        for values, length, labels, width, valid, index in zip(
            *(batch[key] for key in ("samples", "lengths", "labels", "label_lengths", "valid", "clip")),
            strict=True,
        ):
            assert valid == (index != FILLER)
            if valid:
                seen[int(index)] += 1
                np.testing.assert_array_equal(values[:length], clips[index].samples)
                np.testing.assert_array_equal(labels[:width], clips[index].labels)
            assert not values[length if valid else 0 :].any()
    assert seen == Counter(range(len(clips)))


@SLOWER_PROPERTY
@given(lengths_of_clips, st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_every_clip_is_used_once_and_whole(
    lengths: list[int], share: int, processes: int, buckets: int, seed: int
) -> None:
    """In each epoch of training and in an evaluation, over all processes together."""
    clips, chosen = clips_of(lengths), choose_buckets(lengths, buckets)
    for epoch in range(2):
        batches = []
        for process in range(processes):
            own = Batches(
                clips,
                share * processes,
                chosen,
                steps=1000,
                seed=seed,
                do_normalize=False,
                process_index=process,
                process_count=processes,
            )
            steps = range(epoch * own.steps_per_epoch, (epoch + 1) * own.steps_per_epoch)
            batches += [own[step] for step in steps]
        check_whole(batches, clips)
    shares = [
        eval_batches(
            clips,
            share * processes,
            chosen,
            do_normalize=False,
            process_index=process,
            process_count=processes,
        )
        for process in range(processes)
    ]
    check_whole([batch for own in shares for batch in own], clips)


@PROPERTY
@given(lengths_of_clips, st.integers(1, 6), st.integers(1, 8))
def test_padding_is_bounded(lengths: list[int], buckets: int, batch_size: int) -> None:
    chosen = choose_buckets(lengths, buckets)
    own = [min(bucket for bucket in chosen if bucket >= length) for length in lengths]
    # Buckets only help, and with one for each length what is left is the rounding up to a frame.
    assert sum(own) <= len(lengths) * choose_buckets(lengths, 1)[0]
    if buckets >= len({-(-length // 320) for length in lengths}):
        assert all(bucket - length < 320 for bucket, length in zip(own, lengths, strict=True))
    # An evaluation's clips are sorted, so that each border between two buckets falls into one batch.
    batches = list(eval_batches(clips_of(lengths), batch_size, chosen, do_normalize=False))
    padded = sum(batch["samples"].shape[1] * int(batch["valid"].sum()) for batch in batches)
    assert padded <= sum(own) + (batch_size - 1) * (chosen[-1] - chosen[0])

"""Utterances to clips: order, samples and labels are kept, and what cannot be used has its reason."""

import numpy as np
import pytest
from helpers.clips import frame_count, tone, wav
from helpers.errors import refused

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.clips import describe_skipped, min_ctc_frames, usable_clips
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError


@pytest.fixture(scope="module")
def tokenizer() -> CTCTokenizer:
    return CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz' "])


def utterance(id: str, samples: int, text: str) -> Utterance:
    return Utterance(id=id, audio=lambda: wav(tone(samples)), text=text, speaker="s", duration=None)


def test_decode_keeps_order_samples_and_labels(tokenizer, tmp_path):
    (tmp_path / "file.wav").write_bytes(wav(tone(20_000)))
    utterances = [utterance(f"u{i}", 8000 + i, "She had") for i in range(20)]
    utterances.append(Utterance("file", tmp_path / "file.wav", "Don't!", "t", 1.25))
    clips, skipped = usable_clips(utterances, tokenizer, frame_count=frame_count, threads=4)
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
    clips, skipped = usable_clips(utterances, tokenizer, frame_count=frame_count, max_seconds=4.0)
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
    clips, skipped = usable_clips(utterances, tokenizer, frame_count=frame_count, drop_infeasible=False)
    assert [clip.id for clip in clips] == ["tight"]
    assert [clip.id for clip in skipped] == ["stub"]


def test_text_that_the_tokenizer_refuses_is_skipped(tokenizer, monkeypatch):
    def encode(text):
        if "[PAD]" in text:
            raise UserError("spells the blank")
        return [0] * len(text)

    monkeypatch.setattr(tokenizer, "normalise", str)
    monkeypatch.setattr(tokenizer, "encode", encode)
    utterances = [utterance("pad", 8000, "a [PAD]"), utterance("good", 8000, "a")]
    clips, skipped = usable_clips(utterances, tokenizer, frame_count=frame_count)
    assert [clip.id for clip in clips] == ["good"]
    assert [clip.id for clip in skipped] == ["pad"]
    assert skipped[0].reason == "unusable text: spells the blank"


def test_no_clip_left_is_an_error(tokenizer, caplog):
    with refused("none of the 1 clips", where="^train$"):
        usable_clips([utterance("stub", 399, "a")], tokenizer, frame_count=frame_count, name="train")
    assert "skipped 1 - too short: stub" in caplog.text


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


def test_data_files_are_read_once(tokenizer):
    reads = []

    def audio() -> bytes:
        reads.append(1)
        return wav(tone(8000))

    clips, _ = usable_clips([Utterance("a", audio, "a", "s", None)], tokenizer, frame_count=frame_count)
    batches = Batches(clips, 1, [8000], steps=5, seed=0, do_normalize=True)
    assert len(list(batches)) == 5
    assert len(reads) == 1

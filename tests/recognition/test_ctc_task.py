"""Character CTC as a task: loss, decoding, scores; and how scores choose."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.ops.ctc.api import ctc_loss
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.recognition.ctc_task import character_ctc, ctc_scoring
from flax_wavlm.recognition.decoding import NO_FRAME
from flax_wavlm.recognition.evaluate import figures_line
from flax_wavlm.recognition.metrics import error_rates, wer_hf_padded
from flax_wavlm.recognition.task import Scoring, choosing

TOKENIZER = CTCTokenizer.from_texts(["abc'"])
TASK = character_ctc(TOKENIZER)


def batch() -> dict[str, jax.Array]:
    return {
        "labels": jnp.array([[0, 1, 0], [1, 1, 0], [2, 0, 0], [0, 0, 0]]),
        "label_lengths": jnp.array([3, 2, 1, 0]),
        "valid": jnp.array([True, True, True, False]),
    }


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_is_the_sum_over_valid_clips(reduction: str) -> None:
    """Bit for bit; of the valid clips one does not fit in its frames."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 12, TOKENIZER.size)), jnp.float32)
    frame_lengths, clips = jnp.array([12, 2, 7, 12]), batch()
    task_loss = loss_of_ctc(TOKENIZER.blank_id, reduction)
    found = task_loss(logits, frame_lengths, clips)
    loss, feasible = ctc_loss(
        logits, frame_lengths, clips["labels"], clips["label_lengths"], blank_id=TOKENIZER.blank_id
    )
    divided = loss / jnp.maximum(clips["label_lengths"], 1) if reduction == "mean" else loss
    expected = jnp.sum(jnp.where(clips["valid"], divided, 0))
    assert feasible.tolist() == [True, False, True, True]
    assert float(found.total) == float(expected)
    assert int(found.infeasible) == 1
    assert float(task_loss.scale(jnp.array(3))) == pytest.approx(1 / 3 if reduction == "mean" else 1)
    assert float(task_loss.scale(jnp.array(0))) == 1  # a batch of nothing but filler


def test_settings_are_the_tokenizers() -> None:
    assert TASK.settings["vocab_size"] == TOKENIZER.size
    assert TASK.settings["pad_token_id"] == TOKENIZER.blank_id
    assert character_ctc(TOKENIZER, reduction="sum").settings["ctc_loss_reduction"] == "sum"


def test_a_path_becomes_text_over_the_clips_own_frames() -> None:
    blank = TOKENIZER.blank_id
    ids = np.array([[0, 0, blank, 0, 1, 1], [1, blank, 2, 2, 2, 2]])
    paths = np.asarray(TASK.predict(jax.nn.one_hot(ids, TOKENIZER.size), jnp.array([6, 3])))
    assert paths[1].tolist() == [1, blank, 2, NO_FRAME, NO_FRAME, NO_FRAME]
    texts = [TASK.decode(path) for path in paths]
    assert texts == [TOKENIZER.decode([0, 0, 1], collapsed=True), TOKENIZER.decode([1, 2], collapsed=True)]
    references = [texts[0], "ab"]
    frame_ids = [ids[0], ids[1, :3]]
    assert TASK.score(references, texts, list(paths)) == {
        **error_rates(references, texts),
        "wer_hf_padded": wer_hf_padded(references, frame_ids, TOKENIZER),
    }


@pytest.mark.parametrize(
    ("corpus", "shown"),
    [("timit", True), ("timit_sample", True), ("manifest", False), ("timit,manifest", False), ("", False)],
)
def test_the_padded_figure_is_shown_on_timit_alone(corpus: str, shown: bool) -> None:
    scoring = character_ctc(TOKENIZER, corpus=corpus).scoring
    assert scoring == ctc_scoring(corpus)
    line = figures_line({"loss": 1, "wer": 0.5, "cer": 0.25, "wer_hf_padded": 0.75, "clips": 3}, scoring)
    assert line.replace("  (WER as the padded Trainer: 0.7500)", "") == (
        "loss 1.0000  WER 0.5000  CER 0.2500  3 clips"
    )
    assert ("padded" in line, "wer_hf_padded" in scoring.titles, "padded" in scoring.notes) == (shown,) * 3


def row(step: int, **scores: float) -> dict[str, float | str]:
    return {"step": step, "split": "test", **scores}


@pytest.mark.parametrize(("highest", "best"), [(False, 4), (True, 5)])
def test_best_is_the_latest_of_equals(highest: bool, best: int) -> None:
    scoring = Scoring(titles={"x": "X"}, line="", best_by="x", highest=highest)
    rows = [row(1, x=0.5), row(2, x=0.1), row(3, x=0.9), row(4, x=0.1), row(5, x=0.9), row(6, x=math.nan)]
    rows += [{"step": 7, "split": "train", "x": -1.0}, row(8)]
    found = scoring.best(rows)
    assert found is not None
    assert found["step"] == best
    assert sorted(scoring.ranks(rows)) == [1, 2, 3, 4, 5]
    assert scoring.best([row(1, x=math.nan), row(2)]) is None


def test_the_loss_may_choose() -> None:
    """`train.best_by`. The lowest loss is the best, also for a task whose own score is a highest one."""
    found = ctc_scoring().chosen_by("loss").best([row(1, loss=2.0, wer=0.1), row(2, loss=1.0, wer=0.2)])
    assert found is not None
    assert found["step"] == 2
    scoring = Scoring(titles={"accuracy": "Accuracy"}, line="", best_by="accuracy", highest=True)
    assert scoring.chosen_by("accuracy") == scoring
    assert not scoring.chosen_by("loss").highest


def test_ties_go_to_cer_then_loss_then_the_later_step() -> None:
    def best(*rows: dict[str, Any]) -> int:
        found = ctc_scoring().best(rows)
        assert found is not None
        return found["step"]

    one_word = row(1, wer=1.0, cer=0.5, loss=2.0)
    assert best(one_word, row(2, wer=1.0, cer=0.4, loss=3.0), row(3, wer=1.0, cer=0.6, loss=1.0)) == 2
    assert best(one_word, row(2, wer=1.0, cer=0.5, loss=1.0), row(3, wer=1.0, cer=0.5, loss=3.0)) == 2
    assert best(one_word, row(2, wer=1.0, cer=0.5, loss=2.0)) == 2
    assert best(one_word, row(2, wer=1.1, cer=0.1, loss=0.1)) == 1


def test_test_chooses_nothing_where_there_is_a_dev_split() -> None:
    rows = [
        {"step": step, "split": split, "wer": wer, "cer": 0.1, "loss": 1.0}
        for step, split, wer in ((1, "dev", 0.5), (2, "dev", 0.4), (3, "dev", 0.6), (3, "test", 0.0))
    ]
    assert [r["split"] for r in choosing(rows)] == ["dev"] * 3
    found = ctc_scoring().best(rows)
    assert found is not None
    assert found["step"] == 2
    assert sorted(ctc_scoring().ranks(rows)) == [1, 2, 3]
    assert choosing([{"step": 1, "split": "test"}, {"step": 1, "split": "train"}]) == [
        {"step": 1, "split": "test"}
    ]


def test_averaged_weights_have_no_rank_but_may_be_the_best() -> None:
    """Their line carries the step of a checkpoint, whose own rank it must not replace."""
    rows = [row(1, wer=0.4, cer=0.1, loss=1.0), row(2, wer=0.5, cer=0.1, loss=1.0)]
    mean = {**row(2, wer=0.3, cer=0.1, loss=1.0), "averaged": 2}
    assert ctc_scoring().ranks([*rows, mean]) == ctc_scoring().ranks(rows)
    assert ctc_scoring().best([*rows, mean]) is mean
    assert ctc_scoring().best([*rows, mean | {"wer": 0.45}]) is rows[0]

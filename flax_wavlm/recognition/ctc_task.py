"""Character CTC (Graves et al. 2006), judged by word and character error rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.models.heads import WavLMForCTC
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.recognition.decoding import Decoder, best_path, collapse, path_of_clip
from flax_wavlm.recognition.metrics import error_rates, wer_hf_padded
from flax_wavlm.recognition.task import Scoring, Task

Array = Any  # of jax in a batch on the device, of NumPy on the host

_WORDS_AND_CHARACTERS = Scoring(
    titles={"wer": "WER", "cer": "CER"},
    line="loss {loss:.4f}  WER {wer:.4f}  CER {cer:.4f}  {clips} clips",
    best_by="wer",
    ties=("cer", "loss"),
    on_hub=("wer", "cer"),
    notes="""\
- `WER` and `CER`: errors over all clips divided by reference words or characters; greedy decoding over
  each clip's own frames, no language model.""",
)
# TIMIT has published cards whose WER was computed on padded batches: beside them, that figure says something.
_WITH_HF_PADDED = replace(
    _WORDS_AND_CHARACTERS,
    titles={**_WORDS_AND_CHARACTERS.titles, "wer_hf_padded": "WER, HF-padded"},
    line=(
        "loss {loss:.4f}  WER {wer:.4f}  CER {cer:.4f}  (WER as the padded Trainer: {wer_hf_padded:.4f})  "
        "{clips} clips"
    ),
    notes=f"""\
{_WORDS_AND_CHARACTERS.notes}
- `WER, HF-padded`: what the Trainer of `transformers` would have printed for the same model. Its padding
  decodes to one spurious letter at the end of most clips where id 0 of the vocabulary is a letter. Only
  for comparison with cards made that way.""",
)


def ctc_scoring(corpus: str = "") -> Scoring:
    """How the scores are shown on a corpus, `data.corpus`: `wer_hf_padded` is shown on TIMIT alone."""
    return _WITH_HF_PADDED if set(corpus.split(",")) <= {"timit", "timit_sample"} else _WORDS_AND_CHARACTERS


def character_ctc(tokenizer: CTCTokenizer, *, reduction: str = "mean", corpus: str = "") -> Task:
    """The task of writing down what a clip says, in the tokenizer's characters, by its text rule.

    Args:
        tokenizer: gives labels, the head's width and the blank.
        reduction: of the loss, "mean" or "sum", see `loss_of_ctc`.
        corpus: decides which scores are shown, see `ctc_scoring`.
    """

    def decode(path: np.ndarray) -> str:
        labels = collapse(path_of_clip(path), tokenizer.blank_id)
        return tokenizer.normalise_hypothesis(tokenizer.decode(labels, collapsed=True))

    def score(
        references: Sequence[str], hypotheses: Sequence[str], paths: Sequence[np.ndarray]
    ) -> dict[str, float]:
        frame_ids = [path_of_clip(path) for path in paths]
        return {
            **error_rates(references, hypotheses),
            "wer_hf_padded": wer_hf_padded(references, frame_ids, tokenizer, tokenizer.normalise_hypothesis),
        }

    return Task(
        head=WavLMForCTC,
        settings={
            "vocab_size": tokenizer.size,
            "pad_token_id": tokenizer.blank_id,
            "ctc_loss_reduction": reduction,
            "ctc_zero_infinity": True,
        },
        targets=tokenizer,
        loss=loss_of_ctc(tokenizer.blank_id, reduction),
        predict=best_path,
        decode=decode,
        score=score,
        scoring=ctc_scoring(corpus),
    )


class DecoderInput(NamedTuple):
    """What a decoder other than the greedy one is given: of a batch [B, T, ...], or of a clip [T, ...]."""

    path: Array  # the best path
    evidence: Mapping[str, Array]


def decoded_by(decoder: Decoder, task: Task, tokenizer: CTCTokenizer) -> Task:
    """The task of `character_ctc` with the texts of a decoder. The loss and `wer_hf_padded` stay as they are.

    Args:
        decoder: for the tokenizer's labels.
    """

    def predict(logits: Array, frame_lengths: Array) -> DecoderInput:
        evidence = decoder.evidence(jax.nn.log_softmax(logits), frame_lengths)
        return DecoderInput(best_path(logits, frame_lengths), evidence)

    def decode(given: DecoderInput) -> str:
        frames = len(path_of_clip(given.path))
        best = decoder.hypotheses({name: array[:frames] for name, array in given.evidence.items()})[0]
        return tokenizer.normalise_hypothesis(tokenizer.decode(best.ids, collapsed=True))

    return replace(
        task,
        predict=predict,
        decode=decode,
        keep=lambda given: given.path.copy(),
        decodes_long=decoder.takes_long,
    )

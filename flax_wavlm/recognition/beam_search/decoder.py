"""Prefix beam search with an n-gram model and hot words, as a decoder of a `Recogniser`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.language_model.tables import NGramTables
from flax_wavlm.recognition.beam_search.settings import BeamSettings
from flax_wavlm.recognition.decoding import Hypothesis

Array = jax.Array
DEFAULTS = BeamSettings()


@dataclass(frozen=True, eq=False)
class BeamDecoder:
    """A `Decoder` whose hypotheses are the best ones of a prefix beam search. Threads may share it."""

    blank_id: int
    settings: BeamSettings
    temperature: float = 1.0  # log-probabilities are divided by it before they are taken as confidences
    search: Any = None

    @classmethod
    def of(
        cls,
        tokenizer: CTCTokenizer,
        lm: NGramTables | None = None,
        settings: BeamSettings = DEFAULTS,
        *,
        hotwords: Sequence[str] = (),
        temperature: float = 1.0,
        lm_name: str = "the language model",
    ) -> BeamDecoder:
        """A decoder for a model's labels.

        Args:
            tokenizer: spells the words of the language model and the hot words, by its text rule.
            lm: None: without a language model. What the rule changes or drops of its words is logged.
            settings: of the search.
            hotwords: words, or phrases of several words, that are expected.
            temperature: of the confidences.
            lm_name: what messages call the language model, e.g. its file.
        Raises:
            UserError: a setting cannot be used, the language model shares no word with the vocabulary, or a
                hot word cannot be spelled in it.
        """
        raise NotImplementedError

    def with_settings(self, settings: BeamSettings) -> BeamDecoder:
        """The same language model and hot words under other settings; cheap. UserError as `of`."""
        raise NotImplementedError

    def evidence(self, log_probs: Array, frame_lengths: Array) -> dict[str, Array]:
        """`log_probs` [B, T, V] as they are."""
        return {"log_probs": log_probs}

    def hypotheses(self, evidence: Mapping[str, np.ndarray]) -> list[Hypothesis]:
        """The best ones, which differ in their text. Other threads go on meanwhile: it holds no lock."""
        raise NotImplementedError

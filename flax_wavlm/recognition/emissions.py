"""What a model says of each frame of a whole recording, for the alignment of a known text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from flax_wavlm.data.corpora.utterance import Samples
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.recognition.recordings import Evidence, Source

UNSAID = 1e-4  # the posterior that all labels but the blank have together in a pause that no window heard


class Emissions(NamedTuple):
    """What is known of a recording's frames.

    Attributes:
        log_probs: float32 [T, V], natural logarithms of the model's posteriors.
        aligner: the same by its aligner, which tells better when a label was said; None: it has none.
        frame_seconds: from one frame to the next.
        duration: of the recording, in seconds.
    """

    log_probs: np.ndarray
    aligner: np.ndarray | None
    frame_seconds: float
    duration: float


class Hearer(Protocol):
    """What hears recordings: a `Recogniser`."""

    @property
    def tokenizer(self) -> CTCTokenizer: ...

    def emissions(
        self,
        source: str | Path | Samples,
        *,
        batch_size: int = ...,
        window: float = ...,
        channel: str = ...,
    ) -> Emissions: ...

    def every_emissions(
        self, sources: Sequence[Source], *, batch_size: int = ..., window: float = ..., channel: str = ...
    ) -> Iterator[Emissions | UserError]: ...


def whole(
    stretches: list[tuple[int, Evidence]], frames: int, labels: int, blank_id: int
) -> dict[str, np.ndarray]:
    """Stretches of speech as arrays [T, V] over all frames: between them, nothing was said.

    Args:
        stretches: the first frame of each, and its arrays [T_i, V] of log-probabilities.
        frames: T.
        labels: V.
        blank_id: of the CTC blank.
    """
    silence = np.full(labels, np.log(UNSAID / max(1, labels - 1)), np.float32)
    silence[blank_id] = np.log1p(-UNSAID)
    names = stretches[0][1].keys() if stretches else ("log_probs",)
    arrays = {name: np.broadcast_to(silence, (frames, labels)).copy() for name in names}
    for first, evidence in stretches:
        for name, array in evidence.items():
            arrays[name][first : first + len(array)] = array
    return arrays

"""An n-gram model as tables: what an ARPA file holds, and what Kneser-Ney estimation gives.

W  words of the vocabulary      N  n-grams of one length
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"


class Table(NamedTuple):
    """The n-grams of one length n, in any order, each once."""

    ids: np.ndarray  # int32 [N, n], places in the vocabulary
    log10_probs: np.ndarray  # float64 [N], of the last word after the ones before it
    log10_backoffs: np.ndarray  # float64 [N], 0 where a file says none


@dataclass(frozen=True)
class NGramTables:
    """A back-off n-gram model (Katz 1987), as the ARPA format writes it.

    Attributes:
        words: the vocabulary, each word once, `BEGIN`, `END` and `UNKNOWN` among them.
        tables: n-grams of 1, 2, ... words. The first has each word, in the order of the vocabulary.
    """

    words: tuple[str, ...]
    tables: tuple[Table, ...]

    @property
    def order(self) -> int:
        """How many words the longest n-grams have."""
        return len(self.tables)

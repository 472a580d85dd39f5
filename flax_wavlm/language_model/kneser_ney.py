"""Interpolated modified Kneser-Ney estimation of n-gram models.

    p(w | h) = (a(h w) - D(a(h w))) / a(h .) + gamma(h) p(w | h'),     gamma(h) = sum_w D(a(h w)) / a(h .)

h w is an n-gram, h' is h without its first word, and a(h .) is the sum of a(h w) over all words w. The
adjusted count a of an n-gram of the highest order, or of one that begins with <s>, is how often it occurs.
For any other it is how many different words occur before it. A discount D depends on the order and on whether
the count is 1, 2, or 3 and more. A word alone is interpolated with the uniform distribution over the
vocabulary, <unk> and </s> among it, <s> not.

Sources: Chen and Goodman, "An empirical study of smoothing techniques for language modeling", Computer Speech
and Language 13 (1999), sections 3 and 4.1; Heafield, Pouzyrevsky, Clark and Koehn, "Scalable modified
Kneser-Ney language model estimation", ACL 2013.

    N  n-grams of one length
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flax_wavlm.errors import UserError
from flax_wavlm.language_model.counting import (
    BEGIN_ID,
    MARKS,
    SORTING_BYTES,
    NGrams,
    Text,
    check_memory,
    count_ngrams,
)
from flax_wavlm.language_model.tables import NGramTables, Table
from flax_wavlm.parallel.machine import in_mb

log = logging.getLogger(__name__)

HIGHEST_ORDER = 10
FALLBACK = (0.5, 1.0, 1.5)  # discounts where counts of counts give none; those of KenLM's lmplz
NEVER = -99.0  # log10 of the probability of <s>, as is usual in ARPA files
NGRAM_BYTES = 76  # for each n-gram while probabilities are computed, beside 4 for each of its words; measured


class Estimate(NamedTuple):
    """A model, and how it came about."""

    model: NGramTables
    discounts: tuple[tuple[float, ...], ...]  # of each order: for counts of 1, 2, and 3 or more


def kneser_ney(text: Text, order: int, *, prune: Sequence[int] = ()) -> Estimate:
    """Estimates a model from a text.

    Args:
        text: `counting.number_words` makes it.
        order: words of the longest n-grams.
        prune: for n-grams of 1, 2, ... words: those that occur at most so often are dropped. The last number
            is also that of the longer ones. `MARKS` are never dropped. Dropped n-grams leave their
            probability to the shorter ones, so that the probabilities after h still sum to one.
    Raises:
        UserError: the order or the thresholds cannot be, the text has no n-grams of this order, or the memory
            does not suffice.
    """
    thresholds = check_settings(order, prune)
    log.info(
        "%d words and marks of sentences, a vocabulary of %d; counting needs up to %s of memory",
        len(text.ids),
        len(text.words),
        in_mb(SORTING_BYTES * len(text.ids)),
    )
    ngrams = list(count_ngrams(text, order))
    _check_order(text, ngrams)
    total = sum(len(of_length.last) * (NGRAM_BYTES + 4 * n) for n, of_length in enumerate(ngrams, start=1))
    numbers = ", ".join(f"{len(of_length.last):,} {n}-grams" for n, of_length in enumerate(ngrams, start=1))
    check_memory(total, f"the probabilities of {numbers}")
    log.info("%s; their probabilities need %s of memory", numbers, in_mb(total))
    adjusted = adjusted_counts(ngrams)
    discounts = [discounts_of(counts, n) for n, counts in enumerate(adjusted, start=1)]
    kept = [of_length.counts > least for of_length, least in zip(ngrams, thresholds, strict=True)]
    kept[0][: len(MARKS)] = True
    for n, stays in enumerate(kept, start=1):
        if not stays.any():
            raise UserError(
                f"no {n}-gram occurs more than {thresholds[n - 1]} times",
                field="prune",
                expected=f"a lower threshold, or an order of {n - 1}",
            )
    tables = _tables(ngrams, adjusted, discounts, kept)
    words = tuple(w for w, stays in zip(text.words, kept[0].tolist(), strict=True) if stays)
    return Estimate(NGramTables(words, tables), tuple(tuple(d[1:].tolist()) for d in discounts))


def check_settings(order: int, prune: Sequence[int]) -> list[int]:
    """The threshold of each length of n-grams; UserError, by `kneser_ney`'s names, for what cannot be."""
    if not 1 <= order <= HIGHEST_ORDER:
        raise UserError(field="order", found=order, expected=f"1 to {HIGHEST_ORDER}")
    rises = all(low <= high for low, high in pairwise(prune))
    if len(prune) > order or not rises or any(threshold < 0 for threshold in prune):
        raise UserError(
            field="prune",
            found=list(prune),
            expected=f"at most {order} numbers from 0, one for each length, none below the one before",
        )
    return [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]


def _check_order(text: Text, ngrams: Sequence[NGrams]) -> None:
    longest = sum(len(of_length.last) > 0 for of_length in ngrams)
    if longest < len(ngrams):
        raise UserError(
            field="order",
            found=len(ngrams),
            expected=f"at most {longest}: the longest sentence has {longest} words, its two marks among them",
        )


def adjusted_counts(ngrams: Sequence[NGrams]) -> list[np.ndarray]:
    """Of each length int64 [N], as the module describes them; 0 for <s>, which never follows anything."""
    begins = np.arange(len(ngrams[0].last)) == BEGIN_ID  # [N] whether an n-gram begins with <s>
    adjusted = []
    for shorter, longer in pairwise(ngrams):
        before = np.bincount(longer.suffixes, minlength=len(shorter.last))
        adjusted.append(np.where(begins, shorter.counts, before))
        begins = begins[longer.prefixes]
    adjusted.append(ngrams[-1].counts.astype(np.int64))
    adjusted[0][BEGIN_ID] = 0
    return adjusted


def discounts_of(adjusted: np.ndarray, order: int) -> np.ndarray:
    """The discounts of n-grams of one length, for counts of 0 (none), 1, 2, and 3 or more: float64 [4].

    Source: equation 26 of Chen and Goodman. Where the numbers n1 to n4 of n-grams with counts of 1 to 4 give
    no discounts above 0 and up to the count itself, all three are `FALLBACK`, and the log says so.
    """
    of_count = np.bincount(np.minimum(adjusted, 5), minlength=6).astype(np.float64)
    n1, n2, n3, n4 = of_count[1:5]
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if (found[1:] > 0).all():
            return found
        gave = f" would be {', '.join(f'{discount:.3g}' for discount in found[1:])}"
    else:
        gave = " are not determined"
    log.warning(
        "the discounts of %d-grams%s, as %d, %d, %d and %d of them have counts of 1, 2, 3 and 4: "
        "%g, %g and %g are taken",
        order,
        gave,
        *(n1, n2, n3, n4),
        *FALLBACK,
    )
    return np.array([0, *FALLBACK])


def _tables(
    ngrams: Sequence[NGrams],
    adjusted: Sequence[np.ndarray],
    discounts: Sequence[np.ndarray],
    kept: Sequence[np.ndarray],
) -> tuple[Table, ...]:
    """The tables of the n-grams that are kept; the arrays are lists by length."""
    renumbered = (np.cumsum(kept[0]) - 1).astype(np.int32)
    lower = np.array([1 / (np.count_nonzero(kept[0]) - 1)])  # of what an n-gram's suffix is
    ids: list[np.ndarray] = []
    probs: list[np.ndarray] = []
    gammas: list[np.ndarray] = []  # of the n-grams one word shorter
    for of_length, counts, amounts, stays in zip(ngrams, adjusted, discounts, kept, strict=True):
        prefixes, size = of_length.prefixes, len(lower)
        discount = amounts[np.minimum(counts, 3)]
        freed = np.bincount(prefixes, np.where(stays, discount, counts), minlength=size)
        total = np.bincount(prefixes, counts, minlength=size)
        gammas.append(np.divide(freed, total, out=np.ones(size), where=total > 0))
        lower = (counts - discount) / total[prefixes] + gammas[-1][prefixes] * lower[of_length.suffixes]
        probs.append(lower)
        last = renumbered[of_length.last]
        ids.append(np.column_stack([ids[-1][prefixes], last]) if ids else last[:, None])
    gammas.append(np.ones(len(lower)))
    probs[0][BEGIN_ID] = 10**NEVER
    return tuple(
        Table(ids[n][stays], np.log10(probs[n][stays]), np.log10(gammas[n + 1][stays]))
        for n, stays in enumerate(kept)
    )

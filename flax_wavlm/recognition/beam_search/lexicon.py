"""The words of a language model, spelt in the labels of a CTC model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.text import is_without_blanks
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError, shown, some
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables
from flax_wavlm.recognition.beam_search.trie import NONE, ROOT, Trie, trie_of

log = logging.getLogger(__name__)

# What a label is in a text: a part of a word, the blank between words, a whole word, or nothing.
LETTER, DELIMITER, WORD, SILENT = range(4)


def label_kinds(tokenizer: CTCTokenizer) -> np.ndarray:
    """int8 [V]: the kind of each label, as `transcript.words_of_labels` splits labels into words."""

    def kind(label: int) -> int:
        if label == tokenizer.delimiter_id:
            return DELIMITER
        token = tokenizer.token(label)
        if not tokenizer.normalise_hypothesis(token).strip():
            return SILENT
        return WORD if tokenizer.delimiter_id is None or is_without_blanks(token) else LETTER

    return np.array([kind(label) for label in range(tokenizer.size)], np.int8)


class Lexicon(NamedTuple):
    """Arrays over the nodes [K] of a tree of words."""

    trie: Trie
    words: np.ndarray  # int32 [K], the language model's word that ends there; NONE
    best: np.ndarray  # float32 [K], the highest log-probability of a word that goes through it, natural


NO_WORDS = Lexicon(trie_of([], 1)[0], np.full(1, NONE, np.int32), np.zeros(1, np.float32))


def spelling(tokenizer: CTCTokenizer, word: str, kinds: np.ndarray) -> list[int] | None:
    """The labels of one word; None where it cannot be spelt, or is no single word by the text rule."""
    text = tokenizer.normalise(word)
    if not text or tokenizer.unknown_characters(text):
        return None
    try:
        labels = tokenizer.encode(text)
    except UserError:  # it needs labels that the head lacks, or the blank
        return None
    found = [int(kind) for kind in kinds[labels]]
    single = found == [WORD] or (LETTER in found and not {DELIMITER, WORD} & set(found))
    return labels if single else None


def lexicon_of(
    tokenizer: CTCTokenizer,
    lm: NGramTables,
    kinds: np.ndarray,
    *,
    name: str,
    also: Iterable[Sequence[int]] = (),
) -> Lexicon:
    """The lexicon of a language model's words; what the text rule makes of them is logged.

    Args:
        tokenizer: spells words, by its text rule.
        lm: the language model. Where two of its words become one, the more probable one stands for both.
        kinds: of the labels.
        name: what messages call the language model.
        also: further words, as labels. The language model takes those that it lacks for its unknown word,
            at no further cost.
    Raises:
        UserError: not one of its words can be spelt.
    """
    log_probs = lm.tables[0].log10_probs * np.log(10)
    likeliest_first = np.argsort(-log_probs, kind="stable").tolist()
    spelt: dict[tuple[int, ...], int] = {}
    changed, dropped, doubled = [], [], []
    for place in likeliest_first:
        word = lm.words[place]
        if word in (BEGIN, END, UNKNOWN):
            continue
        labels = spelling(tokenizer, word, kinds)
        if labels is None:
            dropped.append(word)
        elif spelt.setdefault(tuple(labels), place) != place:
            doubled.append(word)
        elif tokenizer.normalise(word) != word:
            changed.append(word)
    if not spelt:
        raise UserError(
            f"none of its {len(dropped)} words can be spelt in the model's vocabulary",
            where=name,
            found=some([shown(word) for word in dropped]) if dropped else "no word",
            expected=f"words that the text rule ({tokenizer.describe_rule()}) makes of its texts",
            do="train a language model on text of the model's language, with train_lm.py --model",
        )
    _report(name, len(spelt), tokenizer, changed, dropped, doubled)
    unknown = lm.words.index(UNKNOWN)
    places = spelt | {tuple(labels): spelt.get(tuple(labels), unknown) for labels in also}
    trie, ends, parents = trie_of(list(places), tokenizer.size)
    words = np.full(len(parents), NONE, np.int32)
    words[ends] = list(places.values())
    best = np.full(len(parents), -np.inf, np.float32)
    best[ends] = log_probs[list(places.values())]
    for node in range(len(parents) - 1, ROOT, -1):
        best[parents[node]] = max(best[parents[node]], best[node])
    return Lexicon(trie, words, best)


def _report(
    name: str,
    count: int,
    tokenizer: CTCTokenizer,
    changed: Sequence[str],
    dropped: Sequence[str],
    doubled: Sequence[str],
) -> None:
    if changed:
        example = changed[0]
        log.warning(
            "%s: the text rule changes %d of its words: %s is taken for %s",
            name,
            len(changed) + len(doubled),
            shown(example),
            shown(tokenizer.normalise(example)),
        )
    if doubled:
        log.warning("%s: by that, %d words are the same as others: %s", name, len(doubled), _few(doubled))
    if dropped:
        log.warning(
            "%s: %d of %d words cannot be spelt in the model's vocabulary and are left out: %s",
            name,
            len(dropped),
            count + len(dropped),
            _few(dropped),
        )


def _few(words: Sequence[str]) -> str:
    return some([shown(word) for word in words])

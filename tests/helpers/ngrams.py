"""N-gram models for tests: random ones, and the definition of back-off in plain Python."""

import numpy as np

from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables, Table

Entries = dict[tuple[str, ...], tuple[float, float]]


def entries(model: NGramTables) -> Entries:
    """Each n-gram's log10 probability and back-off weight."""
    return {
        tuple(model.words[i] for i in ngram): (prob, backoff)
        for table in model.tables
        for ngram, prob, backoff in zip(table.ids.tolist(), *map(np.ndarray.tolist, table[1:]), strict=True)
    }


def log10_prob(model: Entries, context: tuple[str, ...], word: str) -> float:
    """Katz's back-off by its definition."""
    if (*context, word) in model:
        return model[*context, word][0]
    return model.get(context, (0.0, 0.0))[1] + log10_prob(model, context[1:], word)


def random_model(
    seed: int,
    order: int,
    *,
    vocabulary: int = 6,
    share: float = 0.5,
    contexts: float = 1.0,
    ends: float = 1.0,
) -> NGramTables:
    """A model whose n-grams are chosen by chance.

    `share` of those that begin with a shorter one are there. Then `contexts` of the contexts of longer ones
    stay, and `ends` of their other shorter ends.
    """
    random = np.random.default_rng(seed)
    words = (UNKNOWN, BEGIN, END, *(f"w{i}" for i in range(vocabulary)))
    of_length: list[list[tuple[int, ...]]] = [[(i,) for i in range(len(words))]]
    for _ in range(order - 1):
        longer = [
            (*ngram, i) for ngram in of_length[-1] if ngram[-1] != 2 for i in range(len(words)) if i != 1
        ]
        of_length.append([ngram for ngram in longer if random.random() < share])
    for n in range(order - 1, 1, -1):
        needed_as_context = {ngram[:-1] for ngram in of_length[n]}
        needed_as_end = {ngram[1:] for ngram in of_length[n]}
        there = dict.fromkeys([*of_length[n - 1], *sorted(needed_as_end)])
        of_length[n - 1] = [
            ngram
            for ngram in there
            if random.random()
            < (contexts if ngram in needed_as_context else ends if ngram in needed_as_end else 1.0)
        ]
    tables = []
    for n, ngrams in enumerate(of_length, start=1):
        backoffs = np.round(random.uniform(-1, 0.2, len(ngrams)), 4)
        backoffs[random.random(len(ngrams)) < 0.5] = 0.0
        tables.append(
            Table(
                np.array([*ngrams], np.int32).reshape(-1, n),
                np.round(-random.exponential(1, len(ngrams)), 4),
                backoffs if n < order else np.zeros(len(ngrams)),
            )
        )
    tables[0].log10_probs[1] = -99.0
    return NGramTables(words, tuple(tables))

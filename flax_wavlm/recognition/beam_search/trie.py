"""Words as a tree of their labels, which the beam search goes down label by label.

K  nodes: the root, then one for each begin of a word      V  labels of the model
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flax_wavlm.language_model.compiled import VACANT, compiled, hash_table, slot

ROOT = 0
NONE = -1


class Trie(NamedTuple):
    """The arrays that `child` reads."""

    keys: np.ndarray  # int64, a hash table: node * V + label
    nodes: np.ndarray  # int32, beside `keys`: the child
    labels: int  # V


@compiled
def child(trie: Trie, node: int, label: int) -> int:
    """The node that a label leads to; `NONE` where no word goes on so."""
    at = slot(trie.keys, node * trie.labels + label)
    return NONE if trie.keys[at] == VACANT else int(trie.nodes[at])


@compiled
def _grow(
    keys: np.ndarray, nodes: np.ndarray, labels: int, flat: np.ndarray, ends: np.ndarray, parents: np.ndarray
) -> np.ndarray:
    """Enters label sequences, and each node's parent; returns the node at which each of them ends."""
    count, begin = 1, 0
    found = np.zeros(len(ends), np.int32)
    for i in range(len(ends)):
        node = ROOT
        for label in flat[begin : ends[i]]:
            at = slot(keys, node * labels + label)
            if keys[at] == VACANT:
                keys[at], nodes[at], parents[count] = node * labels + label, count, node
                count += 1
            node = nodes[at]
        found[i], begin = node, ends[i]
    return found


def trie_of(sequences: Sequence[Sequence[int]], labels: int) -> tuple[Trie, np.ndarray, np.ndarray]:
    """The tree of label sequences.

    Args:
        sequences: none of them empty.
        labels: V.
    Returns:
        the tree; int32, the node where each sequence ends; int32 [K], each node's parent, which has a lower
        number.
    """
    lengths = [len(sequence) for sequence in sequences]
    flat = np.fromiter((label for sequence in sequences for label in sequence), np.int64, sum(lengths))
    keys, nodes = hash_table(len(flat))
    parents = np.full(len(flat) + 1, NONE, np.int32)
    ends = _grow(keys, nodes, labels, flat, np.cumsum(lengths, dtype=np.int64), parents)
    count = 1 + int(np.count_nonzero(keys != VACANT))
    return Trie(keys, nodes, labels), ends, parents[:count]

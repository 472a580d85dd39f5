"""The utterances of a run by split: what it trains on, what chooses the best checkpoint, what tests it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from flax_wavlm.data.clips import describe_skipped
from flax_wavlm.data.corpora.load import clip_weights, find_splits, load_parts
from flax_wavlm.data.corpora.utterance import NoSplit, Skipped, Utterance, by_id
from flax_wavlm.data.splits import parse_share
from flax_wavlm.errors import UserError, some
from flax_wavlm.files import exists
from flax_wavlm.recognition.task import DEV, TEST
from flax_wavlm.training.config import DataSettings

log = logging.getLogger(__name__)


class Splits(NamedTuple):
    """The utterances of a run."""

    train: list[Utterance]
    dev: list[Utterance]  # the best checkpoint is chosen on these; empty: on a share of train
    test: list[Utterance]  # read once, at the end; empty where there is no such split
    chooser: str  # what messages and metrics.jsonl call `dev`: "dev", or "test" where data.dev = "test"
    weights: Mapping[str, float] | None = None  # how often an epoch has a clip, by id; None: once
    share: float = 0.0  # of train, that becomes dev where that is empty
    skipped: Mapping[str, Sequence[Skipped]] = MappingProxyType({})  # by split: what a reader cannot use

    def by_name(self) -> dict[str, list[Utterance]]:
        """The utterances of each split that there is, train first."""
        named = {"train": self.train, TEST: self.test} | {self.chooser: self.dev}
        return {name: utterances for name, utterances in named.items() if utterances}


class _Found(NamedTuple):
    """A split as a reader gives it."""

    utterances: list[Utterance]
    skipped: list[Skipped]


def load_splits(data: DataSettings) -> Splits:
    """Reads the corpus's splits; makes the synthetic corpus where it is missing.

    `data.dev` says what chooses: "test" (the test split, and no other is read), a split's name, a path, or a
    share of train. Where it is empty, the corpus's own dev split does, or else a share of train. What a
    reader cannot use is named in the log.

    Raises UserError as `load_corpus` does, and where there is no train split.
    """
    if data.corpus == "synthetic" and jax.process_index() == 0:
        from flax_wavlm.data.corpora.synthetic import make_corpus

        make_corpus(Path(data.path), **vars(data.synthetic))
    multihost_utils.sync_global_devices("corpus")
    splits = _read(data)
    if splits.chooser == TEST:
        log.warning(
            "test: it chooses the best checkpoint too (data.dev is 'test', as in the seed's recipe), so its "
            "figures are better than those on new speech would be"
        )
    elif not splits.test:
        log.warning("there is no test split: the figures on dev, which chooses, are all that the run gives")
    return splits


def _read(data: DataSettings) -> Splits:
    if data.dev and data.splits.dev:
        raise UserError(
            field="data.dev",
            found=data.dev,
            expected=f"nothing, as data.splits.dev is {data.splits.dev!r}",
            do="set one of them",
        )
    if data.dev == TEST:  # the seed's protocol
        train, weights = _read_train(data, data.splits.train or "train")
        judge = _read_split(data, data.splits.test or TEST)
        skipped = {"train": train.skipped, TEST: judge.skipped}
        return Splits(train.utterances, judge.utterances, [], TEST, weights, skipped=skipped)

    own = {**find_splits(data.corpus, data.path, **_how(data)), **_named(data)}
    if "train" not in own:
        raise NoSplit(
            "there is no train split",
            where=data.path,
            field="data.splits.train",
            expected="a split to train on",
            do=f"set data.splits.train to one that is there ({some(sorted(own.values()))})" if own else "",
        )
    train, weights = _read_train(data, own["train"])
    test = _read_split(data, own[TEST], TEST) if TEST in own else _Found([], [])
    share = parse_share(data.dev)
    if share is None and (data.dev or DEV in own):
        dev, share = _read_dev(data, own), 0.0
    else:
        dev, share = _Found([], []), share or data.dev_share
    skipped = {"train": train.skipped, DEV: dev.skipped, TEST: test.skipped}
    return Splits(train.utterances, dev.utterances, test.utterances, DEV, weights, share, skipped)


def _named(data: DataSettings) -> dict[str, str]:
    """Role to the split that the recipe names for it."""
    return {role: name for role, name in vars(data.splits).items() if name}


def _read_dev(data: DataSettings, own: Mapping[str, str]) -> _Found:
    """The dev split: the corpus's own, the one that `data.dev` names, or one of another corpus there."""
    if not data.dev:
        return _read_split(data, own[DEV], DEV)
    if not exists(Path(data.dev)):
        return _read_split(data, data.dev, DEV)
    there = find_splits(data.corpus, data.dev, **_how(data))
    role = DEV if DEV in there else next(iter(there), "")
    if len(there) != 1 and role != DEV:
        raise NoSplit(
            where=data.dev,
            field="data.dev",
            found=data.dev,
            expected="a corpus with a dev split, or with a single one",
            do="set data.dev to another path, a split's name or a share of train",
        )
    log.info("dev: the split %r of %s", there[role], data.dev)
    return _read_split(data, there[role], DEV, path=data.dev)


def _how(data: DataSettings) -> dict[str, Any]:
    return {
        "held_out_speakers": data.held_out_speakers,
        "audio_column": data.audio_column,
        "text_column": data.text_column,
        "hub_config": data.hub_config or None,
    }


def _read_train(data: DataSettings, split: str) -> tuple[_Found, Mapping[str, float] | None]:
    parts = load_parts(data.corpus, data.path, split, **_how(data))
    weights = clip_weights(parts, data.weights) if data.weights else None
    return _gathered([(part.utterances, part.skipped) for part in parts], "train"), weights


def _read_split(data: DataSettings, split: str, name: str = "", path: str = "") -> _Found:
    """One split, which messages call `name`."""
    parts = load_parts(data.corpus, path or data.path, split, **_how(data))
    return _gathered([(part.utterances, part.skipped) for part in parts], name or split)


def _gathered(parts: Sequence[tuple[list[Utterance], list[Skipped]]], name: str) -> _Found:
    skipped = [clip for part in parts for clip in part[1]]
    if skipped:
        log.warning("%s: %s", name, describe_skipped(skipped))
    utterances = sorted((utterance for part in parts for utterance in part[0]), key=by_id)
    if cut := sum(utterance.start is not None or utterance.end is not None for utterance in utterances):
        log.info(
            "%s: %d of %d clips are parts of recordings, from a start to an end", name, cut, len(utterances)
        )
    return _Found(utterances, skipped)

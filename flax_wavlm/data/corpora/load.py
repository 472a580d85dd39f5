"""Corpora by name: which there are, what each expects in `data.path`, and which reader reads it.

Several corpora can be read as one: each is then a `Part`, and the ids of its clips begin with its name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flax_wavlm.data.corpora.common_voice import read_common_voice, splits_of_common_voice
from flax_wavlm.data.corpora.folder import read_folder, splits_of_folder
from flax_wavlm.data.corpora.hub import read_hub, splits_of_hub
from flax_wavlm.data.corpora.kaldi import read_kaldi, splits_of_kaldi
from flax_wavlm.data.corpora.librispeech import read_librispeech, splits_of_librispeech
from flax_wavlm.data.corpora.looks import kinds_that_look_like
from flax_wavlm.data.corpora.manifest import read_manifest, splits_of_manifest
from flax_wavlm.data.corpora.splits import JOINED, ROLES, no_such_split, role_of, splits_by_role
from flax_wavlm.data.corpora.timit import read_timit, read_timit_sample, splits_of_timit
from flax_wavlm.data.corpora.utterance import EmptySplit, NoSplit, Skipped, Utterance, by_id
from flax_wavlm.errors import UserError, did_you_mean, some
from flax_wavlm.files import is_folder

log = logging.getLogger(__name__)

Read = tuple[list[Utterance], list[Skipped]]


class _Source(NamedTuple):
    """One corpus, and how to read it."""

    corpus: str
    path: str
    hub_config: str
    audio_column: str
    text_column: str
    held_out_speakers: Sequence[str]


class _Kind(NamedTuple):
    """A kind of corpus: the right value of `data.path`, what to do where it is another, and its reader."""

    expected: str
    do: str
    read: Callable[[_Source, str], Read]  # one split by its own name
    splits: Callable[[_Source], list[str]]  # the names of those that there are
    variable: str = ""  # the environment variable to look up where data.path is empty


def _in_folder(
    read: Callable[[str, str], Read], splits: Callable[[str], list[str]]
) -> tuple[Callable[[_Source, str], Read], Callable[[_Source], list[str]]]:
    """`read` and `splits` of a kind whose readers need nothing but the folder."""
    return lambda source, split: read(source.path, split), lambda source: splits(source.path)


_KINDS = {
    "timit": _Kind(
        "the folder of the TIMIT corpus, LDC93S1 (https://catalog.ldc.upenn.edu/LDC93S1), which holds TRAIN "
        "and TEST",
        "set data.path or the environment variable TIMIT_DIR; without TIMIT, run configs/demo.py (synthetic "
        "speech) or configs/timit_sample.py (NLTK's free sample of 160 clips: `python -m nltk.downloader "
        "timit`)",
        *_in_folder(read_timit, splits_of_timit),
        "TIMIT_DIR",
    ),
    "timit_sample": _Kind(
        "the folder of NLTK's TIMIT sample, nltk_data/corpora/timit",
        "get it with `python -m nltk.downloader timit`, unzip it, and set data.path or the environment "
        "variable TIMIT_SAMPLE_DIR; without it, run configs/demo.py (synthetic speech)",
        lambda source, split: read_timit_sample(source.path, split, source.held_out_speakers),
        lambda source: ["train", "test"],
        "TIMIT_SAMPLE_DIR",
    ),
    "manifest": _Kind(
        "a folder with train.jsonl and test.jsonl (or .csv)",
        "set data.path to FOLDER",
        *_in_folder(read_manifest, splits_of_manifest),
    ),
    "common_voice": _Kind(
        "Common Voice's folder of a language, with train.tsv and clips/",
        "set data.path to FOLDER",
        *_in_folder(read_common_voice, splits_of_common_voice),
    ),
    "librispeech": _Kind(
        "LibriSpeech's folder, with train-clean-100 and so on",
        "set data.path to FOLDER",
        *_in_folder(read_librispeech, splits_of_librispeech),
    ),
    "kaldi": _Kind(
        "a Kaldi data folder, with train/wav.scp and train/text",
        "set data.path to FOLDER",
        *_in_folder(read_kaldi, splits_of_kaldi),
    ),
    "folder": _Kind(
        "a folder of audio files with a .txt or .lab file beside each",
        "set data.path to FOLDER",
        *_in_folder(read_folder, splits_of_folder),
    ),
    "hub": _Kind(
        "a Hugging Face dataset's hub id or folder",
        "set data.path to OWNER/NAME",
        lambda source, split: read_hub(
            source.path,
            split,
            audio_column=source.audio_column,
            text_column=source.text_column,
            config=source.hub_config or None,
        ),
        lambda source: splits_of_hub(source.path, config=source.hub_config or None),
    ),
    "synthetic": _Kind(  # it is written in TIMIT's layout
        "the synthetic corpus's folder",
        "run configs/demo.py, which makes it",
        *_in_folder(read_timit, splits_of_timit),
    ),
}
CORPORA = tuple(_KINDS)


class Part(NamedTuple):
    """What one corpus gave: its clips in a split, and those that cannot be used, both sorted by id."""

    name: str  # that its clips' ids begin with; "" where there is a single corpus
    path: str
    utterances: list[Utterance]
    skipped: list[Skipped]


def load_corpus(
    corpus: str,
    path: str | Path,
    split: str,
    *,
    held_out_speakers: Sequence[str] = (),
    audio_column: str = "",
    text_column: str = "",
    hub_config: str | None = None,
) -> Read:
    """Reads one split of a corpus, or of several.

    Args:
        corpus: one of CORPORA; for several, one for all or a list of the same length with commas.
        path: a folder, or for "hub" a dataset's hub id or folder; several with commas between them. Where it
            is empty, "timit" and "timit_sample" look up the environment variables TIMIT_DIR and
            TIMIT_SAMPLE_DIR.
        split: a split's own name, or several joined by "+"; for "hub" also parts, such as "train[:95%]". A
            usual name of a role that the corpus calls otherwise ("dev", where it has "validation") stands
            for the corpus's own, and the log says so. Of several corpora, one for all or a list with commas;
            an empty entry reads nothing of its corpus.
        held_out_speakers: the test speakers of "timit_sample", which has no split of its own.
        audio_column, text_column, hub_config: for "hub", see `read_hub`; for several, lists as `corpus`.
    Returns:
        The utterances, and the clips that cannot be used with the reason, both sorted by id. Of several
        corpora, each id begins with its corpus's name and a slash.
    Raises:
        NoSplit: there is no such split.
        UserError: an unknown corpus, a path that is no folder, or what the corpus's reader raises.
    """
    parts = load_parts(
        corpus,
        path,
        split,
        held_out_speakers=held_out_speakers,
        audio_column=audio_column,
        text_column=text_column,
        hub_config=hub_config,
    )
    utterances = [utterance for part in parts for utterance in part.utterances]
    skipped = [clip for part in parts for clip in part.skipped]
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def load_parts(
    corpus: str,
    path: str | Path,
    split: str,
    *,
    held_out_speakers: Sequence[str] = (),
    audio_column: str = "",
    text_column: str = "",
    hub_config: str | None = None,
) -> list[Part]:
    """`load_corpus`, with what each corpus gave apart, in the order of `path`. For `clip_weights`."""
    sources = _sources(corpus, path, hub_config, audio_column, text_column, held_out_speakers)
    splits = _one_each("split", split, len(sources))
    parts = []
    for name, source, own_split in zip(_names(sources), sources, splits, strict=True):
        if not own_split and len(sources) > 1:
            parts.append(Part(name, source.path, [], []))
            continue
        utterances, skipped = _read(source, own_split)
        if name:
            utterances = [replace(utterance, id=f"{name}/{utterance.id}") for utterance in utterances]
            skipped = [replace(clip, id=f"{name}/{clip.id}") for clip in skipped]
        parts.append(Part(name, source.path, utterances, skipped))
    return parts


def find_splits(
    corpus: str,
    path: str | Path,
    *,
    held_out_speakers: Sequence[str] = (),
    audio_column: str = "",
    text_column: str = "",
    hub_config: str | None = None,
) -> dict[str, str]:
    """The splits that a corpus has, by their roles: "train", "dev" and "test" to what `load_corpus` takes.

    A role that the corpus lacks is absent; see `splits_by_role` for the names. A split for "dev" or "test"
    that holds no usable clip counts as absent, and the log says so. Of several corpora, each role has a list
    with commas, where the entry of a corpus that lacks the role is empty; the log names it.

    Arguments, and what is raised, as for `load_corpus`.
    """
    sources = _sources(corpus, path, hub_config, audio_column, text_column, held_out_speakers)
    found = [_roles(source) for source in sources]
    if len(found) == 1:
        return found[0]
    listed = {role: [roles.get(role, "") for roles in found] for role in ROLES}
    for role, splits in listed.items():
        lacking = [source.path for source, split in zip(sources, splits, strict=True) if not split]
        if lacking and any(splits):
            log.warning("%s: none of its clips are from %s, which has no such split", role, some(lacking))
    return {role: ",".join(splits) for role, splits in listed.items() if any(splits)}


def corpora_in(corpus: str, path: str | Path) -> list[tuple[str, str]]:
    """The corpora that `data.corpus` and `data.path` name: kind and path of each.

    A path that is there is one, whatever its name; any other is cut at its commas. Raises UserError for an
    unknown kind, and where there are several kinds and not one for each path.
    """
    text = str(path)
    paths = [text] if os.path.exists(text) else [entry.strip() for entry in text.split(",")]
    kinds = _one_each("data.corpus", corpus, len(paths), always=True)
    for kind in kinds:
        if kind not in _KINDS:
            raise UserError(
                field="data.corpus",
                found=kind,
                expected=f"one of {', '.join(CORPORA)}",
                do=did_you_mean(kind, CORPORA),
            )
    return list(zip(kinds, paths, strict=True))


def clip_weights(parts: Sequence[Part], weights: Sequence[float]) -> dict[str, float]:
    """The weight of each clip by its id: that of its corpus. `weights`: one for each part, as `data.weights`.

    Raises UserError where there are not as many weights as corpora.
    """
    if len(weights) != len(parts):
        raise UserError(
            field="data.weights",
            found=list(weights),
            expected=f"{len(parts)}, one for each corpus in data.path",
        )
    return {
        utterance.id: weight
        for part, weight in zip(parts, weights, strict=True)
        for utterance in part.utterances
    }


# --- One corpus ---------------------------------------------------------------------------------------------


def _sources(
    corpus: str,
    path: str | Path,
    hub_config: str | None,
    audio_column: str,
    text_column: str,
    held_out_speakers: Sequence[str],
) -> list[_Source]:
    """Each corpus by itself. UserError where its path cannot be a corpus's."""
    corpora = corpora_in(corpus, path)
    configs, audio_columns, text_columns = (
        _one_each(field, value, len(corpora))
        for field, value in (
            ("data.hub_config", hub_config or ""),
            ("data.audio_column", audio_column),
            ("data.text_column", text_column),
        )
    )
    return [
        _Source(kind, _place(kind, place), config, audio, text, held_out_speakers)
        for (kind, place), config, audio, text in zip(
            corpora, configs, audio_columns, text_columns, strict=True
        )
    ]


def _one_each(field: str, value: str, count: int, *, always: bool = False) -> list[str]:
    """A value for each of `count` corpora: one for all, or a list with commas. One corpus has no list."""
    if count == 1 and not always:
        return [value]
    values = [entry.strip() for entry in value.split(",")]
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise UserError(
            field=field,
            found=value,
            expected=f"one for all, or one for each of the {count} corpora in data.path, with commas between",
        )
    return values


def _place(kind: str, path: str) -> str:
    """The path, or that of the environment where it is empty; UserError where it is no corpus's place."""
    place = _KINDS[kind]
    path = path or os.environ.get(place.variable, "")
    if not path or (kind != "hub" and not is_folder(Path(path))):
        raise UserError(field="data.path", found=path, expected=place.expected, do=place.do)
    return path


def _names(sources: Sequence[_Source]) -> list[str]:
    """A short name for each of several corpora, no two the same; "" for a single one."""
    if len(sources) == 1:
        return [""]
    last = [Path(source.path).name or source.corpus for source in sources]
    with_config = [
        f"{name}-{source.hub_config}" if source.hub_config else name
        for name, source in zip(last, sources, strict=True)
    ]
    numbered = [f"{number}-{name}" for number, name in enumerate(last, start=1)]
    return next(names for names in (last, with_config, numbered) if len(set(names)) == len(names))


def _roles(source: _Source) -> dict[str, str]:
    """`find_splits` of one corpus."""
    names = _splits(source)
    while True:
        roles = splits_by_role(names)
        empty = [split for role in ("dev", "test") if (split := roles.get(role)) and _is_empty(source, split)]
        if not empty:
            return roles
        names = [name for name in names if name not in empty]


def _is_empty(source: _Source, split: str) -> bool:
    """Whether the split has no usable clip, which the log then says."""
    try:
        _read_one(source, split)
    except EmptySplit as error:
        log.warning("the split %r counts as absent: %s", split, error)
        return True
    return False


def _read(source: _Source, split: str) -> Read:
    """One split, or several that are joined; by their own names, or by a role's."""
    try:
        return _read_one(source, split)
    except NoSplit as error:
        if JOINED in split:
            return _read_joined(source, split)
        own = _own_name(source, split)
        if not own:
            there = _splits(source)  # where there are none, the reader says what it looked for
            missing = no_such_split(error.where or source.path, split, there) if there else error
            raise _with_hint(source, missing) from error
    log.info("%s: %r is not there, and %r is read", source.path, split, own)
    return _read(source, own)


def _read_joined(source: _Source, split: str) -> Read:
    utterances: list[Utterance] = []
    skipped: list[Skipped] = []
    for part in split.split(JOINED):
        read = _read(source, part.strip())
        if both := {clip.id for clip in utterances} & {clip.id for clip in read[0]}:
            raise UserError(
                f"{len(both):,} clips are there twice: {some(sorted(both))}",
                where=source.path,
                field="split",
                found=split,
                expected="splits without common clips",
            )
        utterances += read[0]
        skipped += read[1]
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def _own_name(source: _Source, split: str) -> str:
    """What the corpus calls the split of which this is a role's usual name; "" where it has none."""
    name, bracket, part = split.partition("[")
    there = _splits(source)
    own = splits_by_role(there).get(role_of(name), "")
    if not own or name in there or (bracket and (source.corpus != "hub" or JOINED in own)):
        return ""
    return own + bracket + part


def _splits(source: _Source) -> list[str]:
    try:
        return _KINDS[source.corpus].splits(source)
    except UserError as error:
        raise _with_hint(source, error) from error


def _read_one(source: _Source, split: str) -> Read:
    try:
        return _KINDS[source.corpus].read(source, split)
    except (NoSplit, EmptySplit):
        raise
    except UserError as error:
        raise _with_hint(source, error) from error


def _with_hint(source: _Source, error: UserError) -> UserError:
    """The error, which says so where the folder looks like another kind of corpus."""
    kinds = kinds_that_look_like(Path(source.path))
    if not kinds or source.corpus in kinds or "data.corpus" in error.do:
        return error
    return type(error)(
        error.problem,
        where=error.where,
        field=error.field,
        found=error.found,
        expected=error.expected,
        do=f"the folder looks like the kind {kinds[0]}: set data.corpus to {kinds[0]}",
    )

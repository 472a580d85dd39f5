"""Corpora by name: which there are, what each expects in `data.path`, and which reader reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flax_wavlm.data.corpora.hub import read_hub
from flax_wavlm.data.corpora.manifest import read_manifest
from flax_wavlm.data.corpora.timit import read_timit, read_timit_layout, read_timit_sample
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.errors import UserError, did_you_mean
from flax_wavlm.files import is_folder


class _Place(NamedTuple):
    """A corpus's place: the right value of `data.path`, and what to do where it is another."""

    expected: str
    do: str
    variable: str = ""  # the environment variable to look up where data.path is empty


_PLACES = {
    "timit": _Place(
        "the folder of the TIMIT corpus, LDC93S1 (https://catalog.ldc.upenn.edu/LDC93S1), which holds TRAIN "
        "and TEST",
        "set data.path or the environment variable TIMIT_DIR; without TIMIT, run configs/demo.py (synthetic "
        "speech) or configs/timit_sample.py (NLTK's free sample of 160 clips: `python -m nltk.downloader "
        "timit`)",
        "TIMIT_DIR",
    ),
    "timit_sample": _Place(
        "the folder of NLTK's TIMIT sample, nltk_data/corpora/timit",
        "get it with `python -m nltk.downloader timit`, unzip it, and set data.path or the environment "
        "variable TIMIT_SAMPLE_DIR; without it, run configs/demo.py (synthetic speech)",
        "TIMIT_SAMPLE_DIR",
    ),
    "manifest": _Place("a folder with train.jsonl and test.jsonl (or .csv)", "set data.path to FOLDER"),
    "hub": _Place("a Hugging Face dataset's hub id or folder", "set data.path to OWNER/NAME"),
    "synthetic": _Place("the synthetic corpus's folder", "run configs/demo.py, which makes it"),
}
CORPORA = tuple(_PLACES)


def load_corpus(
    corpus: str,
    path: str | Path,
    split: str,
    *,
    held_out_speakers: Sequence[str] = (),
    audio_column: str = "audio",
    text_column: str = "text",
    hub_config: str | None = None,
) -> tuple[list[Utterance], list[Skipped]]:
    """Reads one split, "train" or "test", of one of CORPORA.

    Args:
        corpus: its name.
        path: a folder, or for "hub" a dataset's hub id or folder. Where it is empty, "timit" and
            "timit_sample" look up the environment variables TIMIT_DIR and TIMIT_SAMPLE_DIR.
        split: its name; "manifest" and "hub" may have others than these two, and "synthetic" may have "dev".
        held_out_speakers: the test speakers of "timit_sample", which has no split of its own.
        audio_column, text_column, hub_config: for "hub", see `read_hub`.
    Returns:
        The utterances, and the clips that cannot be used with the reason, both sorted by id.
    Raises:
        UserError: an unknown corpus, a path that is no folder, or what the corpus's reader raises.
    """
    if corpus not in _PLACES:
        raise UserError(
            field="data.corpus",
            found=corpus,
            expected=f"one of {', '.join(CORPORA)}",
            do=did_you_mean(corpus, CORPORA),
        )
    place = _PLACES[corpus]
    path = str(path) or os.environ.get(place.variable, "")
    if not path or (corpus != "hub" and not is_folder(Path(path))):
        raise UserError(field="data.path", found=path, expected=place.expected, do=place.do)
    if corpus == "hub":
        return read_hub(path, split, audio_column=audio_column, text_column=text_column, config=hub_config)
    if corpus == "manifest":
        return read_manifest(path, split)
    if corpus == "timit_sample":
        return read_timit_sample(path, split, held_out_speakers)
    if corpus == "synthetic":
        return read_timit_layout(path, split)
    return read_timit(path, split)

"""TODO."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from flax_wavlm.data.corpora.hub import read_hub
from flax_wavlm.data.corpora.manifest import read_manifest
from flax_wavlm.data.corpora.timit import read_timit, read_timit_sample
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.errors import UserError
from flax_wavlm.files import is_folder

# Each corpus, and what its reader expects in data.path.
_EXPECTED_PATH = {
    "timit": (
        "Expected the TIMIT corpus, LDC93S1 (https://catalog.ldc.upenn.edu/LDC93S1): point to the folder "
        "that holds TRAIN and TEST with --config.data.path=/path/to/TIMIT or the environment variable "
        "TIMIT_DIR. Without TIMIT, run configs/demo.py (synthetic speech) or configs/timit_sample.py (NLTK's "
        "free sample of 160 clips: `python -m nltk.downloader timit`)."
    ),
    "timit_sample": (
        "Expected NLTK's TIMIT sample: get it with `python -m nltk.downloader timit`, unzip it, and point to "
        "it with --config.data.path=/path/to/nltk_data/corpora/timit or the environment variable "
        "TIMIT_SAMPLE_DIR. Without it, run configs/demo.py (synthetic speech)."
    ),
    "manifest": (
        "Expected a folder with train.jsonl and test.jsonl (or .csv): set it with --config.data.path=FOLDER."
    ),
    "hub": ("Expected a Hugging Face dataset's hub id or folder: set it with --config.data.path=OWNER/NAME."),
    "synthetic": "Expected the synthetic corpus: run configs/demo.py, which makes it.",
}
CORPORA = tuple(_EXPECTED_PATH)
_PATH_VARIABLE = {"timit": "TIMIT_DIR", "timit_sample": "TIMIT_SAMPLE_DIR"}


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

    `path` is a folder, or for "hub" a dataset's hub id or folder. Where it is empty, "timit" and
    "timit_sample" look up the environment variables TIMIT_DIR and TIMIT_SAMPLE_DIR. `held_out_speakers` is
    for "timit_sample", which has no split of its own; the columns and `hub_config` are for "hub".

    Raises UserError for an unknown corpus, for a path that is no folder, and as the corpus's reader does.
    """
    if corpus not in CORPORA:
        near = difflib.get_close_matches(corpus, CORPORA, n=1)
        raise UserError(
            f"data.corpus is {corpus!r}, expected one of {', '.join(CORPORA)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    path = str(path)
    if not path and corpus in _PATH_VARIABLE:
        path = os.environ.get(_PATH_VARIABLE[corpus], "")
    if not path:
        raise UserError(f"data.path is empty. {_EXPECTED_PATH[corpus]}")
    if corpus == "hub":
        return read_hub(path, split, audio_column=audio_column, text_column=text_column, config=hub_config)
    if not is_folder(Path(path)):
        raise UserError(f"data.path is {path!r}, which is not a folder here. {_EXPECTED_PATH[corpus]}")
    if corpus == "manifest":
        return read_manifest(path, split)
    if corpus == "timit_sample":
        return read_timit_sample(path, split, held_out_speakers)
    return read_timit(path, split)  # the synthetic corpus is written in TIMIT's layout

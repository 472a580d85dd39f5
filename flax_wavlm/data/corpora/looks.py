"""Which kind of corpus a folder looks like, for messages about a folder of another kind."""

from __future__ import annotations

from pathlib import Path

_TIMIT = ("[Tt][Rr][Aa][Ii][Nn]/[Dd][Rr][1-8]", "*/[Tt][Rr][Aa][Ii][Nn]/[Dd][Rr][1-8]")
_SIGNS = {
    "kaldi": ("wav.scp", "*/wav.scp"),
    "common_voice": ("clips/*.mp3", "*/clips/*.mp3"),
    "librispeech": ("*/*/*/*.trans.txt", "*/*/*/*/*.trans.txt", "*/transcripts.txt"),
    "hub": (
        *("dataset_dict.json", "dataset_info.json", "*.parquet", "*/*.parquet", "*.arrow"),
        *("metadata.csv", "metadata.jsonl", "*/metadata.csv", "*/metadata.jsonl"),
    ),
    "timit_sample": ("dr[1-8]-*/*.wav",),
    "timit": _TIMIT,
    "synthetic": _TIMIT,
    "manifest": ("train*.jsonl", "train*.json", "train*.csv", "train*.tsv"),
    "folder": ("*.txt", "*/*.txt", "*.lab", "*/*.lab"),
}


def kinds_that_look_like(folder: Path) -> list[str]:
    """The kinds whose signs are in the folder, the surest first; none where it cannot be looked into."""
    try:
        return [kind for kind, signs in _SIGNS.items() if any(_has(folder, sign) for sign in signs)]
    except (OSError, ValueError):
        return []


def _has(folder: Path, sign: str) -> bool:
    return next(folder.glob(sign), None) is not None

"""What train shares with the clips that a model is judged by: speakers, recordings, sentences.

A model that has heard a clip's sentence, speaker or recording in training does better on it than on new
speech. Such splits can be meant, so this is a warning and no error.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from flax_wavlm.data.clips import Clip
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.errors import shown, some

EXAMPLES = 3
_PROBE = 4000  # samples compared at the beginning and in the middle of a clip


def shared(
    train: Sequence[Utterance], others: Sequence[Utterance], normalise: Callable[[str], str]
) -> Iterator[str]:
    """A sentence about each thing that the two have in common, for the log.

    Args:
        train: what is trained on.
        others: the dev or test split.
        normalise: an utterance's text to the one that is compared.
    """
    heard = {utterance.speaker for utterance in train} - {""}
    known = [utterance for utterance in others if utterance.speaker in heard]
    if known:
        speakers = sorted({utterance.speaker for utterance in known})
        yield (
            f"{len(speakers):,} speakers are also in train ({some(speakers, EXAMPLES)}), "
            f"with {len(known):,} of its {len(others):,} clips"
        )
    files = {_file(utterance) for utterance in train} - {""}
    same = sorted({str(utterance.audio) for utterance in others if _file(utterance) in files})
    if same:
        yield f"{len(same):,} recordings are also in train ({some(same, EXAMPLES)})"
    said: dict[str, set[str]] = {}  # text to the speakers of train who say it
    for utterance in train:
        said.setdefault(normalise(utterance.text), set()).add(utterance.speaker)
    said.pop("", None)
    repeated = [text for utterance in others if (text := normalise(utterance.text)) in said]
    prompts = {text for text in said if len(heard) > 2 and len(said[text]) > len(heard) / 2}
    if len(prompts) > len(said) / 2:  # everybody reads one list, and test is the same list again
        prompts.clear()
    common = [text for text in repeated if text in prompts]
    for texts, what in (
        (common, "say what most speakers of train say too, which is no leak but is easy"),
        ([text for text in repeated if text not in prompts], "have a text that is also in train"),
    ):
        if texts:
            examples = some([shown(text) for text in sorted(set(texts))], EXAMPLES)
            yield f"{len(texts):,} of its {len(others):,} clips {what}: {examples}"


def _file(utterance: Utterance) -> str:
    """The file of an utterance where links lead, "" where it is in none.

    A whole file is not looked up, but its folder: its copies are found by their samples, see `same_audio`.
    """
    if not isinstance(utterance.audio, Path):
        return ""
    if utterance.start is not None or utterance.end is not None:
        return os.path.realpath(utterance.audio)
    return os.path.join(_folder(utterance.audio.parent), utterance.audio.name)


@functools.lru_cache(maxsize=10_000)
def _folder(path: Path) -> str:
    return os.path.realpath(path)


def same_audio(train: Sequence[Clip], others: Sequence[Clip]) -> list[str]:
    """The ids among `others` of clips whose samples are also in train, under whatever name."""
    heard = {_probe(clip.samples) for clip in train}
    return [clip.id for clip in others if _probe(clip.samples) in heard]


def _probe(samples: np.ndarray) -> tuple[int, int]:
    """A clip's length and a checksum of two places in it: a long corpus is not read again."""
    middle = len(samples) // 2
    probe = np.concatenate([samples[:_PROBE], samples[middle : middle + _PROBE]])
    return len(samples), zlib.crc32(np.ascontiguousarray(probe).tobytes())

"""A folder of recordings of noise, such as MUSAN's (Snyder et al. 2015), to be added to training clips."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flax_wavlm.data.clips import decode_audio, describe_skipped
from flax_wavlm.data.corpora.audio_files import is_audio
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.errors import UserError, cannot_read

log = logging.getLogger(__name__)


def read_noise(folder: Path, *, cache: Path | None) -> Sequence[np.ndarray]:
    """Every recording in the folder and the folders in it: int16 or float32 [N], mono, 16 kHz, by path.

    Those that cannot be read are left out, and the log says so.

    Args:
        folder: of the recordings.
        cache: the folder of decoded audio; None: in memory.
    Raises:
        UserError: no such folder, or no recording in it that can be read.
    """
    field = "data.augment.noise"
    try:
        paths = sorted(path for path in folder.rglob("*") if is_audio(path.name) and path.is_file())
    except OSError as error:
        raise cannot_read(folder, error, expected="a folder of recordings") from error
    if not paths:
        expected = "'white', or a folder with recordings of noise" + (
            "" if folder.is_dir() else ", and there is no such folder"
        )
        raise UserError(field=field, found=str(folder), expected=expected)
    recordings, unusable = [], []
    utterances = [Utterance(str(path.relative_to(folder)), path, "") for path in paths]
    decoded = decode_audio(utterances, threads=None, cache=cache, name="noise")
    for utterance, samples in zip(utterances, decoded, strict=True):
        if isinstance(samples, UserError):
            unusable.append(Skipped(utterance.id, f"unreadable audio: {samples}"))
        elif samples.min() == samples.max():
            unusable.append(Skipped(utterance.id, f"silent: {len(samples)} samples, all equal"))
        else:
            recordings.append(samples)
    if unusable:
        log.warning("noise: %s", describe_skipped(unusable))
    if not recordings:
        raise UserError(
            f"none of the {len(paths)} recordings can be used",
            field=field,
            found=str(folder),
            do="see the reasons above",
        )
    return recordings

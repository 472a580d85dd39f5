"""Train, dev and test of a corpus: which splits they are, and a dev split that is cut from train.

The best checkpoint is chosen on dev. Test is read once, at the end.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import NamedTuple

from flax_wavlm.data.clips import Clip
from flax_wavlm.errors import UserError

log = logging.getLogger(__name__)

MOST_CUT = 2.0  # times the share that was asked for, while there are groups small enough
LARGEST = 1 / 3  # of train, of a single group that is cut off where none is small enough


class Cut(NamedTuple):
    """A training set, parted in two."""

    train: list[Clip]
    dev: list[Clip]
    by: str  # what was kept together: "speaker", "text" or "clip"


def parse_share(text: str) -> float | None:
    """ "5%" and "0.05" to 0.05; None for a text that is no number.

    Raises UserError where the share is not above 0 and below 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UserError(
            field="data.dev", found=text, expected="a share of train above 0 and below 1, such as 0.05 or 5%"
        )
    return share


def cut_dev(clips: Sequence[Clip], share: float, seed: int) -> Cut:
    """Parts a training set: whole speakers go to dev where speakers are known, else whole texts.

    The same clips, share and seed give the same parts, on any machine. Where each speaker has more than a
    third of the clips, texts are taken; where each text has, single clips.

    Args:
        clips: at least two, which can be trained on.
        share: of the clips, above 0 and below 1; at least one clip is taken.
        seed: of the choice.
    Raises:
        UserError: there is only one clip.
    """
    if len(clips) < 2:
        raise UserError(
            f"train has {len(clips)} clip, from which no dev split can be cut",
            field="data.dev",
            expected="at least 2 clips",
            do="set data.dev to a split or a path",
        )
    wanted = max(1, round(share * len(clips)))
    groupings = {
        "speaker": [clip.speaker for clip in clips],
        "text": [clip.text for clip in clips],
        "clip": [clip.id for clip in clips],
    }
    if not all(groupings["speaker"]):
        del groupings["speaker"]
    for by, keys in groupings.items():
        if taken := _groups_for_dev(keys, wanted, seed):
            parts: dict[bool, list[Clip]] = {True: [], False: []}
            for clip, key in zip(clips, keys, strict=True):
                parts[key in taken].append(clip)
            return Cut(parts[False], parts[True], by)
    raise AssertionError("single clips can always be taken")


def _groups_for_dev(keys: Sequence[str], wanted: int, seed: int) -> set[str]:
    """Groups of together about `wanted` items, in a random order that only key and seed decide.

    Where all are larger than that, the smallest; none where even that one is too large.
    """
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    order = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed} {key}".encode(errors="replace")).digest())
    most = MOST_CUT * wanted
    taken: set[str] = set()
    count = 0
    for key in order:
        if count >= wanted:
            break
        if count + sizes[key] <= most:
            taken.add(key)
            count += sizes[key]
    if not taken or count == len(keys):
        smallest = min(order, key=sizes.__getitem__)
        taken = {smallest} if len(sizes) > 1 and sizes[smallest] <= max(1, LARGEST * len(keys)) else set()
    return taken

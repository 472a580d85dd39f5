"""The WavLM among the tensors of a file: under whatever prefix, beside whatever else was saved with it.

A prefix is found by what follows it: the names that the table knows. There is no list of wrappers' names.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_wavlm.errors import UserError, shown, some
from flax_wavlm.porting.adapters import holds_adapter, merge_first
from flax_wavlm.porting.names import names_in_wavlm, unwrapped
from flax_wavlm.porting.table import HEAD, MASK_EMBEDDING, ROWS
from flax_wavlm.porting.tensors import Tensor

# A WavLM has these; wav2vec2, HuBERT and the others, whose other names are the same, have not.
RELATIVE_BIAS = "wavlm.encoder.layers.0.attention.rel_attn_embed.weight"
GATE = "wavlm.encoder.layers.0.attention.gru_rel_pos_const"
# Every name that begins so must have a place; any other is of a module beside the model, and is left out.
INSIDE = ("wavlm.encoder.", "wavlm.feature_projection.", "wavlm.feature_extractor.conv_layers.", *HEAD)
LONGEST = 8  # components of a name, without its prefix


class Found(NamedTuple):
    """The WavLM's tensors, and what was left out."""

    tensors: dict[str, Tensor]  # by Hugging Face's names in WavLMForCTC
    prefix: str  # that all names of the encoder share in the file, without wrappers
    left_out: list[str]  # the names of the modules beside it, each with its count of tensors


def _template(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".#", name)


_TEMPLATES = frozenset(_template(re.sub(r"\{\w+\}", "0", row[0])) for row in ROWS)
_EVERY_MODEL = frozenset(
    row[0]
    for row in ROWS
    if "{" not in row[0] and row[0] not in (MASK_EMBEDDING, *HEAD) and "encoder.layers" not in row[0]
)
_EVERY_LAYER = tuple(row[0] for row in ROWS if "{layer}" in row[0])


@functools.lru_cache(maxsize=10_000)
def _known(rest: str) -> tuple[str, ...]:
    """Hugging Face's names for a name without its prefix; none where no part of an encoder has that name."""
    names = names_in_wavlm(rest)
    known = all(_template(name) in _TEMPLATES and name not in HEAD for name in names)
    return tuple(names) if known else ()


def find_wavlm(path: Path, raw: Mapping[str, Tensor]) -> Found:
    """The one WavLM in a file, with its CTC head if it has one.

    Args:
        path: for the errors.
        raw: the tensors by their names in the file. A tensor in nested dicts has the keys that lead to it,
            with dots between them.
    Raises:
        UserError: there is no WavLM, or more than one, or an adapter is not merged, or a name is there twice.
    """
    by_name = _without_wrappers(raw)
    prefix = _prefix(path, by_name)
    head = _head_prefix(by_name, prefix)
    tensors: dict[str, Tensor] = {}
    beside: list[str] = []
    for name, tensor in by_name.items():
        if head and name.startswith(head) and f"lm_head.{name.removeprefix(head)}" in HEAD:
            found = [f"lm_head.{name.removeprefix(head)}"]
        elif name.startswith(prefix):
            found = names_in_wavlm(name.removeprefix(prefix))
        else:
            found = []
        if not found or not all(_template(n) in _TEMPLATES or n.startswith(INSIDE) for n in found):
            beside.append(name)
            continue
        if holds_adapter([name]):
            raise merge_first(path)
        for i, canonical in enumerate(found):
            if canonical in tensors:
                raise UserError(
                    f"holds {canonical} twice, as {tensors[canonical].spelled} and as {tensor.spelled}",
                    where=path,
                    do="remove one",
                )
            tensors[canonical] = tensor if len(found) == 1 else tensor.third(i, path)
    return Found(tensors, prefix, _modules(beside, prefix))


def _without_wrappers(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without wrappers' components, unless two would have the same name."""
    clean = {unwrapped(name): tensor for name, tensor in raw.items()}
    return clean if len(clean) == len(raw) and "" not in clean else dict(raw)


def _prefix(path: Path, by_name: Mapping[str, Tensor]) -> str:
    """What stands before the names of the WavLM; "" or a text that ends with a dot."""
    matches: dict[str, set[str]] = {}  # prefix to Hugging Face's names
    for name in by_name:
        parts = name.split(".")
        for i in range(max(0, len(parts) - LONGEST), len(parts)):
            if names := _known(".".join(parts[i:])):
                matches.setdefault("".join(f"{part}." for part in parts[:i]), set()).update(names)
    models = {prefix: names for prefix, names in matches.items() if RELATIVE_BIAS in names or GATE in names}
    whole = [prefix for prefix, names in models.items() if _is_whole(names)]
    candidates = whole or list(models)
    if not candidates:
        if holds_adapter(by_name):
            raise merge_first(path)
        best = max(matches, key=lambda prefix: len(matches[prefix]), default=None)
        if best is None or len(matches[best]) < len(by_name) / 2:
            raise UserError(
                f"none of its {len(by_name):,} tensors is a WavLM's encoder: {some(list(by_name), 5)}",
                where=path,
                expected="a state dict of a WavLM that is known here",
                do="give the weights of a WavLM, or convert them with transformers first",
            )
        return best
    if len(candidates) > 1 and not _all_equal(by_name, candidates):
        raise UserError(
            f"holds {len(candidates)} WavLMs that differ, under {shown(sorted(candidates))}",
            where=path,
            expected="one",
            do="save the one that you mean alone, with torch.save(that_module.state_dict(), FILE)",
        )
    # Of equal ones (a module that two others share) the one that has a head.
    return min(candidates, key=lambda prefix: (not _head_prefix(by_name, prefix), len(prefix), prefix))


def _is_whole(names: set[str]) -> bool:
    """Whether nothing that every WavLM has is missing among Hugging Face's names."""
    layers = {int(m[1]) for name in names if (m := re.match(r"wavlm\.encoder\.layers\.(\d+)\.", name))}
    needed = {name.replace("{layer}", str(layer)) for name in _EVERY_LAYER for layer in layers}
    first = "wavlm.feature_extractor.conv_layers.0.conv.weight"
    return _EVERY_MODEL | needed | {first, RELATIVE_BIAS} <= names and layers == set(range(len(layers)))


def _all_equal(by_name: Mapping[str, Tensor], prefixes: list[str]) -> bool:
    """Whether the tensors under all these prefixes are the same."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in by_name.items()
            if name.startswith(prefix) and _known(name.removeprefix(prefix))
        }

    first, *others = map(under, prefixes)
    return all(
        first.keys() == other.keys()
        and all(first[name].shape == other[name].shape for name in first)
        and all(np.array_equal(first[name].read(), other[name].read()) for name in first)
        for other in others
    )


def _head_prefix(by_name: Mapping[str, Tensor], prefix: str) -> str:
    """What stands before "weight" and "bias" of the WavLM's CTC head; "" where it has none."""
    parent = prefix.rpartition(".")[0].rpartition(".")[0]
    parent += "." if parent else ""
    places = [f"{stem}{word}." for stem in (prefix, parent) for word in ("lm_head", "aux")]
    if prefix.endswith("w2v_model."):
        places.append(f"{parent}proj.")  # fairseq's Wav2VecEncoder
    for place in places:
        if f"{place}weight" in by_name or f"{place}bias" in by_name:
            return place
    # Elsewhere in the file, if only one is there that fits.
    width = by_name.get(f"{prefix}encoder.layer_norm.weight")
    others = [
        name.removesuffix("weight")
        for name, tensor in by_name.items()
        if name.endswith(".lm_head.weight") and width is not None and tensor.shape[1:] == width.shape
    ]
    fitting = [place for place in others if f"{place}bias" in by_name]
    return fitting[0] if len(fitting) == 1 else ""


def _modules(names: Iterable[str], prefix: str) -> list[str]:
    """The modules that the names are of, the most general that the WavLM is no part of, and their tensors."""
    own = prefix.split(".")[:-1]

    def module(name: str) -> str:
        parts = name.split(".")
        shared = 0
        while shared < min(len(own), len(parts) - 1) and own[shared] == parts[shared]:
            shared += 1
        return ".".join(parts[: shared + 1])

    return [f"{name} ({count})" for name, count in Counter(map(module, names)).items()]

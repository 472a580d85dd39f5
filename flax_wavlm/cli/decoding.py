"""The flags that say how a model's outputs become text: of `transcribe`, `evaluate` and `tune-lm`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

# How the library names what the flags set.
SEARCH_FIELDS = {"decoding.lm": "--lm", "decoding.beam": "--beam"}
DECODING_FIELDS = {
    **SEARCH_FIELDS,
    "decoding.alpha": "--alpha",
    "decoding.beta": "--beta",
}


def define_search_flags(values: flags.FlagValues) -> None:
    """Defines --beam and --hotwords."""
    flags.DEFINE_integer("beam", None, "Hypotheses that a beam search keeps; 100.", flag_values=values)
    flags.DEFINE_string("hotwords", None, "A file of words or phrases to expect, one a line.", values)


def define_decoding_flags(values: flags.FlagValues) -> None:
    """Defines all of them; `decoding` takes their values."""
    flags.DEFINE_string("lm", None, "An ARPA language model; none: not even the model's own.", values)
    define_search_flags(values)
    flags.DEFINE_float("alpha", None, "The language model's weight; tune-lm finds it.", flag_values=values)
    flags.DEFINE_float("beta", None, "Added for each word; tune-lm finds it.", flag_values=values)


def hotwords(values: Any) -> list[str]:
    """What --hotwords says; UserError as `read_hotwords` raises it."""
    from flax_wavlm.recognition.beam_search.choice import read_hotwords

    return [] if values.hotwords is None else read_hotwords(Path(values.hotwords))


def decoding(values: Any) -> dict[str, Any]:
    """What the flags say, as `Recogniser.from_pretrained` takes it.

    UserError where a value cannot be used with any model, so that it is said before a model is loaded.
    """
    from flax_wavlm.recognition.beam_search.choice import Asked

    asked = {
        "lm": values.lm,
        "beam": values.beam,
        "alpha": values.alpha,
        "beta": values.beta,
        "hotwords": hotwords(values),
    }
    Asked(**asked)
    return asked

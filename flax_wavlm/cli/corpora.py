"""The flags that say which corpus is read: of `evaluate`, `fit-aligner`, `train-lm` and `tune-lm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl import flags

from flax_wavlm.cli.command import CHANNEL_HELP
from flax_wavlm.data.corpora.load import CORPORA

if TYPE_CHECKING:
    from flax_wavlm.data.corpora.utterance import Skipped, Utterance

# How the library names what the flags set.
CORPUS_TEXT_FIELDS = {
    "data.corpus": "--corpus",
    "data.path": "--data",
    "data.held_out_speakers": "--held_out_speakers",
    "data.audio_column": "--audio_column",
    "data.text_column": "--text_column",
    "data.hub_config": "--hub_config",
    "split": "--split",
}
CORPUS_FIELDS = {**CORPUS_TEXT_FIELDS, "data.channel": "--channel"}


def define_corpus_flags(values: flags.FlagValues, *, split: str, split_help: str, audio: bool = True) -> None:
    """Defines the flags; `corpus_of` takes their values.

    Args:
        values: where they are defined.
        split: the default of --split.
        split_help: what it is for.
        audio: False: the text alone is read, so there is no --channel.
    """
    flags.DEFINE_string("corpus", None, f"One of {', '.join(CORPORA)}.", values)
    flags.DEFINE_string("data", "", "The corpus's folder, or the data set's hub id.", values)
    flags.DEFINE_string("split", split, split_help, values)
    flags.DEFINE_list("held_out_speakers", [], "timit_sample: the test split's, with commas.", values)
    flags.DEFINE_string("audio_column", "", "hub: the column of the audio; empty: found.", values)
    flags.DEFINE_string("text_column", "", "hub: the column of the text; empty: found.", values)
    flags.DEFINE_string("hub_config", None, "hub: the data set's configuration.", values)
    if audio:
        flags.DEFINE_string("channel", "auto", CHANNEL_HELP, values)


def corpus_of(values: Any) -> tuple[list[Utterance], list[Skipped]]:
    """The utterances of the split, and what cannot be used; UserError as `load_corpus` raises it."""
    from flax_wavlm.data.corpora.load import load_corpus

    return load_corpus(
        values.corpus,
        values.data,
        values.split,
        held_out_speakers=values.held_out_speakers,
        audio_column=values.audio_column,
        text_column=values.text_column,
        hub_config=values.hub_config,
    )

"""Fits an aligner to a fine-tuned model: transcribe and align then say more exactly when each word was said.

flax-wavlm fit-aligner --model FOLDER --corpus timit --data /path/to/TIMIT [--split train]

It writes aligner.safetensors into the model's folder, and changes nothing else there. Clips and their text
suffice; no word times are read. A run fits one by itself at its end (train.aligner). In a checkout,
`python scripts/fit_aligner.py` is the same command.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import CHANNEL_HELP, CORPUS_FIELDS, Command, Parsed
from flax_wavlm.data.corpora.load import CORPORA


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model's folder.", values)
    flags.DEFINE_string("corpus", None, f"One of {', '.join(CORPORA)}.", values)
    flags.DEFINE_string("data", "", "The corpus's folder, or the data set's hub id.", values)
    flags.DEFINE_string("split", "train", "The split to fit on.", values)
    flags.DEFINE_integer(
        "seed", 0, "Of the sample of clips, their order and new weights.", flag_values=values
    )
    flags.DEFINE_list("held_out_speakers", [], "timit_sample: the test split's, with commas.", values)
    flags.DEFINE_string("audio_column", "", "hub: the column of the audio; empty: found.", values)
    flags.DEFINE_string("text_column", "", "hub: the column of the text; empty: found.", values)
    flags.DEFINE_string("hub_config", None, "hub: the data set's configuration.", values)
    flags.DEFINE_string("channel", "auto", CHANNEL_HELP, values)


def _run(parsed: Parsed) -> None:
    from flax_wavlm.data.corpora.load import load_corpus
    from flax_wavlm.training.aligner import fit_folder

    values = parsed.values
    utterances, unusable = load_corpus(
        values.corpus,
        values.data,
        values.split,
        held_out_speakers=values.held_out_speakers,
        audio_column=values.audio_column,
        text_column=values.text_column,
        hub_config=values.hub_config,
    )
    file = fit_folder(
        Path(values.model),
        utterances,
        unusable,
        name=values.split,
        seed=values.seed,
        channel=values.channel,
    )
    print(f"written to {file}")


FIT_ALIGNER = Command(
    name="fit-aligner",
    description=__doc__,
    define=_define,
    run=_run,
    required=("model", "corpus"),
    fields={
        **CORPUS_FIELDS,
        "model": "--model",
        "seed": "--seed",
    },
)

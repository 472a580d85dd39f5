"""Fits an aligner to a fine-tuned model: transcribe and align then say more exactly when each word was said.

flax-wavlm fit-aligner --model FOLDER --corpus timit --data /path/to/TIMIT [--split train]

It writes aligner.safetensors into the model's folder, and changes nothing else there. Clips and their text
suffice; no word times are read. A run fits one by itself at its end (train.aligner). In a checkout,
`python scripts/fit_aligner.py` is the same command.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import Command, Parsed
from flax_wavlm.cli.corpora import CORPUS_FIELDS, corpus_of, define_corpus_flags


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model's folder.", values)
    define_corpus_flags(values, split="train", split_help="The split to fit on.")
    flags.DEFINE_integer(
        "seed", 0, "Of the sample of clips, their order and new weights.", flag_values=values
    )


def _run(parsed: Parsed) -> None:
    from flax_wavlm.training.aligner import fit_folder

    values = parsed.values
    utterances, unusable = corpus_of(values)
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

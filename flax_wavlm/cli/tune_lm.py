"""Finds the weights of a language model for a fine-tuned model, on a split whose text is known.

flax-wavlm tune-lm --model FOLDER --lm LM.arpa --corpus timit --data /path/to/TIMIT [--split dev] [--save]

The last line of output is "--alpha A --beta B", for transcribe and evaluate. --save writes the language model
with these weights into the model's folder, and both use it from then on.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import Command, Parsed
from flax_wavlm.cli.corpora import CORPUS_FIELDS, corpus_of, define_corpus_flags
from flax_wavlm.cli.decoding import SEARCH_FIELDS, define_search_flags, hotwords
from flax_wavlm.errors import UserError


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model: a folder or a hub id.", values)
    flags.DEFINE_string("lm", None, "The language model, an ARPA file.", values)
    define_corpus_flags(values, split="dev", split_help="The split to tune on; not the one to report on.")
    define_search_flags(values)
    flags.DEFINE_bool("save", False, "Write the language model into the model's folder.", flag_values=values)
    flags.DEFINE_integer("batch_size", 8, "Clips at a time, a multiple of the devices.", flag_values=values)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Type of matrix products.", flag_values=values
    )


def _run(parsed: Parsed) -> None:
    from flax_wavlm.recognition.beam_search.choice import Asked
    from flax_wavlm.recognition.beam_search.folder import check_writable
    from flax_wavlm.recognition.beam_search.tuning import save_tuned, tune_on
    from flax_wavlm.recognition.recogniser import Recogniser

    values = parsed.values
    if Asked(lm=values.lm, beam=values.beam).without_lm:
        raise UserError(field="decoding.lm", found=values.lm, expected="an ARPA file")
    expected = hotwords(values)
    if values.save:
        check_writable(Path(values.model))
    utterances, unusable = corpus_of(values)
    recogniser = Recogniser.from_pretrained(
        values.model, dtype=values.dtype, lm=values.lm, beam=values.beam, hotwords=expected
    )
    tuning = tune_on(
        recogniser,
        utterances,
        unusable,
        name=values.split,
        batch_size=values.batch_size,
        channel=values.channel,
    )
    best, title = tuning.best, tuning.score.upper()
    print(f"greedy {title} {tuning.greedy:.4f}, the best of {len(tuning.tried)} pairs {best.error_rate:.4f}")
    if values.save:
        file = save_tuned(Path(values.model), Path(values.lm), recogniser, best)
        print(f"written to {file}, with its weights")
    print(f"--alpha {best.alpha:g} --beta {best.beta:g}")


TUNE_LM = Command(
    name="tune-lm",
    description=__doc__,
    define=_define,
    run=_run,
    required=("model", "lm", "corpus"),
    fields={
        **CORPUS_FIELDS,
        **SEARCH_FIELDS,
        "model": "--model",
        "batch_size": "--batch_size",
        "dtype": "--dtype",
    },
)

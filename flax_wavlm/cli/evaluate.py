"""Loss, WER and CER of a fine-tuned model on a corpus; the last line of output has them.

flax-wavlm evaluate --model FOLDER_OR_HUB_ID --corpus timit --data /path/to/TIMIT [--split test]
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import Command, Parsed
from flax_wavlm.cli.corpora import CORPUS_FIELDS, corpus_of, define_corpus_flags
from flax_wavlm.cli.decoding import DECODING_FIELDS, decoding, define_decoding_flags
from flax_wavlm.cli.text_rule import TEXT_RULE_FIELDS, define_text_rule_flag, text_fields


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model: a folder or a hub id.", values)
    define_corpus_flags(values, split="test", split_help="The split to evaluate on.")
    define_decoding_flags(values)
    flags.DEFINE_integer("batch_size", 8, "Clips at a time, a multiple of the devices.", flag_values=values)
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Type of matrix products.",
        flag_values=values,
    )
    define_text_rule_flag(values)
    flags.DEFINE_string("predictions", None, "File for id, reference and hypothesis as JSON lines.", values)


def _run(parsed: Parsed) -> None:
    from flax_wavlm.recognition.ctc_task import ctc_scoring
    from flax_wavlm.recognition.evaluate import figures_line, write_predictions
    from flax_wavlm.recognition.recogniser import Recogniser

    values = parsed.values
    text = text_fields(values.text_rule or ())
    asked = decoding(values)
    utterances, unusable = corpus_of(values)
    recogniser = Recogniser.from_pretrained(values.model, dtype=values.dtype, text=text, **asked)
    result = recogniser.evaluate(
        utterances, unusable, name=values.split, batch_size=values.batch_size, channel=values.channel
    )
    if values.predictions:
        write_predictions(Path(values.predictions), result.predictions)
    print(f"{figures_line(result.figures, ctc_scoring(values.corpus))}  {result.figures['skipped']} skipped")


EVALUATE = Command(
    name="evaluate",
    description=__doc__,
    define=_define,
    run=_run,
    required=("model", "corpus"),
    fields={
        **CORPUS_FIELDS,
        **DECODING_FIELDS,
        "batch_size": "--batch_size",
        "dtype": "--dtype",
        **TEXT_RULE_FIELDS,
    },
)

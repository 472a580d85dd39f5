"""Loss, WER and CER of a fine-tuned model on a corpus.

flax-wavlm evaluate --model FOLDER_OR_HUB_ID --corpus timit --data /path/to/TIMIT [--split test]

The last line of output has the figures. In a checkout, `python scripts/evaluate.py` is the same command.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import CHANNEL_HELP, CORPUS_FIELDS, Command, Parsed
from flax_wavlm.data.corpora.load import CORPORA
from flax_wavlm.errors import UserError, did_you_mean

TEXT_FIELDS = ("preset", "case", "remove", "keep", "language", "unit")  # of data.text.TextRule


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model: a folder or a hub id.", values)
    flags.DEFINE_string("corpus", None, f"One of {', '.join(CORPORA)}.", values)
    flags.DEFINE_string("data", "", "The corpus's folder, or the data set's hub id.", values)
    flags.DEFINE_string("split", "test", "The split to evaluate on.", values)
    flags.DEFINE_integer("batch_size", 8, "Clips at a time, a multiple of the devices.", flag_values=values)
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Type of matrix products.",
        flag_values=values,
    )
    flags.DEFINE_list("held_out_speakers", [], "timit_sample: the test split's, with commas.", values)
    flags.DEFINE_string("audio_column", "", "hub: the column of the audio; empty: found.", values)
    flags.DEFINE_string("text_column", "", "hub: the column of the text; empty: found.", values)
    flags.DEFINE_string("hub_config", None, "hub: the data set's configuration.", values)
    flags.DEFINE_string("channel", "auto", CHANNEL_HELP, values)
    flags.DEFINE_multi_string(
        "text_rule",
        None,
        f"FIELD=VALUE in place of the model's own text rule, one of {', '.join(TEXT_FIELDS)}",
        values,
    )
    flags.DEFINE_string("predictions", None, "File for id, reference and hypothesis as JSON lines.", values)


def _run(parsed: Parsed) -> None:
    from flax_wavlm.data.corpora.load import load_corpus
    from flax_wavlm.recognition.ctc_task import ctc_scoring
    from flax_wavlm.recognition.evaluate import figures_line, write_predictions
    from flax_wavlm.recognition.recogniser import Recogniser

    values = parsed.values
    text = text_fields(values.text_rule or ())
    utterances, unusable = load_corpus(
        values.corpus,
        values.data,
        values.split,
        held_out_speakers=values.held_out_speakers,
        audio_column=values.audio_column,
        text_column=values.text_column,
        hub_config=values.hub_config,
    )
    recogniser = Recogniser.from_pretrained(values.model, dtype=values.dtype, text=text)
    result = recogniser.evaluate(
        utterances, unusable, name=values.split, batch_size=values.batch_size, channel=values.channel
    )
    if values.predictions:
        write_predictions(Path(values.predictions), result.predictions)
    print(f"{figures_line(result.figures, ctc_scoring(values.corpus))}  {result.figures['skipped']} skipped")


def text_fields(settings: Sequence[str]) -> dict[str, str]:
    """Field to value, from "FIELD=VALUE"."""
    fields = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if name not in TEXT_FIELDS or not equals:
            raise UserError(
                field="--text_rule",
                found=setting,
                expected=f"FIELD=VALUE, with one of {', '.join(TEXT_FIELDS)}",
                do=did_you_mean(name, TEXT_FIELDS),
            )
        fields[name] = value
    return fields


EVALUATE = Command(
    name="evaluate",
    description=__doc__,
    define=_define,
    run=_run,
    required=("model", "corpus"),
    fields={
        **CORPUS_FIELDS,
        "batch_size": "--batch_size",
        "dtype": "--dtype",
        **{f"text.{name}": f"--text_rule {name}" for name in TEXT_FIELDS},
    },
)

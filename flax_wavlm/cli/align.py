"""When each word of a known text was said: forced alignment of recordings with their texts.

flax-wavlm align --model FOLDER_OR_HUB_ID --audio FILE --text FILE [--format srt] [--output_dir FOLDER]
flax-wavlm align --model FOLDER_OR_HUB_ID --corpus NAME --data FOLDER [--split test]

Words that were hardly said, and speech that the text lacks, are named on standard error. In a checkout,
`python scripts/align.py` is the same command.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import CHANNEL_HELP, Command, Parsed
from flax_wavlm.cli.outputs import OUTPUT_FIELDS, define_output_flags, outputs, write_all
from flax_wavlm.data.corpora.load import CORPORA
from flax_wavlm.errors import UserError


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model: a folder or a hub id.", values)
    flags.DEFINE_string("audio", None, "A recording of any length.", values)
    flags.DEFINE_string("text", None, "A UTF-8 file of what is said in it.", values)
    flags.DEFINE_string("corpus", None, f"In place of both: {', '.join(CORPORA)}.", values)
    flags.DEFINE_string("data", "", "The corpus's folder, or the data set's hub id.", values)
    flags.DEFINE_string("split", "test", "The corpus's split.", values)
    define_output_flags(values)
    values.set_default("format", "jsonl")  # the text alone is known
    flags.DEFINE_bool("star", True, "Allow for speech that the text lacks.", flag_values=values)
    flags.DEFINE_string("channel", "auto", CHANNEL_HELP, values)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Type of matrix products.", flag_values=values
    )


def _run(parsed: Parsed) -> None:
    values = parsed.values
    if values.corpus is None:
        if values.audio is None or values.text is None:
            raise UserError(
                "there is nothing to align", expected="--audio and --text, or --corpus and --data"
            )
        _align_recording(values)
    else:
        if values.audio is not None or values.text is not None:
            raise UserError(
                "a recording and a corpus are given", expected="--audio and --text, or --corpus and --data"
            )
        if values.beside:
            raise UserError(
                "clips of a corpus are no files of their own", field="--beside", do="give --output_dir"
            )
        _align_corpus(values)


def _align_recording(values: flags.FlagValues) -> None:
    from flax_wavlm.recognition.align import align_recording, report
    from flax_wavlm.recognition.known_text import read_text
    from flax_wavlm.recognition.recogniser import Recogniser

    text = read_text(Path(values.text))
    places = outputs(values, [values.audio])
    if places.done(values.audio):
        return
    recogniser = Recogniser.from_pretrained(values.model, dtype=values.dtype, lm="none")
    aligned = align_recording(
        recogniser,
        Path(values.audio),
        text,
        text_name=values.text,
        stars=values.star,
        channel=values.channel,
    )
    report(aligned)
    places.write(aligned.transcript)


def _align_corpus(values: flags.FlagValues) -> None:
    from flax_wavlm.data.corpora.load import load_corpus
    from flax_wavlm.recognition.align import align_utterances
    from flax_wavlm.recognition.recogniser import Recogniser

    utterances, unusable = load_corpus(values.corpus, values.data, values.split)
    places = outputs(values, [utterance.id for utterance in utterances])
    wanted = [utterance for utterance in utterances if not places.done(utterance.id)]
    if not wanted:
        return
    recogniser = Recogniser.from_pretrained(values.model, dtype=values.dtype, lm="none")
    transcripts = align_utterances(
        recogniser, wanted, unusable, name=values.split, stars=values.star, channel=values.channel
    )
    write_all(transcripts, places, ALIGN.fields, total=len(wanted), what="clips could not be aligned")


ALIGN = Command(
    name="align",
    description=__doc__,
    define=_define,
    run=_run,
    required=("model",),
    fields={
        "data.corpus": "--corpus",
        "data.path": "--data",
        "data.channel": "--channel",
        "dtype": "--dtype",
        "split": "--split",
        **OUTPUT_FIELDS,
    },
    results_on_stdout=True,
)

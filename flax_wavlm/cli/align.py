"""When each word of a known text was said: forced alignment of recordings with their texts.

flax-wavlm align --model FOLDER_OR_HUB_ID --audio FILE --text FILE [--format srt] [--output_dir FOLDER]
flax-wavlm align --model FOLDER_OR_HUB_ID --corpus NAME --data FOLDER [--split test]

Words that were hardly said, and speech that the text lacks, are named on standard error. In a checkout,
`python scripts/align.py` is the same command.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flax_wavlm.cli.command import CHANNEL_HELP, Command, Parsed
from flax_wavlm.data.corpora.load import CORPORA
from flax_wavlm.errors import UserError

if TYPE_CHECKING:
    from flax_wavlm.recognition.transcript import Transcript


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model: a folder or a hub id.", values)
    flags.DEFINE_string("audio", None, "A recording of any length.", values)
    flags.DEFINE_string("text", None, "A UTF-8 file of what is said in it.", values)
    flags.DEFINE_string("corpus", None, f"In place of both: one of {', '.join(CORPORA)}.", values)
    flags.DEFINE_string("data", "", "The corpus's folder, or the data set's hub id.", values)
    flags.DEFINE_string("split", "test", "The corpus's split to align.", values)
    flags.DEFINE_bool("star", True, "Let speech stand between words that the text lacks.", values)
    flags.DEFINE_string("channel", "auto", CHANNEL_HELP, values)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Type of matrix products.", flag_values=values
    )


def _run(parsed: Parsed) -> None:
    values = parsed.values
    if values.corpus is None and (values.audio is None or values.text is None):
        raise UserError("there is nothing to align", expected="--audio and --text, or --corpus and --data")
    if values.corpus is not None and (values.audio is not None or values.text is not None):
        raise UserError("both a recording and a corpus are given", expected="--audio and --text, or --corpus")
    transcripts = _of_corpus(values) if values.corpus is not None else _of_recording(values)
    for transcript in transcripts:
        print(transcript)


def _of_recording(values: flags.FlagValues) -> Iterator["Transcript"]:
    from flax_wavlm.recognition.align import align_recording, report
    from flax_wavlm.recognition.known_text import read_text
    from flax_wavlm.recognition.recogniser import Recogniser

    audio, text = Path(values.audio), read_text(Path(values.text))
    recogniser = Recogniser.from_pretrained(values.model, dtype=values.dtype)
    aligned = align_recording(
        recogniser, audio, text, text_name=values.text, stars=values.star, channel=values.channel
    )
    report(aligned)
    yield aligned.transcript


def _of_corpus(values: flags.FlagValues) -> Iterator["Transcript"]:
    from flax_wavlm.data.corpora.load import load_corpus
    from flax_wavlm.recognition.align import align_utterances
    from flax_wavlm.recognition.recogniser import Recogniser

    utterances, unusable = load_corpus(values.corpus, values.data, values.split)
    recogniser = Recogniser.from_pretrained(values.model, dtype=values.dtype)
    yield from align_utterances(
        recogniser, utterances, unusable, name=values.split, stars=values.star, channel=values.channel
    )


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
    },
    results_on_stdout=True,
)

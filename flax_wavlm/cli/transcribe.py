"""Recordings of any length to text, with the times of words.

flax-wavlm transcribe --model FOLDER_OR_HUB_ID [--format srt --output_dir DIR] FILE|FOLDER|-...
A recording is a line "file<TAB>text" by default. "-" is standard input. Exit status 2: a file was not read.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import CHANNEL_HELP, Command, Parsed
from flax_wavlm.cli.decoding import DECODING_FIELDS, decoding, define_decoding_flags
from flax_wavlm.cli.outputs import OUTPUT_FIELDS, define_output_flags, outputs, write_all


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model: a folder or a hub id.", values)
    define_output_flags(values)
    define_decoding_flags(values)
    flags.DEFINE_bool("timestamps", False, "Short for --format=tsv.", flag_values=values)
    flags.DEFINE_float("window", 0.0, "Seconds heard at once; 0: as training clips were.", flag_values=values)
    flags.DEFINE_bool("pauses", True, "Windows end at pauses where there are any.", flag_values=values)
    flags.DEFINE_float("max_seconds", 0.0, "A longer file is an error; 0: none is.", flag_values=values)
    flags.DEFINE_integer("batch_size", 8, "Windows at a time, a multiple of the devices.", flag_values=values)
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Type of matrix products.",
        flag_values=values,
    )
    flags.DEFINE_string("channel", "auto", CHANNEL_HELP, values)


def _run(parsed: Parsed) -> None:
    from flax_wavlm.data.inputs import STDIN, named_recordings
    from flax_wavlm.data.streams import spooled
    from flax_wavlm.recognition.recogniser import Recogniser
    from flax_wavlm.recognition.recordings import Source

    values, names = parsed
    if values.timestamps:
        values["format"].value = "tsv"
    asked = decoding(values)
    files = named_recordings(names)
    written = outputs(values, files)
    files = [file for file in files if not written.done(file)]
    if not files:
        return
    recogniser = Recogniser.from_pretrained(values.model, dtype=values.dtype, **asked)
    with contextlib.ExitStack() as stack:
        sources = [
            Source(file, stack.enter_context(spooled(sys.stdin.buffer, "standard input")))
            if file == STDIN
            else Source(file, Path(file))
            for file in files
        ]
        transcripts = recogniser.transcripts(
            sources,
            batch_size=values.batch_size,
            window=values.window,
            at_pauses=values.pauses,
            max_seconds=values.max_seconds or float("inf"),
            channel=values.channel,
            times=values.format != "text",
        )
        what = "files could not be transcribed"
        write_all(transcripts, written, TRANSCRIBE.fields, total=len(files), what=what)


TRANSCRIBE = Command(
    name="transcribe",
    description=__doc__,
    define=_define,
    run=_run,
    arguments="FILE|FOLDER|-...",
    required=("model",),
    fields={
        "data.channel": "--channel",
        "batch_size": "--batch_size",
        "dtype": "--dtype",
        "max_seconds": "--max_seconds",
        "window": "--window",
        **OUTPUT_FIELDS,
        **DECODING_FIELDS,
    },
    results_on_stdout=True,
)

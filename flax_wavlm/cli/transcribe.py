"""Audio files to text: one line "file<TAB>text" each on standard output.

flax-wavlm transcribe --model FOLDER_OR_HUB_ID [--batch_size 8] [--dtype bfloat16] FILE...

Tabs, line ends and control characters in names and texts are escaped, so that a line is a file.
A file that cannot be read is named on standard error and the others are transcribed; the exit status is
then 2. In a checkout, `python scripts/transcribe.py` is the same command.
"""

import sys
from collections.abc import Sequence

from absl import flags

from flax_wavlm.cli.command import CHANNEL_HELP, Command, Parsed
from flax_wavlm.cli.names import in_flags
from flax_wavlm.errors import UserError, printable


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model: a folder or a hub id.", values)
    flags.DEFINE_integer("batch_size", 8, "Clips at a time, a multiple of the devices.", flag_values=values)
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16"],
        "Type of matrix products.",
        flag_values=values,
    )
    flags.DEFINE_string("channel", "auto", CHANNEL_HELP, values)
    flags.DEFINE_float("max_seconds", 60.0, "A longer file is an error.", flag_values=values)


def _run(parsed: Parsed) -> None:
    from flax_wavlm.recognition.recogniser import Recogniser

    values, files = parsed
    recogniser = Recogniser.from_pretrained(values.model, dtype=values.dtype)
    failures = 0
    for file, text, error in recogniser.transcribe_files(
        files, batch_size=values.batch_size, max_seconds=values.max_seconds, channel=values.channel
    ):
        if error is None:
            print(f"{printable(str(file))}\t{printable(text)}")
        else:
            print(printable(f"error: {in_flags(error, TRANSCRIBE.fields)}"), file=sys.stderr)
            failures += 1
    if failures:
        raise UserError(f"{failures} of {len(files)} files could not be transcribed")


TRANSCRIBE = Command(
    name="transcribe",
    description=__doc__,
    define=_define,
    run=_run,
    arguments="FILE...",
    required=("model",),
    fields={
        "data.channel": "--channel",
        "batch_size": "--batch_size",
        "dtype": "--dtype",
        "max_seconds": "--max_seconds",
    },
    results_on_stdout=True,
)

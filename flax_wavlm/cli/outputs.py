"""The flags that say in which format transcripts are written, and where: of `transcribe` and of `align`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from flax_wavlm.cli.names import in_flags
from flax_wavlm.errors import UserError, printable

if TYPE_CHECKING:
    from flax_wavlm.recognition.outputs import Outputs
    from flax_wavlm.recognition.transcript import Transcript

FORMAT_NAMES = ("text", "json", "jsonl", "srt", "vtt", "ctm", "textgrid", "tsv")
# How the library names what the flags set.
OUTPUT_FIELDS = {
    "output.format": "--format",
    "output.folder": "--output_dir",
    "output.beside": "--beside",
    "output.resume": "--resume",
    "output.overwrite": "--overwrite",
}


def define_output_flags(values: flags.FlagValues) -> None:
    """Defines the flags; `outputs` takes their values."""
    flags.DEFINE_string("format", "text", f"{', '.join(FORMAT_NAMES)}.", values)
    flags.DEFINE_string(
        "output_dir", "", "Folder for a file of each recording; empty: standard output.", values
    )
    flags.DEFINE_bool("beside", False, "Write a file beside each recording.", flag_values=values)
    flags.DEFINE_bool("resume", False, "Skip recordings whose file is there.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace files that are there.", flag_values=values)


def outputs(values: Any, inputs: Sequence[str]) -> Outputs:
    """What the flags say, for these audio files; UserError as `plan_outputs` raises it."""
    from flax_wavlm.recognition.outputs import plan_outputs

    return plan_outputs(
        inputs,
        values.format,
        folder=values.output_dir,
        beside=values.beside,
        resume=values.resume,
        overwrite=values.overwrite,
    )


def write_all(
    transcripts: Iterable[Transcript], places: Outputs, fields: Mapping[str, str], *, total: int, what: str
) -> None:
    """Writes transcripts as they come; one that has an error is named on standard error.

    Args:
        fields: of the command, for messages.
        total: how many transcripts there are.
        what: what could not be done to what, for the error: "files could not be transcribed".
    Raises:
        UserError: at the end, where some had an error; and where one cannot be written.
    """
    failures = 0
    for transcript in transcripts:
        if transcript.error is None:
            places.write(transcript)
        else:
            print(printable(f"error: {in_flags(transcript.error, fields)}"), file=sys.stderr)
            failures += 1
    if failures:
        raise UserError(f"{failures} of {total} {what}")

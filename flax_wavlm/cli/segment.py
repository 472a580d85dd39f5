"""A long recording with its text, cut at pauses into clips to train on: a manifest, and what is left out.

flax-wavlm segment --model FOLDER_OR_HUB_ID --audio FILE --text FILE --output FOLDER

FOLDER gets train.jsonl, for which `train --config.data.corpus=manifest --config.data.path=FOLDER` reads the
clips from the recording by their times, and rejected.jsonl, which says why the others are not in it. In a
checkout, `python scripts/segment.py` is the same command.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import CHANNEL_HELP, Command, Parsed


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("model", None, "The fine-tuned model: a folder or a hub id.", values)
    flags.DEFINE_string("audio", None, "A recording of any length.", values)
    flags.DEFINE_string("text", None, "A UTF-8 file of what is said in it.", values)
    flags.DEFINE_string("output", None, "The folder for the manifest.", values)
    flags.DEFINE_float(
        "max_seconds",
        None,
        "The longest clip; default: the model's longest training clip where that is known, else 15.",
        flag_values=values,
    )
    flags.DEFINE_float("min_confidence", 0.5, "A clip with less is rejected.", flag_values=values)
    flags.DEFINE_string("speaker", "", "The speaker's name for the manifest.", values)
    flags.DEFINE_string("channel", "auto", CHANNEL_HELP, values)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Type of matrix products.", flag_values=values
    )


def _run(parsed: Parsed) -> None:
    from flax_wavlm.recognition.known_text import read_text
    from flax_wavlm.recognition.recogniser import Recogniser
    from flax_wavlm.recognition.segment_folder import Cutting, announce_finished, cut_into

    values = parsed.values
    text = read_text(Path(values.text))
    cutting = Cutting(
        Path(values.audio),
        text,
        values.model,
        max_seconds=values.max_seconds,
        min_confidence=values.min_confidence,
        speaker=values.speaker,
        channel=values.channel,
        dtype=values.dtype,
    )
    folder = Path(values.output)
    if not announce_finished(folder, cutting):
        cut_into(folder, Recogniser.from_pretrained(values.model, dtype=values.dtype, lm="none"), cutting)


SEGMENT = Command(
    name="segment",
    description=__doc__,
    define=_define,
    run=_run,
    required=("model", "audio", "text", "output"),
    fields={
        "data.channel": "--channel",
        "dtype": "--dtype",
        "max_seconds": "--max_seconds",
        "min_confidence": "--min_confidence",
        "output": "--output",
    },
)

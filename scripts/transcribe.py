"""Audio files to text: one line "file<TAB>text" each on standard output.

python scripts/transcribe.py --model FOLDER_OR_HUB_ID [--batch_size 8] [--dtype bfloat16] FILE...

A file that cannot be read is named on standard error and the others are transcribed; exit status 2 then.
"""

import sys

from absl import flags

from flax_wavlm.cli import app as cli
from flax_wavlm.errors import UserError

MODEL = flags.DEFINE_string("model", None, "Fine-tuned checkpoint: a folder or a hub id.", required=True)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips at a time, a multiple of the devices.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of matrix products.")
MAX_SECONDS = flags.DEFINE_float("max_seconds", 60.0, "A longer file is an error.")


def main(files: list[str]) -> None:
    from flax_wavlm.recognition.recogniser import Recogniser

    recogniser = Recogniser.from_pretrained(MODEL.value, dtype=DTYPE.value)
    failures = 0
    for file, text, error in recogniser.transcribe_files(
        files, batch_size=BATCH_SIZE.value, max_seconds=MAX_SECONDS.value
    ):
        if error is None:
            print(f"{file}\t{text}")
        else:
            print(f"error: {error}", file=sys.stderr)
            failures += 1
    if failures:
        raise UserError(f"{failures} of {len(files)} files could not be transcribed")


if __name__ == "__main__":
    cli.run(main, arguments="FILE...", messages=sys.stderr)

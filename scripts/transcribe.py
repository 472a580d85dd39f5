"""Audio files to text: one line "file<TAB>text" each on standard output.

python scripts/transcribe.py --model FOLDER_OR_HUB_ID [--batch_size 8] [--dtype bfloat16] FILE...

A file that cannot be read is named on standard error and the others are transcribed; the exit status is
then 2.

The code is flax_wavlm/cli/transcribe.py; `flax-wavlm transcribe` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["transcribe", *sys.argv[1:]]))

"""A long recording with its text, cut at pauses into clips to train on: a manifest, and what is left out.

python scripts/segment.py --model FOLDER_OR_HUB_ID --audio FILE --text FILE --output FOLDER

FOLDER gets train.jsonl, for which `train --config.data.corpus=manifest --config.data.path=FOLDER` reads the
clips from the recording by their times, and rejected.jsonl, which says why the others are not in it.

The code is flax_wavlm/cli/segment.py; `flax-wavlm segment` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["segment", *sys.argv[1:]]))

"""A checkpoint of a run to a Hugging Face folder that transformers loads.

python scripts/export_pytorch.py --workdir DIR --output FOLDER [--step best|latest|N]

The code is flax_wavlm/cli/export.py; `flax-wavlm export` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["export", *sys.argv[1:]]))

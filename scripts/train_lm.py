"""A word n-gram model from text, by interpolated modified Kneser-Ney, for transcribe and evaluate --lm.

python scripts/train_lm.py --output LM.arpa [--order 3] --text FILE... (or --corpus NAME --data PATH)

The code is flax_wavlm/cli/train_lm.py; `flax-wavlm train-lm` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["train-lm", *sys.argv[1:]]))

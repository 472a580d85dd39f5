"""Fits an aligner to a fine-tuned model: transcribe and align then say more exactly when each word was said.

python scripts/fit_aligner.py --model FOLDER --corpus timit --data /path/to/TIMIT [--split train]

It writes aligner.safetensors into the model's folder. The code is flax_wavlm/cli/fit_aligner.py;
`flax-wavlm fit-aligner` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["fit-aligner", *sys.argv[1:]]))

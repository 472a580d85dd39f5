"""Finds the weights of a language model for a fine-tuned model, on a split whose text is known.

python scripts/tune_lm.py --model FOLDER --lm LM.arpa --corpus timit --data /path/to/TIMIT [--save]

The last line of output is "--alpha A --beta B". The code is flax_wavlm/cli/tune_lm.py;
`flax-wavlm tune-lm` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["tune-lm", *sys.argv[1:]]))

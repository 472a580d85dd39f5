"""Loss, WER and CER of a fine-tuned model on a corpus.

python scripts/evaluate.py --model FOLDER_OR_HUB_ID --corpus timit --data /path/to/TIMIT [--split test]

The last line of output has the figures.

The code is flax_wavlm/cli/evaluate.py; `flax-wavlm evaluate` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["evaluate", *sys.argv[1:]]))

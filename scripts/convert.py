"""Pretrained weights of any format (Hugging Face, Microsoft, torchaudio) to a Hugging Face folder.

python scripts/convert.py SOURCE FOLDER [--verify [--clip FILE]] [--overwrite]

With --verify, transformers' PyTorch model must agree with ours on the files that were written; the exit
status is 1 if it does not.

The code is flax_wavlm/cli/convert.py; `flax-wavlm convert` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["convert", *sys.argv[1:]]))

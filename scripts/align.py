"""When each word of a known text was said: forced alignment of recordings with their texts.

python scripts/align.py --model FOLDER_OR_HUB_ID --audio FILE --text FILE [--format srt] [--output_dir FOLDER]
python scripts/align.py --model FOLDER_OR_HUB_ID --corpus NAME --data FOLDER [--split test]

Words that were hardly said, and speech that the text lacks, are named on standard error.

The code is flax_wavlm/cli/align.py; `flax-wavlm align` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["align", *sys.argv[1:]]))

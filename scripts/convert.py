"""A checkpoint of any format (Hugging Face, Microsoft, torchaudio) as a Hugging Face folder.

python scripts/convert.py SOURCE FOLDER [--verify [--clip FILE]] [--overwrite]

With --verify, transformers' PyTorch model must agree with ours on what was written; exit status 1 if not.
"""

import sys
from pathlib import Path

from absl import flags

from flax_wavlm.cli import app as cli
from flax_wavlm.errors import UserError

VERIFY = flags.DEFINE_bool("verify", False, "Compare with transformers' PyTorch model.")
CLIP = flags.DEFINE_string("clip", None, "Audio file to compare on; default: a signal made up here.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the checkpoint in FOLDER.")


def main(arguments: list[str]) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # converting needs no accelerator, nor should it wait for one
    from flax_wavlm.porting.convert import convert
    from flax_wavlm.porting.verify import read_clip, require_torch, verify

    source, folder = arguments
    if CLIP.value and not VERIFY.value:
        raise UserError(f"--clip={CLIP.value} is what --verify compares on, expected --verify beside it")
    clip = None
    if VERIFY.value:  # what can fail early, before anything is written
        require_torch()
        clip = read_clip(CLIP.value) if CLIP.value else None
    conversion = convert(source, Path(folder), overwrite=OVERWRITE.value)
    if VERIFY.value:
        checks = verify(conversion, clip)
        passed = all(check.passed for check in checks)
        print(*checks, "PASS" if passed else "FAIL", sep="\n")
        sys.exit(0 if passed else 1)


if __name__ == "__main__":
    cli.run(main, arguments="SOURCE FOLDER")

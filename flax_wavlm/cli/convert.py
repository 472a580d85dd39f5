"""Pretrained weights of any format (Hugging Face, Microsoft, torchaudio) to a Hugging Face folder.

flax-wavlm convert SOURCE FOLDER [--verify [--clip FILE]] [--overwrite]

With --verify, transformers' PyTorch model must agree with ours on the files that were written; the exit
status is 1 if it does not. In a checkout, `python scripts/convert.py` is the same command.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import Command, Parsed
from flax_wavlm.errors import UserError

DISAGREES = 1  # exit status


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_bool("verify", False, "Compare with transformers' PyTorch model.", values)
    flags.DEFINE_string("clip", None, "Audio file to compare on; a made-up signal by default.", values)
    flags.DEFINE_bool("overwrite", False, "Replace the model in FOLDER.", values)


def _run(parsed: Parsed) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # converting needs no accelerator, nor should it wait for one
    from flax_wavlm.porting.convert import convert
    from flax_wavlm.porting.verify import read_clip, require_torch, verify

    values, (source, folder) = parsed
    if values.clip and not values.verify:
        expected = "--verify beside it, which compares the two models on that clip"
        raise UserError(field="clip", found=values.clip, expected=expected)
    clip = None
    if values.verify:  # what can fail early is done before anything is written
        require_torch()
        clip = read_clip(values.clip) if values.clip else None
    conversion = convert(source, Path(folder), overwrite=values.overwrite)
    if not values.verify:
        return 0
    checks = verify(conversion, clip)
    passed = all(check.passed for check in checks)
    print(*checks, "PASS" if passed else "FAIL", sep="\n")
    return 0 if passed else DISAGREES


CONVERT = Command(
    name="convert",
    description=__doc__,
    define=_define,
    run=_run,
    arguments="SOURCE FOLDER",
    fields={"verify": "--verify", "clip": "--clip", "overwrite": "--overwrite"},
)

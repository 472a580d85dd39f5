"""A checkpoint of a run to a Hugging Face folder that transformers loads.

flax-wavlm export --workdir DIR --output FOLDER [--step best|latest|averaged|N]

In a checkout, `python scripts/export_pytorch.py` is the same command.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flax_wavlm.cli.command import Command, Parsed


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_string("workdir", None, "The run's folder.", values)
    flags.DEFINE_string("output", None, "The folder to write.", values)
    flags.DEFINE_string(
        "step",
        "best",
        "best (by the score that chose), latest, averaged (over the last train.average_last checkpoints), or "
        "the number of a checkpoint.",
        values,
    )


def _run(parsed: Parsed) -> None:
    from flax_wavlm.training.export import export_run

    values = parsed.values
    exported = export_run(Path(values.workdir), Path(values.output), values.step)
    print(f"{exported} of {values.workdir} is in {values.output}")


EXPORT = Command(
    name="export",
    description=__doc__,
    define=_define,
    run=_run,
    required=("workdir", "output"),
    fields={"workdir": "--workdir", "step": "--step"},
)

"""A run's checkpoint as a Hugging Face folder that transformers loads.

python scripts/export_pytorch.py --workdir DIR --output FOLDER [--step best|latest|N]
"""

from pathlib import Path

from absl import flags

from flax_wavlm.cli import app as cli

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
STEP = flags.DEFINE_string("step", "best", "best (by word error rate), latest, or a checkpoint's number.")


def main(arguments: list[str]) -> None:
    from flax_wavlm.training.export import export_run

    step = export_run(Path(WORKDIR.value), Path(OUTPUT.value), STEP.value)
    print(f"step {step} of {WORKDIR.value} is in {OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)

"""Draws the README's picture, docs/demo-curves.svg, from the metrics of a finished run of the demo.

    flax-wavlm train --config demo --workdir runs/demo
    python benchmarks/demo_curves.py --workdir runs/demo

The drawing is the one that every run leaves in its workdir. The same metrics give the same file.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from flax_wavlm.errors import UserError
from flax_wavlm.training.config import read_saved
from flax_wavlm.training.export import scoring_of
from flax_wavlm.training.report.curves import curves
from flax_wavlm.training.report.metrics import evaluations, read_metrics

PICTURE = Path(__file__).parents[1] / "docs" / "demo-curves.svg"


def main(workdir: Path, output: Path) -> None:
    """Writes the SVG and prints the best evaluation. Raises UserError where the run has not ended."""
    rows = read_metrics(workdir / "metrics.jsonl")
    steps = read_saved(workdir / "config.json")["train"]["steps"]
    evaluated = [row["step"] for row in evaluations(rows)]
    if steps not in evaluated:
        raise UserError(
            f"the run has not ended: evaluated at {evaluated}, expected {steps} among them",
            where=workdir,
            do="start the demo's command again; it goes on",
        )
    scoring = scoring_of(workdir)
    with tempfile.TemporaryDirectory() as folder:  # `curves` makes a PNG too, which is not kept
        drawn = Path(folder) / output.name
        curves(rows, drawn, scoring)
        shutil.copyfile(drawn, output)
    print(f"{output}: {json.dumps(scoring.best(rows))}")


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--workdir", type=Path, required=True, help="the folder of a finished run")
    parser.add_argument("--output", type=Path, default=PICTURE, help="the SVG to write")
    arguments = parser.parse_args()
    try:
        main(arguments.workdir, arguments.output)
    except UserError as error:
        sys.exit(f"error: {error}")

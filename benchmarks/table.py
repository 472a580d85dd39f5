"""Makes the table of README.md from results/*.json: `python benchmarks/table.py`. `--check` compares only."""

import collections
import json
import sys
from pathlib import Path
from typing import Any

from jobs import JOBS

HERE = Path(__file__).parent
BEGIN, END = "<!-- table.py: begin -->\n", "<!-- table.py: end -->\n"
HEAD = ("Benchmark", "Job", "Ours", "Theirs", "Ratio, median (range)", "Target", "Met")


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cells(benchmark: str, row: dict[str, Any]) -> tuple[str, ...]:
    ratio = row["ratio"]
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    return (
        benchmark,
        row["job"],
        f"{number(row['ours'])} {row['unit']}",
        number(row["theirs"]),
        "{median:.2f} ({low:.2f}-{high:.2f})".format(**ratio) if ratio else "",
        row["target"] or "",
        met,
    )


def section(found: list[dict[str, Any]]) -> str:
    """The Markdown between the marks: a table for each device, and what nobody has measured."""
    parts, done = [], collections.defaultdict(set)
    for device in sorted({result["device"] for result in found}):
        rows = []
        machines = set()
        for result in (result for result in found if result["device"] == device):
            for row in result["rows"]:
                rows.append(cells(result["benchmark"], row))
                done[row["command"].removeprefix("python benchmarks/")].add(row["job"].rpartition("vs ")[2])
                where = row["environment"]
                machines.add(
                    f"{where['cores']} cores of {where['cpu']}; "
                    + ", ".join(f"{name} {where.get(name)}" for name in ("jax", "torch", "transformers"))
                )
        lines = [HEAD, ("---",) * len(HEAD), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"### {device}\n\n{'; '.join(sorted(machines))}\n\n{table}\n")
    missing = [line for jobs in JOBS.values() for job in jobs if (line := unmeasured(job, done))]
    if missing:
        listed = "\n".join(f"python benchmarks/{line}" for line in missing)
        parts.append(f"### Not measured\n\n```sh\n{listed}\n```\n")
    return "\n".join(parts)


def unmeasured(job: str, done: dict[str, set[str]]) -> str | None:
    """A job of which something has not been measured, and which baselines if it is only they."""
    if job not in done:
        return job
    baselines = [word for word in job.partition("--baseline")[2].split() if word not in done[job]]
    return f"{job}  # {', '.join(baselines)} only" if baselines else None


def main() -> None:
    found = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    readme = HERE / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    made = f"{before}{BEGIN}\n{section(found)}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if made != text:
            sys.exit("benchmarks/README.md is not what results/*.json say: python benchmarks/table.py")
        return
    readme.write_text(made)


if __name__ == "__main__":
    main()

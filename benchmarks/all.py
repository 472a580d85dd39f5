"""Runs every job of a device, one after the other, and makes the table anew.

python benchmarks/all.py            # about 45 minutes on 2 quiet cores
python benchmarks/all.py cuda
python benchmarks/all.py cpu train_step   # the jobs of one benchmark
"""

import subprocess
import sys
import time
from pathlib import Path

from jobs import JOBS

HERE = Path(__file__).parent


def main(device: str = "cpu", only: str = "") -> None:
    failed = []
    for job in JOBS[device]:
        if not job.startswith(only):
            continue
        print(f"--- {job}", flush=True)
        script, *arguments = job.split()
        start = time.perf_counter()
        if subprocess.run([sys.executable, HERE / script, *arguments]).returncode:
            failed.append(job)
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    subprocess.run([sys.executable, HERE / "table.py"], check=True)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

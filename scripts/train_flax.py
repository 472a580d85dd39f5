"""Trains, evaluates and exports; run again with the same workdir, it resumes.

python scripts/train_flax.py --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...]

SIGTERM saves and ends with status 75; the same command then goes on. On several hosts run it on each, with
--multihost where jax knows the cluster (TPU pod, Slurm, Open MPI, Kubernetes), else with the variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set.

The code is flax_wavlm/cli/train.py; `flax-wavlm train` is the same command.
"""

import sys

from flax_wavlm.cli import app

if __name__ == "__main__":
    sys.exit(app.main(["train", *sys.argv[1:]]))

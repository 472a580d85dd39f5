"""Trains, evaluates and exports; run again with the same workdir, it resumes.

python scripts/train_flax.py --config configs/timit.py [--workdir DIR] [--config.FIELD=VALUE ...]

SIGTERM saves and ends with status 75; the same command then goes on. On several hosts run it on each, with
--multihost where jax knows the cluster (TPU pod, Slurm, Open MPI, Kubernetes), else with the variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set.
"""

from absl import flags
from ml_collections import config_flags

from flax_wavlm.cli import app as cli

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.", lock_config=False)
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default: runs/ and the recipe's name.")
MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the cluster's other processes of this run.")


def main(arguments: list[str]) -> None:
    overridden = config_flags.get_override_values(flags.FLAGS["config"]) if CONFIG.value else ()
    config = cli.resolve(CONFIG.value, WORKDIR.value, overridden)
    from flax_wavlm.parallel import processes

    processes.join(MULTIHOST.value)
    from flax_wavlm.training.train import train

    train(config)


if __name__ == "__main__":
    cli.run(main)

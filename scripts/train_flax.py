"""Trains, evaluates and exports; run again with the same workdir, it resumes.

python scripts/train_flax.py --config configs/timit.py [--workdir DIR] [--config.FIELD=VALUE ...]
"""

from absl import flags
from ml_collections import config_flags

from flax_wavlm import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.", lock_config=False)
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default: runs/ and the recipe's name.")


def main(arguments: list[str]) -> None:
    overridden = config_flags.get_override_values(flags.FLAGS["config"]) if CONFIG.value else ()
    config = cli.resolve(CONFIG.value, WORKDIR.value, overridden)
    from flax_wavlm.train import train

    train(config)


if __name__ == "__main__":
    cli.run(main)

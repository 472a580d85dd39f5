"""Trains, evaluates and exports; run again with the same workdir, it resumes.

flax-wavlm train --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...] [--dry_run]

SIGTERM saves and ends with status 75; the same command then goes on. On several hosts run it on each, with
--multihost where jax knows the cluster (TPU pod, Slurm, Open MPI, Kubernetes), else with the variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set. In a checkout,
`python scripts/train_flax.py` is the same command.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Collection, Sequence

from absl import flags

from flax_wavlm.cli.command import Command, Parsed, parse_flags
from flax_wavlm.cli.fields import ARCHITECTURE, PREFIX, field_flags, groups, nearest_field
from flax_wavlm.cli.help import table
from flax_wavlm.cli.recipes import describe_recipes, find_recipe
from flax_wavlm.errors import UserError, reason
from flax_wavlm.training.config import TrainConfig, field_names


def _define(values: flags.FlagValues, given: Sequence[str]) -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "The recipe: a file, or the name of a packaged one, listed below.",
        flag_values=values,
        lock_config=False,
        sys_argv=list(given),  # it defines the flags of the fields that are given
    )
    flags.DEFINE_string("workdir", "", "The run's folder; by default runs/ and the recipe's name.", values)
    flags.DEFINE_bool("dry_run", False, "Check everything, foretell memory and time, train nothing.", values)
    flags.DEFINE_bool("multihost", False, "Join the cluster's other processes of this run.", values)


def _parse(command: Command, given: Sequence[str]) -> Parsed:
    given = with_recipe_files(given)
    check_fields(given)
    sys.modules.pop("config_config", None)  # else ml_collections runs a recipe within the one before
    try:
        return parse_flags(command, given)
    except UserError:
        raise
    except Exception as error:  # a recipe is Python, which can fail in every way
        raise _in_recipe(error, given) from None


def _run(parsed: Parsed) -> None:
    values = parsed.values
    config = resolve(values.config, values.workdir, _overridden(values))
    from flax_wavlm.parallel import processes

    processes.join(values.multihost)
    from flax_wavlm.training.train import dry_run, train

    if values.dry_run:
        dry_run(config)
    else:
        train(config)


def with_recipe_files(given: Sequence[str]) -> list[str]:
    """The arguments with the value of each --config flag replaced by the recipe's file.

    Raises:
        UserError: there is no such file, and no packaged recipe of that name.
    """
    arguments, rest = [], iter(given)
    for argument in rest:
        flag, has_value, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config":
            argument = f"--config={find_recipe(value if has_value else next(rest, ''))}"
        arguments.append(argument)
    return arguments


def check_fields(given: Sequence[str]) -> None:
    """Checks that every field that the arguments set exists: ml_collections would end in a KeyError.

    Raises:
        UserError: no configuration has such a field, or only a recipe may set it.
    """
    known = field_names()
    for argument in given:
        flag = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or not flag.startswith("config."):
            continue
        name = flag.removeprefix("config.")
        if f"{name}.".startswith(f"{ARCHITECTURE}."):
            raise UserError(
                "an architecture is set in the recipe",
                where=f"--{flag}",
                do="the command line can change its regularisation, as --config.model.overrides.NAME",
            )
        if name not in known:
            raise UserError("there is no such field", where=f"--{flag}", do=nearest_field(name, known))


def resolve(config: TrainConfig | None, workdir: str, overridden: Collection[str] = ()) -> TrainConfig:
    """The recipe's configuration with the workdir of a --workdir flag, or one named after the recipe.

    `overridden` are the fields that the command line sets: epochs set there replace a recipe's steps, and a
    batch size replaces its `batch_seconds`.

    Raises:
        UserError: there is no recipe, or what it gives is no TrainConfig.
    """
    if config is None:
        raise UserError(
            "--config is missing", expected="a recipe, such as --config demo or --config configs/demo.py"
        )
    if not isinstance(config, TrainConfig):
        raise UserError(f"--config: get_config() gave a {type(config).__name__}, expected a TrainConfig")
    if "train.epochs" in overridden and "train.steps" not in overridden:
        config.train.steps = 0
    if "train.batch_size" in overridden and "train.batch_seconds" not in overridden:
        config.train.batch_seconds = 0.0
    config.workdir = workdir or config.workdir or f"runs/{config.name or 'run'}"
    return config


def _overridden(values: flags.FlagValues) -> Collection[str]:
    """The fields that the command line sets."""
    from ml_collections import config_flags

    return config_flags.get_override_values(values["config"]) if values.config else ()


def _in_recipe(error: Exception, given: Sequence[str]) -> UserError:
    """The exception that a recipe raised, with the line of the recipe."""
    prefix = "--config="
    file = next((argument.removeprefix(prefix) for argument in given if argument.startswith(prefix)), "")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return UserError(
        f"{type(error).__name__}: {reason(error)}",
        where=f"--config={file}:{line}" if line else f"--config={file}",
        expected="a Python file whose get_config() gives a TrainConfig, as those in configs/",
    )


def _more_help() -> str:
    lines = ["Packaged recipes, for --config:", *table(describe_recipes()), "", *_ENVIRONMENT, "", *_FIELDS]
    for group in groups():
        lines += ["", f"{group.name}: {group.description}".removeprefix(": ")]
        lines += table([(f"{PREFIX}{name}", *columns) for name, *columns in group.fields])
    return "\n".join(lines)


_ENVIRONMENT = (
    "FLAX_WAVLM_HUGE_PAGES=0 in the environment: do not start the process again with large pages of memory.",
    "By default this happens on Linux where the kernel allows it, before anything is computed: small models",
    "then train faster on a CPU. No number changes.",
)
_FIELDS = (
    "Fields. --config.FIELD=VALUE replaces the recipe's value. A field that neither the recipe nor the",
    "command line sets has this default:",
)

TRAIN = Command(
    name="train",
    description=__doc__,
    define=_define,
    run=_run,
    parse=_parse,
    fields=field_flags(),
    more_help=_more_help,
)

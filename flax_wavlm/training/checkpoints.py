"""Checkpoints of a run, by orbax: the model, the training state, the data's position, the configuration.

They are written in the background, on a CPU at once; each is whole or absent. The latest two are kept, the
best by the task's score, and where a run averages its last evaluated ones, these. Every checkpoint holds a
checksum of each of its arrays, taken on the device before it is written. So damage on the disk is noticed
before a checkpoint is used.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import args as ocp_args

from flax_wavlm.errors import UserError, reason, some
from flax_wavlm.models.parameters import Params, combine, partition
from flax_wavlm.parallel.memory import on_cpu, release_freed
from flax_wavlm.recognition.task import Rank
from flax_wavlm.training.integrity import altered_arrays, checksums, sealed, unsealed
from flax_wavlm.training.state import TrainState

log = logging.getLogger(__name__)

TREES = ("model", "training")
ASIDE = "damaged"  # folder beside `checkpoints` for those that could not be read


class Restored(NamedTuple):
    """What a run goes on from."""

    step: int
    state: TrainState
    position: dict[str, Any]  # as `Checkpoints.save` was given it


class Checkpoints:
    """The checkpoints in a folder, named by their step. In a run of several processes all must call alike.

    Args:
        folder: made if need be.
        ranks: of the steps evaluated so far, see `Scoring.ranks`; the caller adds to it as it evaluates. The
            checkpoint of the lowest rank, which is the best, is kept.
        evaluated_kept: that many of the last evaluated ones are kept as well.
    Raises:
        UserError: here and in all methods, if the folder cannot be written or read.
    """

    def __init__(
        self, folder: Path, ranks: MutableMapping[int, Rank] | None = None, *, evaluated_kept: int = 0
    ):
        # orbax warns about much that is intended. Both loggers repeat the errors that it raises.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = folder.absolute()
        self.ranks = {} if ranks is None else ranks
        self.evaluated_kept = evaluated_kept
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_KeepingPolicy(self), cleanup_tmp_directories=True
        )
        handlers = {
            **{name: ocp.PyTreeCheckpointHandler(type_handler_registry=_writers()) for name in TREES},
            "record": ocp.JsonCheckpointHandler(),
        }
        with self._errors("cannot be opened"):
            self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest checkpoint's step; None where there is no checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The best step that was evaluated and has a checkpoint; None before any evaluation."""
        return self.best_of(self.steps())

    def best_of(self, steps: Sequence[int]) -> int | None:
        """`best_step` among these steps."""
        return min((step for step in steps if step in self.ranks), key=self.ranks.__getitem__, default=None)

    def last_evaluated(self, count: int, steps: Sequence[int] | None = None) -> list[int]:
        """The last `count` of these steps (None: of all checkpoints') that were evaluated, ascending."""
        there = self.steps() if steps is None else sorted(steps)
        evaluated = [step for step in there if step in self.ranks]
        return evaluated[len(evaluated) - min(count, len(evaluated)) :]

    def resolve(self, step: str) -> int:
        """The step that "best", "latest" or a number names; UserError where there is no such checkpoint."""
        steps = self.steps()
        found = {"best": self.best_step(), "latest": self.latest_step()}.get(
            step, int(step) if step.isdecimal() else None
        )
        if found is None or found not in steps:
            raise UserError(
                f"there is no checkpoint {step!r}; there are {some(steps) or 'none'}",
                where=self.folder,
                expected="best, latest or one of these",
            )
        return found

    def save(self, state: TrainState, *, position: dict[str, Any], config: dict[str, Any]) -> None:
        """Saves the state as its step's checkpoint, in the background unless the devices are the CPU.

        There the writing has the same cores as the steps, which would have to copy the state meanwhile.

        Args:
            state: its buffers may be given up right after the call.
            position: the data iterator's state.
            config: of the run, for people.
        Raises:
            UserError: this checkpoint, or the one before, could not be written. A failure shows here or at
                the next call that waits.
        """
        step = int(state.step)
        trees = saved_trees(state)
        record = {"position": position, "config": config, "checksums": checksums(trees)}
        with self._errors(f"the checkpoint of step {step}, or the one before, cannot be written"):
            self.manager.save(
                step,
                args=ocp_args.Composite(
                    **{name: ocp_args.PyTreeSave(tree) for name, tree in trees.items()},
                    record=ocp_args.JsonSave(sealed(record)),
                ),
                force=True,
            )
        if on_cpu():
            self.wait()
            release_freed()

    def restore_newest(self, like: TrainState, *, freeze_feature_encoder: bool) -> Restored | None:
        """The newest checkpoint that is whole; None where there is no checkpoint at all.

        Damaged ones that are newer are named in the log and moved aside, into a folder of their own.

        Args:
            like: gives shapes, types and shardings.
        Raises:
            UserError: there are checkpoints, and none is whole. Nothing is moved then.
        """
        trees = saved_trees(like)
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            read, problem = self._read(step, trees)
            if read is None:
                damaged[step] = problem
                log.warning("%s: damaged, an earlier one is looked for: %s", self.folder / str(step), problem)
                continue
            self._move_aside(sorted(damaged))
            restored = jax.tree.map(_place, {name: read[name] for name in trees}, trees)
            params, frozen = partition(restored["model"], freeze_feature_encoder=freeze_feature_encoder)
            state = TrainState(params=params, frozen=frozen, **restored["training"])
            return Restored(step, state, read["record"]["position"])
        if damaged:
            found = "; ".join(f"{step}: {problem}" for step, problem in sorted(damaged.items()))
            raise UserError(
                f"none of its checkpoints can be used ({found}). They were left as they are",
                where=self.folder,
                do="restore them from a copy, or start again in another workdir",
            )
        return None

    def restore_params(self, step: int, like: Params) -> Params:
        """The model's parameters alone; UserError where they are damaged."""
        read, problem = self._read(step, {"model": like})
        if read is None:
            raise UserError(
                f"damaged ({problem}); there are checkpoints {some(self.steps())}",
                where=self.folder / str(step),
                do="give another step",
            )
        return jax.tree.map(_place, read["model"], like)

    def restore_mean(self, steps: Sequence[int], like: Params) -> Params:
        """The mean of these checkpoints' parameters; UserError where one of them is damaged.

        It is float32's running mean in the order of the steps: parameters that are alike in all, such as
        frozen ones, come out as they are. Two sets of parameters are in memory at a time.
        """
        mean = self.restore_params(steps[0], like)
        for count, step in enumerate(steps[1:], start=2):
            mean = _moved_towards(mean, self.restore_params(step, like), 1 / count)
        return mean

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        with self._errors("the newest checkpoint cannot be written"):
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on the disk, and ends the use of the folder."""
        self.wait()
        self.manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes, also after an error, since what is being written is good.

        Not after an error in one of several processes: closing would wait for the others.
        """
        if kind is None:
            self.close()
        elif jax.process_count() == 1:
            with contextlib.suppress(UserError):
                self.close()

    def _read(self, step: int, trees: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """The trees' arrays in host memory with the record, and ""; or None, and what is wrong.

        Each process reads by itself. If several read together, one that fails would leave the others
        waiting. Then all agree on whether each has what was saved.
        """
        found, problem = None, ""
        try:
            found = self._read_alone(step, trees)
            problem = altered_arrays(found, trees)
        except Exception as error:  # orbax, tensorstore and JSON have dozens of types for damage
            problem = f"{type(error).__name__}: {reason(error)[:300]}"
        problem = _first_of_all_processes(problem)
        return (None, problem) if problem else (found, "")

    def _read_alone(self, step: int, trees: Mapping[str, Any]) -> dict[str, Any]:
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
        handler = ocp.CompositeCheckpointHandler(
            **{name: ocp.PyTreeCheckpointHandler(multiprocessing_options=alone) for name in trees},
            record=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        )

        def on_host(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)

        wanted = {
            name: ocp_args.PyTreeRestore(item=tree, restore_args=jax.tree.map(on_host, tree))
            for name, tree in trees.items()
        }
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            found = reader.restore(
                self.folder / str(step), args=ocp_args.Composite(**wanted, record=ocp_args.JsonRestore())
            )
        return {**{name: found[name] for name in trees}, "record": unsealed(found["record"])}

    def _move_aside(self, steps: Sequence[int]) -> None:
        """Moves these steps' checkpoints into a folder of their own: the steps will be saved again."""
        if not steps:
            return
        self.manager.close()
        aside = self.folder.with_name(ASIDE)
        if jax.process_index() == 0:
            with self._errors("damaged checkpoints cannot be moved"):
                aside.mkdir(exist_ok=True)
                for step in steps:
                    free = next(n for n in range(1, 1000) if not (aside / f"{step}.{n}").exists())
                    os.rename(self.folder / str(step), aside / f"{step}.{free}")
        multihost_utils.sync_global_devices("moved aside")
        log.warning("moved to %s: %s", aside, ", ".join(map(str, steps)))
        self._open()

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Makes any failure of reading or writing a UserError that says what can be done.

        A computation's failure stays what it is: memory that ran out, or another process that ended.
        """
        try:
            yield
        except (UserError, jax.errors.JaxRuntimeError):
            # jax's errors are of a computation whose result is waited for here, never of the disk.
            raise
        except Exception as error:  # from orbax, tensorstore or the file system
            whole = sorted(int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit())
            raise UserError(
                f"{what} ({type(error).__name__}: {reason(error)[:300]}). Complete checkpoints there: "
                f"{some(whole) or 'none'}",
                where=self.folder,
                do="see to the disk's space and permissions; the same command then resumes",
            ) from error


class _KeepingPolicy:
    """Which checkpoints orbax keeps."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(info.step for info in checkpoints)
        evaluated = self.checkpoints.last_evaluated(self.checkpoints.evaluated_kept, steps)
        kept = {*steps[-2:], self.checkpoints.best_of(steps), *evaluated}
        return [info.step in kept for info in checkpoints]


def _writers() -> Any:
    """orbax's own writers, except that a small array is not cut into one part for each device to write.

    With eight devices the cutting took 2.5 s a checkpoint of a tiny model, once for each of its arrays.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
    return ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))


def _first_of_all_processes(text: str) -> str:
    """The first process's text that is not empty; the same in all processes."""
    if jax.process_count() == 1:
        return text
    mine = np.zeros(512, np.uint8)
    encoded = np.frombuffer(text.encode()[:512], np.uint8)
    mine[: len(encoded)] = encoded
    texts = [
        bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(mine)
    ]
    return next((text for text in texts if text), "")


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """The host's array on the devices, as `like` is spread over them."""
    assert like.sharding is not None
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


@functools.partial(jax.jit, donate_argnums=0)
def _moved_towards(mean: Params, new: Params, share: float) -> Params:
    return jax.tree.map(lambda old, other: old + (other - old) * share, mean, new)


def saved_trees(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state: the model, and the rest of the training state."""
    rest = {name: value for name, value in state._asdict().items() if name not in ("params", "frozen")}
    return {"model": combine(state.params, state.frozen), "training": rest}

"""Checkpoints of a run, by orbax: the model, the training state, the data's position, the configuration.

Written asynchronously, each whole or absent. Kept: the latest two, and the best by word error rate.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flax_wavlm.errors import UserError
from flax_wavlm.model import Params
from flax_wavlm.optim import combine, partition
from flax_wavlm.step import TrainState


def _wer(metrics: dict[str, float]) -> float:
    return metrics["wer"]


class Checkpoints:
    """The checkpoints in a folder, named by their step."""

    def __init__(self, folder: Path):
        # orbax warns at every save without an evaluation that it has no metrics; that is meant.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = folder.absolute()
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_wer,
                best_mode="min",
                preservation_policy=AnyPreservationPolicy(
                    [
                        LatestN(2),
                        BestN(get_metric_fn=_wer, reverse=True, n=1, keep_checkpoints_without_metrics=False),
                    ]
                ),
            ),
        )

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the lowest word error rate, the later of equals; None before any evaluation."""
        return self.manager.best_step()

    def resolve(self, step: str) -> int:
        """The step that "best", "latest" or a number names; UserError where there is no such checkpoint."""
        steps = sorted(self.manager.all_steps())
        found = {"best": self.best_step(), "latest": self.latest_step()}.get(
            step, int(step) if step.isdecimal() else None
        )
        if found is None or found not in steps:
            raise UserError(
                f"{self.folder}: there is no checkpoint {step!r}; there are "
                f"{', '.join(map(str, steps)) or 'none'}. Expected best, latest or one of these"
            )
        return found

    def save(
        self,
        state: TrainState,
        *,
        position: dict[str, Any],
        config: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Saves the state as its step's checkpoint, in the background.

        `position` is the data iterator's state; `metrics` holds "wer" where the step was evaluated.
        """
        self.manager.save(
            int(state.step),
            args=ocp_args.Composite(
                model=ocp_args.StandardSave(combine(state.params, state.frozen)),
                training=ocp_args.StandardSave(_training(state)),
                position=ocp_args.JsonSave(position),
                config=ocp_args.JsonSave(config),
            ),
            metrics=metrics,
        )

    def restore(
        self, step: int, like: TrainState, *, freeze_feature_encoder: bool
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state and the data's position at a step; `like` gives shapes, types and shardings."""
        restored = self.manager.restore(
            step,
            args=ocp_args.Composite(
                model=ocp_args.StandardRestore(_abstract(combine(like.params, like.frozen))),
                training=ocp_args.StandardRestore(_abstract(_training(like))),
                position=ocp_args.JsonRestore(),
            ),
        )
        params, frozen = partition(restored["model"], freeze_feature_encoder=freeze_feature_encoder)
        return TrainState(params=params, frozen=frozen, **restored["training"]), restored["position"]

    def restore_params(self, step: int, like: Params) -> Params:
        """The model's parameters alone."""
        model = ocp_args.StandardRestore(_abstract(like))
        return self.manager.restore(step, args=ocp_args.Composite(model=model))["model"]

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


def _training(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "totals": state.totals}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

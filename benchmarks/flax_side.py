"""Our side of the training benchmarks: the package's own step, as `train.py` runs it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pairs import peak_rss
from workload import BLANK, LEARNING_RATE

from flax_wavlm.models.parameters import partition, split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.training.optimizer import adamw, linear_schedule
from flax_wavlm.training.state import init_state
from flax_wavlm.training.step import jit_encode, jit_train_step, make_train_step, with_features


class FlaxTraining:
    """A training step of the folder's weights, and the batch that it repeats.

    With `keep_features` the frozen encoder runs once, as with `data.cache_features`.
    """

    def __init__(self, folder: Path, overrides: dict[str, Any], keep_features: bool = False):
        self.keep_features = keep_features
        mesh = sharding.make_mesh()
        model = load_model(
            folder, overrides=overrides, placement=lambda _, shape: sharding.parameter_sharding(mesh, shape)
        )
        graphdef, params = split(model)
        trained, frozen = partition(params, freeze_feature_encoder=True)
        optimizer = adamw(linear_schedule(LEARNING_RATE, 0, 100_000), weight_decay=0.005, clip_norm=1.0)
        where = sharding.tree_sharding(
            mesh, jax.eval_shape(lambda *p: init_state(*p, optimizer), trained, frozen)
        )
        init = jax.jit(lambda *p: init_state(*p, optimizer), out_shardings=where)
        self.state = init(trained, frozen)
        step = make_train_step(graphdef, optimizer, loss_of_ctc(BLANK), seed=0)
        self.jitted = jit_train_step(step, mesh, self.state)
        self.encode = jit_encode(model.config, mesh)
        self.mesh = mesh

    def compile(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """Takes the batch and compiles the step for its shapes: seconds, and bytes by the compiler's plan."""
        self.batch = sharding.put_batch(self.mesh, batch)
        start = time.perf_counter()
        features = with_features(
            jax.block_until_ready(self.encode(self.state.frozen, self.batch)), self.batch
        )
        encoded = time.perf_counter()
        if self.keep_features:
            self.batch = features
        lowered = self.jitted.step.lower(self.state, features)
        traced = time.perf_counter()
        self.step = lowered.compile()
        plan = self.step.memory_analysis()
        return {
            "first_encoding_seconds": encoded - start,
            "trace_seconds": traced - encoded,
            "compile_seconds": time.perf_counter() - traced,
            "temporary_bytes": plan.temp_size_in_bytes,
            "argument_bytes": plan.argument_size_in_bytes,
        }

    def losses(self, steps: int) -> list[float]:
        """The loss of each of the next steps."""
        sums = [float(self.state.totals["loss"])]
        for _ in range(steps):
            self.state = self.step(self.state, self._input())
            sums.append(float(self.state.totals["loss"]))
        return [after - before for before, after in itertools.pairwise(sums)]

    def block(self, steps: int) -> float:
        """Seconds a step, over so many of them."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state = self.step(self.state, self._input())
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / steps

    def _input(self) -> dict[str, jax.Array]:
        if self.keep_features:
            return self.batch
        return with_features(self.encode(self.state.frozen, self.batch), self.batch)

    def peak_bytes(self) -> int:
        """Of the device's memory; on a CPU of the whole process."""
        statistics = jax.devices()[0].memory_stats()
        return int(statistics["peak_bytes_in_use"]) if statistics else peak_rss()

    def device(self) -> str:
        return jax.devices()[0].device_kind

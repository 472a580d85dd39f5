"""What a run says of itself while it trains: its speed and the time that is left."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from flax_wavlm.progress import Bar
from flax_wavlm.training import monitor as module
from flax_wavlm.training.monitor import StepMonitor

SECONDS_A_STEP, SECONDS_TO_COMPILE = 0.5, 60.0


class Steps:
    """Batches of a run of 400 steps, 80 an epoch."""

    steps_per_epoch = 80

    def epochs(self, steps: int) -> float:
        return steps / self.steps_per_epoch

    def __len__(self) -> int:
        return 400


def state_at(step: int) -> Any:
    return SimpleNamespace(step=jnp.int32(step), skipped={"count": 0}, totals={"samples": 0.0})


@pytest.mark.parametrize("resumed", [0, 200])
def test_the_time_left_is_that_of_steps_without_their_compilation(
    resumed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lengths compile, a minute each. In a resumed run, the steps before it count for nothing."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)

    def batches() -> Iterator[None]:
        while True:
            clock.now += SECONDS_A_STEP
            yield None

    waited, state = batches(), state_at(resumed)
    watch = StepMonitor(None, Steps(), 0, state, Bar(None))  # type: ignore[arg-type]
    for step in range(resumed + 1, resumed + 33):
        watch.wait_for(waited, state)
        samples = 16_000 * (1 + step % 2)
        with watch.step_of_shape(samples, state):
            clock.now += SECONDS_TO_COMPILE * (samples not in watch.compiled)
        state = state_at(step)
    watch.wait_for(waited, state)
    figures = {"loss": 1.25, "grad_norm": 2.5, "learning_rate": 1e-3, "skipped": 3}
    assert watch.describe(figures | {"audio_seconds_per_second": 99.6}) == (
        f"step {resumed + 32}/400  epoch {(resumed + 32) / 80:.2f}  loss 1.2500  gradient 2.50  "
        "rate 1.00e-03  100 audio seconds a second  3 steps skipped  "
        + ("01:24 left" if resumed else "03:04 left")
    )

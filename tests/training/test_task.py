"""A second task, one label a clip, by the same step, evaluation, checkpoints and report as character CTC."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx
from helpers.reference import NO_REGULARISATION
from helpers.steps import SMALL

from flax_wavlm.data.batches import Batches
from flax_wavlm.data.clips import Clip, usable_clips
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import combine, partition, split
from flax_wavlm.models.wavlm import WavLM
from flax_wavlm.parallel import sharding
from flax_wavlm.recognition.evaluate import evaluate, figures_line, make_eval_step
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.recognition.task import Batch, ClipLosses, Loss, Scoring, Task
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.journal import Journal
from flax_wavlm.training.optimizer import adamw, linear_schedule
from flax_wavlm.training.report.curves import curves
from flax_wavlm.training.report.metrics import read_metrics, results_table
from flax_wavlm.training.state import TrainState, init_state, zero_totals
from flax_wavlm.training.step import jit_train_step, make_train_step
from flax_wavlm.training.train import STEP_INPUTS

Array = jax.Array
STEPS = 16

# --- The task: is the tone low or high? ---------------------------------------------------------------------

PITCHES = {"low": 300, "high": 2000}  # Hz
NAMES = tuple(PITCHES)


class Pitches:
    """The pitch's name is the whole text."""

    def normalise(self, text: str) -> str:
        return text.strip().lower()

    def encode(self, text: str) -> list[int]:
        if text not in NAMES:
            raise UserError("names no pitch", found=text, expected="low or high")
        return [NAMES.index(text)]

    def unknown_characters(self, text: str) -> set[str]:
        return set()

    def unknown_share(self, text: str) -> float:
        return 0.0


class Classifier(nnx.Module):
    """WavLM with a linear layer on every frame."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        self.wavlm = WavLM(config, rngs)
        self.classifier = nnx.Linear(config.hidden_size, config.vocab_size, rngs=rngs)

    def __call__(
        self, input_values: Array, lengths: Array | None = None, *, key: Array | None = None
    ) -> tuple[Array, Array]:
        hidden, frame_lengths, *_ = self.wavlm(input_values, lengths, key=key)
        return self.classifier(hidden), frame_lengths


def mean_over_frames(outputs: Array, frame_lengths: Array) -> Array:
    """[B, T, V] to [B, V], over each clip's valid frames."""
    valid = jnp.arange(outputs.shape[1]) < frame_lengths[:, None]
    return jnp.sum(outputs * valid[:, :, None], axis=1) / jnp.maximum(frame_lengths, 1)[:, None]


def cross_entropy(outputs: Array, frame_lengths: Array, batch: Batch) -> ClipLosses:
    log_probs = jax.nn.log_softmax(mean_over_frames(outputs, frame_lengths))
    loss = -jnp.take_along_axis(log_probs, batch["labels"][:, :1], axis=1)[:, 0]
    return ClipLosses(loss, frame_lengths > 0)


def accuracy(
    references: Sequence[str], hypotheses: Sequence[str], _: Sequence[np.ndarray]
) -> dict[str, float]:
    right = [reference == hypothesis for reference, hypothesis in zip(references, hypotheses, strict=True)]
    return {"accuracy": sum(right) / len(right)}


PITCH = Task(
    head=Classifier,
    settings={"vocab_size": len(NAMES)},
    targets=Pitches(),
    loss=Loss(cross_entropy),
    predict=lambda outputs, frame_lengths: jnp.argmax(mean_over_frames(outputs, frame_lengths), axis=-1),
    decode=lambda row: NAMES[int(row)],
    score=accuracy,
    scoring=Scoring(
        titles={"accuracy": "Accuracy"},
        line="loss {loss:.4f}  accuracy {accuracy:.2f}  {clips} clips",
        best_by="accuracy",
        highest=True,
    ),
)

# --- A run of it --------------------------------------------------------------------------------------------

CONFIG = SMALL.replace(num_hidden_layers=1, **NO_REGULARISATION, **PITCH.settings)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Tones in noise, of unequal lengths, and one whose text is no label."""
    folder, random = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    utterances = []
    for i in range(25):
        name = NAMES[i % 2]
        times = np.arange(random.integers(2000, 4000)) / 16_000
        tone = np.sin(2 * np.pi * PITCHES[name] * random.uniform(0.8, 1.25) * times)
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.2 * tone + 0.05 * random.normal(size=len(times)), 16_000)
        utterances.append(
            Utterance(id=path.stem, audio=path, text="neither" if i == 24 else name, speaker="")
        )
    made, skipped = usable_clips(utterances, PITCH.targets, name="tones", frame_count=CONFIG.frame_count)
    assert [clip.id for clip in skipped] == ["24"]
    assert "names no pitch" in skipped[0].reason
    return made


def test_second_task(clips: list[Clip], tmp_path: Path) -> None:
    mesh = sharding.make_mesh()
    batches = Batches(clips, 8, [4000], steps=STEPS, seed=0, do_normalize=True)
    optimizer = adamw(linear_schedule(1e-2, 2, 10 * STEPS), weight_decay=0.0, clip_norm=1.0)
    params = jax.jit(lambda: split(PITCH.head(CONFIG, nnx.Rngs(0)))[1])()
    state = init_state(*partition(params, freeze_feature_encoder=False), optimizer)
    state = jax.device_put(state, sharding.tree_sharding(mesh, state))
    graphdef, _ = structure(CONFIG, model=PITCH.head)
    step = jit_train_step(make_train_step(graphdef, optimizer, PITCH.loss, seed=0), mesh, state)
    eval_step = make_eval_step(PITCH, CONFIG, mesh)
    eval_clips = ClipBatches(clips, 8, 1, do_normalize=True)

    journal = Journal(tmp_path, batches.epochs, PITCH.scoring, "test")
    figures: list[dict[str, Any]] = []

    def save_and_evaluate(state: TrainState, number: int) -> None:
        state = state._replace(step=jnp.int32(number))
        checkpoints.save(state, position={}, config={})
        params = combine(state.params, state.frozen)
        result = evaluate(PITCH, eval_step, params, eval_clips, mesh)
        assert {prediction.hypothesis for prediction in result.predictions} <= set(NAMES)
        journal.write(number, "test", result.figures)
        figures.append(result.figures)

    with Checkpoints(tmp_path / "checkpoints", journal.ranks) as checkpoints:
        losses = []
        for number in range(1, STEPS + 1):
            batch = batches[number - 1]
            inputs = {name: batch[name] for name in STEP_INPUTS if name in batch}
            state = step(state, sharding.put_batch(mesh, inputs))
            losses.append(float(state.totals["loss"]))
            journal.write(number, "train", {"loss": losses[-1]})
            state = state._replace(totals=jax.device_put(zero_totals(), sharding.replicated(mesh)))
        save_and_evaluate(state, STEPS)
        wrong = {**state.params, "classifier": jax.tree.map(jnp.negative, state.params["classifier"])}
        save_and_evaluate(state._replace(params=wrong), STEPS + 1)

        assert np.mean(losses[-3:]) < 0.5 * losses[0]
        assert figures[0]["accuracy"] >= 0.9
        assert figures[1]["accuracy"] <= 0.1
        assert list(figures[0]) == ["loss", "accuracy", "clips", "infeasible"]
        assert figures[0]["clips"] == 24
        assert checkpoints.best_step() == STEPS  # the highest accuracy, and not the newest

    line = figures_line(figures[0], PITCH.scoring)
    assert line.endswith(f"accuracy {figures[0]['accuracy']:.2f}  24 clips")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    table = results_table(rows, PITCH.scoring).splitlines()
    assert "Accuracy" in table[0]
    assert [line.endswith("best |") for line in table[2:]] == [True, False]
    curves(rows, tmp_path / "curves.svg", PITCH.scoring)
    assert "Accuracy" in (tmp_path / "curves.svg").read_text()

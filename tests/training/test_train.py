"""Whole runs through `train()` and the configs that users run, against PyTorch where it can be the judge."""

import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from helpers.fake_timit import build_fake_timit
from helpers.reference import NO_REGULARISATION, Reference, attention_mask, pad, tiny_reference
from helpers.runs import metrics
from helpers.small_run import encoder_checkpoint, small_run

from flax_wavlm import UserError, WavLMForCTC
from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.timit import read_timit_sample
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import Preempted
from flax_wavlm.parallel import processes, sharding
from flax_wavlm.training.config import (
    DataSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    Overrides,
    TrainConfig,
)
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.train import train

ROOT = Path(__file__).parents[2]


def recipe(name: str) -> TrainConfig:
    """What a file of configs/ gives."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def lines(workdir: Path, split: str) -> list[Mapping[str, Any]]:
    return [row for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == split]


# --- The training curve -------------------------------------------------------------------------------------

LEARNING_RATE, WARMUP, STEPS = 3e-3, 5, 20


def torch_curve(reference: Reference, rows: np.ndarray, lengths: np.ndarray, labels: list) -> list[float]:
    """20 steps as the Trainer makes them: Hugging Face's own loss, groups, clipping and schedule."""
    model = transformers.WavLMForCTC.from_pretrained(reference.folder)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.wavlm.encoder.layers:
        layer.attention.dropout = 0.0
    model.config.layerdrop = 0.0
    model.config.apply_spec_augment = False
    model.freeze_feature_encoder()
    model.train()
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm)
    undecayed = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if isinstance(module, norms) or name == "bias"
    }
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in trained.items() if n not in undecayed], "weight_decay": 0.005},
            {"params": [p for n, p in trained.items() if n in undecayed], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    width = max(map(len, labels))
    padded = torch.tensor([label + [-100] * (width - len(label)) for label in labels])
    losses = []
    for _ in range(STEPS):
        output = model(torch.tensor(rows), attention_mask=attention_mask(rows, lengths), labels=padded)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    return losses


def test_training_curve_is_pytorchs(
    timit_sample: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    reference = tiny_reference("large", tmp_path / "model", scale=0.05)
    CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'"]).save(reference.folder)
    preprocessor = Preprocessor(do_normalize=True, return_attention_mask=True)
    preprocessor.save(reference.folder)
    tokenizer = CTCTokenizer.from_pretrained(reference.folder)
    assert tokenizer.blank_id == reference.config.pad_token_id

    utterances, _ = read_timit_sample(timit_sample, "test", held_out_speakers=("dr1-mcpm0",))
    chosen = utterances[:8]
    manifest = tmp_path / "data"
    manifest.mkdir()
    entries = [json.dumps({"audio_filepath": str(u.audio), "text": u.text}) for u in chosen]
    for split in ("train", "test"):
        (manifest / f"{split}.jsonl").write_text("\n".join(entries) + "\n")

    result = train(
        TrainConfig(
            workdir=str(tmp_path / "run"),
            model=ModelSettings(checkpoint=str(reference.folder), overrides=Overrides(**NO_REGULARISATION)),
            data=DataSettings(corpus="manifest", path=str(manifest), buckets=1),
            train=LoopSettings(batch_size=8, steps=STEPS, eval_batch_size=8, log_every=1, eval_every=STEPS),
            optim=OptimSettings(learning_rate=LEARNING_RATE, warmup_steps=WARMUP),
        )
    )
    ours = [row["loss"] for row in lines(result.workdir, "train")]

    rows, lengths = pad([preprocessor(read_audio(u.audio)) for u in chosen])
    labels = [tokenizer.encode(tokenizer.normalise(u.text)) for u in chosen]
    theirs = torch_curve(reference, rows, lengths, labels)
    difference = np.abs(np.array(ours) / np.array(theirs) - 1)
    measured(
        f"training curve, 20 steps: loss {theirs[0]:.3f} to {theirs[-1]:.3f}, largest relative difference "
        f"{difference.max():.1e}"
    )
    assert theirs[-1] < 0.75 * theirs[0]  # the curve goes somewhere
    assert difference.max() <= 1e-3
    rates = [row["learning_rate"] for row in lines(result.workdir, "train")]
    assert rates[0] == 0
    np.testing.assert_allclose(rates[1], LEARNING_RATE / WARMUP, rtol=1e-5)


# --- The recipes --------------------------------------------------------------------------------------------


def test_timit_sample(timit_sample: Path, tmp_path: Path, measured: Callable[[str], None]) -> None:
    """The recipe with a small random checkpoint: trains, evaluates, exports what transformers loads."""
    config = recipe("timit_sample")
    config.model.checkpoint = str(encoder_checkpoint(tmp_path / "model"))
    config.data.path = str(timit_sample)
    config.workdir = str(tmp_path / "run")
    config.train.steps, config.train.eval_every, config.train.log_every = 60, 30, 1
    config.optim.learning_rate, config.optim.warmup_steps = 2e-3, 10
    config.data.buckets = 2  # each compiles
    result = train(config)

    losses = [row["loss"] for row in lines(result.workdir, "train")]
    assert len(losses) == 60
    measured(f"timit_sample recipe, 60 steps: training loss {losses[0]:.2f} to {np.mean(losses[-5:]):.2f}")
    assert np.mean(losses[-5:]) <= 0.5 * losses[0]
    evaluations = lines(result.workdir, "test")
    assert [row["step"] for row in evaluations] == [30, 60]
    for row in evaluations:
        assert set(row) >= {"step", "epoch", "split", "loss", "wer", "cer", "wer_hf_padded", "clips"}
    for row in lines(result.workdir, "train"):
        assert set(row) >= {"step", "epoch", "loss", "learning_rate", "grad_norm", "audio_seconds_per_second"}

    held_out = {
        path.relative_to(timit_sample).with_suffix("").as_posix()
        for speaker in config.data.held_out_speakers
        for path in timit_sample.glob(f"{speaker}/*.wav")
    }
    predictions = [json.loads(line) for line in (result.workdir / "predictions/60.jsonl").open()]
    assert {row["id"] for row in predictions} <= held_out
    assert len(predictions) == evaluations[-1]["clips"] >= 36
    assert all(set(row) == {"id", "reference", "hypothesis"} for row in predictions)

    assert {path.name for path in result.export.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "vocab.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "README.md",
    }
    _, info = transformers.WavLMForCTC.from_pretrained(result.export, output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.Wav2Vec2Processor.from_pretrained(result.export)
    exported = WavLMForCTC.from_pretrained(result.export)
    assert len(processor.tokenizer) == exported.config.vocab_size
    assert processor.tokenizer.pad_token_id == exported.config.pad_token_id


def tiny_timit(tmp_path: Path, layout: str) -> TrainConfig:
    config = recipe("timit")
    config.data.path = str(build_fake_timit(tmp_path / "TIMIT", layout))
    config.model.checkpoint = str(encoder_checkpoint(tmp_path / "model"))
    config.workdir = str(tmp_path / "run")
    return config


@pytest.mark.parametrize("layout", ["ldc_upper", "flat_lower_both"])
def test_timit_recipe(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    """The whole recipe in miniature: 40 clips, of which 32 are shorter than 4 s, for one epoch."""
    config = tiny_timit(tmp_path, layout)
    config.train.epochs, config.optim.warmup_steps, config.train.log_every = 1, 0, 1
    config.train.batch_size = 24
    with caplog.at_level("INFO", "flax_wavlm"):
        result = train(config)
    assert "train: 32 clips" in caplog.text
    assert "skipped 8 - too long" in caplog.text
    assert [row["step"] for row in lines(result.workdir, "train")] == [1, 2]  # ceil(32 / 24)
    assert result.best["clips"] == 20  # the test set is whole
    assert result.best["epoch"] == 1.0
    vocabulary = json.loads((result.export / "vocab.json").read_text())
    assert vocabulary == {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz'|")} | {
        "[UNK]": 28,
        "[PAD]": 29,
    }
    exported = json.loads((result.export / "config.json").read_text())
    assert exported["vocab_size"] == 32
    assert exported["pad_token_id"] == 29
    assert exported["ctc_loss_reduction"] == "mean"


def test_timit_recipe_is_the_seeds() -> None:
    config = recipe("timit")
    assert config.model.checkpoint == "microsoft/wavlm-large"
    assert config.model.freeze_feature_encoder
    assert config.model.overrides == Overrides()
    assert config.data.train_max_seconds == 4.0
    assert (config.train.batch_size, config.train.eval_batch_size, config.train.epochs) == (32, 8, 100)
    assert config.train.epochs * math.ceil(3978 / config.train.batch_size) == 12_500
    assert (config.train.eval_every, config.train.ctc_loss_reduction, config.seed) == (500, "mean", 42)
    assert config.optim == OptimSettings(
        learning_rate=1e-4,
        warmup_steps=1000,
        weight_decay=0.005,
        clip_norm=1.0,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
    )


def test_timit_without_timit_says_where_it_comes_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("TIMIT_DIR", raising=False)
    config = recipe("timit")
    config.workdir = str(tmp_path / "run")
    config.data.path = ""
    with pytest.raises(UserError) as caught:
        train(config)
    for part in ("LDC93S1", "data.path", "configs/demo.py", "configs/timit_sample.py"):
        assert part in str(caught.value)


# --- Resuming -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a signal: nothing in the run may catch it."""


def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(small_run(tmp_path, "whole"))

    put_batch, calls = sharding.put_batch, 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return put_batch(*arguments)

    monkeypatch.setattr(sharding, "put_batch", dying)
    with pytest.raises(Killed):
        train(small_run(tmp_path, "parts"))
    monkeypatch.undo()
    interrupted = tmp_path / "parts" / "metrics.jsonl"
    assert [row["step"] for row in read_metrics(interrupted)] == [2]
    with interrupted.open("a") as file:
        file.write('{"step": 3, "spl')  # and the kill came in the middle of a line
    parts = train(small_run(tmp_path, "parts"))

    assert metrics(parts.workdir) == metrics(whole.workdir)
    one, other = (
        safetensors.numpy.load_file(result.export / "model.safetensors") for result in (whole, parts)
    )
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.chaos
def test_asked_to_stop_at_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint comes first, since a notice may leave few seconds; the resumed run evaluates it."""
    whole = train(small_run(tmp_path, "whole"))
    monkeypatch.setattr(processes.StopRequest, "reached", lambda self, step: step == 4)
    with pytest.raises(Preempted, match="saved at step 4 of 6"):
        train(small_run(tmp_path, "parts"))
    monkeypatch.undo()
    assert [row["step"] for row in lines(tmp_path / "parts", "test")] == []
    parts = train(small_run(tmp_path, "parts"))
    assert metrics(parts.workdir) == metrics(whole.workdir)
    assert [row["step"] for row in lines(parts.workdir, "test")] == [4, 6]
    assert parts.best == whole.best


def test_finished_run_only_exports_again(tmp_path: Path) -> None:
    config = small_run(tmp_path, "run", kind="base")
    config.mesh.fsdp = min(2, jax.device_count())
    first = train(config)
    before = (first.workdir / "metrics.jsonl").read_text()
    second = train(config)
    assert (second.workdir / "metrics.jsonl").read_text() == before
    assert second.best == first.best
    assert (first.workdir / "curves.svg").read_text().startswith("<svg")


def test_workdir_of_another_configuration(tmp_path: Path) -> None:
    config = small_run(tmp_path, "run")
    config.train.steps = 2
    config.optim.warmup_steps = 0
    train(config)
    before = (tmp_path / "run/metrics.jsonl").read_text()
    config.optim.learning_rate = 1e-5
    config.seed = 7
    with pytest.raises(UserError) as caught:
        train(config)
    assert "optim.learning_rate was 0.001, is 1e-05" in str(caught.value)
    assert "seed was 42, is 7" in str(caught.value)
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


def overflow_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Has the speech of these steps' training batches overflow on its way to the devices."""
    put_batch, calls = sharding.put_batch, 0

    def put(mesh: Any, batch: Mapping[str, np.ndarray]) -> Any:
        nonlocal calls
        if "clip" not in batch:  # else it is an evaluation's
            calls += 1
            if calls in steps:
                batch = {**batch, "scale": batch["scale"] * np.float32(np.inf)}
        return put_batch(mesh, batch)

    monkeypatch.setattr(sharding, "put_batch", put)


def test_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops the run and names step and clips; what came before stays. With leave it is passed over."""
    config = small_run(tmp_path, "run")
    overflow_at(monkeypatch, 3)
    with pytest.raises(UserError, match=r"at step 3 the loss .* not finite") as caught:
        train(config)
    noted = [json.loads(line) for line in (tmp_path / "run/nonfinite.jsonl").open()]
    assert [row["step"] for row in noted] == [3]
    assert len(noted[0]["clips"]) == 16
    for part in (*noted[0]["clips"][:4], "nonfinite.jsonl", "--config.train.skip_nonfinite=1"):
        assert part in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("[0-9]*")) == ["1", "2"]

    # The same command with leave for one goes on from step 2.
    config.train.skip_nonfinite = 1
    monkeypatch.undo()
    overflow_at(monkeypatch, 1, 3)  # steps 3 and 5
    with pytest.raises(UserError, match=r"at step 5 the loss .* not finite"):
        train(config)
    config.train.skip_nonfinite = 2
    monkeypatch.undo()
    overflow_at(monkeypatch, 1)
    result = train(config)
    assert [row["step"] for row in read_metrics(tmp_path / "run/nonfinite.jsonl")] == [3, 5]
    rows = lines(result.workdir, "train")
    assert [row["skipped"] for row in rows] == [0, 1, 2]
    assert [row["learning_rate"] for row in rows] == pytest.approx([5e-4, 1e-3, 7.5e-4])  # updates 1, 2, 3
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_warmup_longer_than_the_run(tmp_path: Path) -> None:
    config = small_run(tmp_path, "run")
    config.optim.warmup_steps = 6
    with pytest.raises(UserError, match=r"warmup_steps is 6, expected fewer than the 6 steps"):
        train(config)


@pytest.mark.parametrize("vocabulary", ["none", "its own", "too wide"])
def test_checkpoint_with_a_head(tmp_path: Path, vocabulary: str, caplog: pytest.LogCaptureFixture) -> None:
    """A head is kept with the tokenizer that says what it means, and begun anew without one."""
    config = small_run(tmp_path, "run")
    folder = tiny_reference("large", tmp_path / "with-head", scale=0.05).folder
    if vocabulary != "none":
        extra = "é" if vocabulary == "too wide" else ""
        CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'" + extra]).save(folder)
    config.model.checkpoint = str(folder)
    config.train.steps, config.optim.warmup_steps, config.optim.learning_rate = 1, 0, 1e-9
    if vocabulary == "too wide":
        with pytest.raises(UserError, match=r"tokenizer has 33 tokens.* has 32 outputs.*fresh_head"):
            train(config)
        return
    with caplog.at_level("INFO", "flax_wavlm"):
        result = train(config)
    before, after = (
        safetensors.numpy.load_file(path / "model.safetensors") for path in (folder, result.export)
    )
    kept = np.allclose(before["lm_head.weight"], after["lm_head.weight"], atol=1e-6)
    assert kept == (vocabulary == "its own")
    assert ("a new head is begun" in caplog.text) == (vocabulary == "none")
    np.testing.assert_allclose(
        after["wavlm.encoder.layer_norm.weight"], before["wavlm.encoder.layer_norm.weight"], atol=1e-6
    )

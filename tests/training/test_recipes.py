"""The recipes in configs/ for TIMIT and LibriSpeech, run in miniature."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import transformers
from helpers.fake_timit import LAYOUTS, build_fake_timit
from helpers.small_run import encoder_checkpoint, lines, recipe

from flax_wavlm import UserError, WavLMForCTC
from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.training.config import (
    OptimSettings,
    Overrides,
)
from flax_wavlm.training.train import train

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.slow
def test_timit_sample(timit_sample: Path, tmp_path: Path, measured: Callable[[str], None]) -> None:
    """The recipe with a small random checkpoint: trains, evaluates, exports what transformers loads."""
    config = recipe("timit_sample")
    config.model.checkpoint = str(encoder_checkpoint(tmp_path / "model"))
    config.data.path = str(timit_sample)
    config.workdir = str(tmp_path / "run")
    config.train.steps, config.train.eval_every, config.train.log_every = 60, 30, 1
    config.optim.learning_rate, config.optim.warmup_steps = 2e-3, 10
    config.data.buckets, config.train.aligner = 2, False  # a bucket compiles
    result = train(config)

    losses = [row["loss"] for row in lines(result.workdir, "train")]
    assert len(losses) == 60
    measured(f"timit_sample recipe, 60 steps: training loss {losses[0]:.2f} to {np.mean(losses[-5:]):.2f}")
    assert np.mean(losses[-5:]) <= 0.5 * losses[0]
    evaluations, [final] = lines(result.workdir, "dev"), lines(result.workdir, "test")
    assert [row["step"] for row in evaluations] == [30, 60]
    assert (final, final["step"]) == (result.test, result.best["step"])
    for row in (*evaluations, final):
        assert set(row) >= {"step", "epoch", "split", "loss", "wer", "cer", "wer_hf_padded", "clips"}
    for row in lines(result.workdir, "train"):
        assert set(row) >= {"step", "epoch", "loss", "learning_rate", "grad_norm", "audio_seconds_per_second"}

    held_out = {
        path.relative_to(timit_sample).with_suffix("").as_posix()
        for speaker in config.data.held_out_speakers
        for path in timit_sample.glob(f"{speaker}/*.wav")
    }
    chosen, tested = (
        [json.loads(line) for line in (result.workdir / f"predictions/{name}.jsonl").open()]
        for name in ("60", "test")
    )
    assert {row["id"] for row in tested} <= held_out
    assert len(tested) == final["clips"] >= 36
    assert held_out.isdisjoint(row["id"] for row in chosen)
    assert len(chosen) == evaluations[-1]["clips"]
    assert all(set(row) == {"id", "reference", "hypothesis"} for row in [*chosen, *tested])

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


def test_timit_recipe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The whole recipe in miniature: 40 clips, of which 32 are shorter than 4 s, for one epoch."""
    config = recipe("timit")
    config.data.path = str(build_fake_timit(tmp_path / "TIMIT", "ldc_upper"))
    config.model.checkpoint = str(encoder_checkpoint(tmp_path / "model"))
    config.workdir = str(tmp_path / "run")
    config.train.epochs, config.optim.warmup_steps, config.train.log_every = 1, 0, 1
    config.train.batch_size, config.train.aligner = 24, False
    with caplog.at_level("INFO", "flax_wavlm"):
        result = train(config)
    for line in (
        r"devices: \d x cpu; mesh.data = \d, mesh.fsdp = 1; products in bfloat16, parameters in float32",
        r"model: .*, [\d.]+ million parameters, [\d.]+ of them trained",
        r"kernels: auto; attention: xla in training",
        r"corpus: timit, .*/TIMIT",
        r"train: 32 clips, 0\.\d\d hours",
        r"test: 20 clips, 0\.\d\d hours",
        r"steps: 2 of 24 clips, 2 an epoch, 1 epochs; an evaluation every 500 steps",
    ):
        assert re.search(line, caplog.text), line
    assert caplog.text.count("  hypothesis  ") == 3
    for file in ("export/README.md", "curves.svg"):
        assert "WER, HF-padded" in (result.workdir / file).read_text()
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


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "ldc_upper"])
def test_every_layout_gives_the_recipe_the_same_clips(tmp_path: Path, layout: str) -> None:
    """So that one training stands for all layouts: the same texts and the same samples, in the same order."""

    def clips(layout: str, split: str) -> list[tuple[str, str, np.ndarray]]:
        folder = build_fake_timit(tmp_path / layout, layout)
        utterances, skipped = load_corpus("timit", folder, split)
        assert not skipped
        return [(u.id, u.text, read_audio(u.audio)) for u in utterances]

    for split in ("train", "test"):
        ours, expected = clips(layout, split), clips("ldc_upper", split)
        assert [clip[:2] for clip in ours] == [clip[:2] for clip in expected]
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(one[2], other[2], strict=True)


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


def write_fake_librispeech(root: Path, splits: tuple[str, ...], clips: int = 8) -> Path:
    """Noise of 0.5 to 1.2 s as two chapters of a speaker for each split."""
    random = np.random.default_rng(0)
    for speaker, split in enumerate(splits, 100):
        for chapter in (1, 2):
            folder = root / split / str(speaker) / str(chapter)
            folder.mkdir(parents=True)
            ids = [f"{speaker}-{chapter}-{i:04d}" for i in range(clips)]
            for id in ids:
                samples = random.normal(0, 1000, random.integers(8000, 19_200)).astype(np.int16)
                soundfile.write(folder / f"{id}.flac", samples, 16_000)
            texts = [f"{id} {random.choice(['AND', 'BUT'])} IT IS\n" for id in ids]
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(texts))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["librispeech_100h", "librispeech_100h_speechbrain"])
def test_librispeech_recipes(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """With a small random checkpoint, for a few steps."""
    config = recipe(name)
    splits = config.data.splits
    config.data.path = str(
        write_fake_librispeech(tmp_path / "LibriSpeech", (splits.train, splits.dev, splits.test))
    )
    config.model.checkpoint = str(encoder_checkpoint(tmp_path / "model"))
    config.workdir, config.train.log_every, config.train.eval_every = str(tmp_path / "run"), 1, 2
    config.train.steps, config.optim.warmup_steps, config.optim.hold_steps = 4, 1, 0
    config.data.buckets, config.train.aligner = 2, False  # a bucket compiles
    with caplog.at_level("INFO", "flax_wavlm"):
        result = train(config)
    assert [row["step"] for row in lines(result.workdir, "dev")] == [2, 4]
    assert result.test is not None
    assert result.test["clips"] == 16
    assert json.loads((result.export / "vocab.json").read_text()).keys() >= set("ANDBUTIS|")
    assert ("batches of up to 1600 s: " in caplog.text) == bool(config.train.batch_seconds)


def test_librispeech_recipe_is_fairseqs() -> None:
    """base_100h.yaml: max_update, phase_ratio, max_tokens times update_freq times GPUs, masks."""
    config = recipe("librispeech_100h")
    config.workdir = "runs/librispeech_100h"
    config.check()
    assert config.train.batch_seconds == 3_200_000 * 4 * 2 / 16_000
    optim = config.optim
    assert [optim.warmup_steps, optim.hold_steps] == [0.1 * 80_000, 0.4 * 80_000]
    assert (config.train.steps, optim.schedule, optim.final_share) == (80_000, "tri_stage", 0.05)
    assert config.model.freeze_feature_encoder


def test_timit_without_timit_says_where_it_comes_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("TIMIT_DIR", raising=False)
    config = recipe("timit")
    config.workdir = str(tmp_path / "run")
    config.data.path = ""
    with pytest.raises(UserError) as caught:
        train(config)
    for part in ("LDC93S1", "data.path", "configs/demo.py", "configs/timit_sample.py"):
        assert part in str(caught.value)

"""A run of six steps inside this process, and the checkpoint that it starts from."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.training.config import (
    DataSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    TextSettings,
    TrainConfig,
)
from flax_wavlm.training.report.metrics import read_metrics
from helpers.fake_timit import build_fake_timit
from helpers.reference import tiny_reference
from helpers.runs import write_noise_corpus

ROOT = Path(__file__).parents[2]


def encoder_checkpoint(folder: Path, kind: str = "large", **changes: Any) -> Path:
    """A tiny randomly initialised encoder in Hugging Face's format: no head, no tokenizer."""
    reference = tiny_reference(kind, folder / "whole", scale=0.0, **changes)
    reference.model.wavlm.save_pretrained(folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(folder)
    return folder


def small_run(tmp_path: Path, workdir: str, kind: str = "large") -> TrainConfig:
    """Six steps over two epochs on a manifest of noise, with dropout, LayerDrop and SpecAugment on."""
    root = tmp_path / kind
    if not root.exists():
        data = build_fake_timit(tmp_path / "TIMIT", "ldc_upper")
        encoder_checkpoint(root, kind)
        (root / "data").write_text(str(data))
    return TrainConfig(
        workdir=str(tmp_path / workdir),
        model=ModelSettings(checkpoint=str(root)),
        data=DataSettings(
            corpus="timit", path=(root / "data").read_text(), dev="test", train_max_seconds=4.0, buckets=1
        ),
        text=TextSettings(preset="timit"),
        train=LoopSettings(
            batch_size=16, steps=6, eval_batch_size=8, eval_every=4, log_every=2, save_every=1, aligner=False
        ),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=2),
    )


def small_run_with(tmp_path: Path, workdir: str, **changes: Any) -> TrainConfig:
    """`small_run` with these fields changed ("section_field"), and without its intermediate checkpoints."""
    config = small_run(tmp_path, workdir)
    config.data.buckets, config.train.save_every = 1, 0
    for name, value in changes.items():
        section, field = name.split("_", 1)
        setattr(getattr(config, section), field, value)
    return config


def recipe(name: str) -> TrainConfig:
    """What a file of configs/ gives."""
    return recipe_of(ROOT / "configs" / f"{name}.py")


def recipe_of(file: Path) -> TrainConfig:
    """What a file with a recipe gives."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def lines(workdir: Path, split: str) -> list[Mapping[str, Any]]:
    return [row for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == split]


def tiny_run(place: Path, workdir: str) -> TrainConfig:
    """Six steps of a still smaller model from random weights, on clips of noise of about a second.

    Dropout, LayerDrop and SpecAugment are on; it compiles in a few seconds.
    """
    data = place / "noise"
    if not data.exists():
        write_noise_corpus(data)
    config = recipe_of(ROOT / "tests/helpers/tiny_config.py")
    assert config.model.config is not None
    config.model.config = config.model.config.replace(hidden_size=32, intermediate_size=64, conv_dim=(8,) * 7)
    config.workdir, config.data.path, config.data.buckets = str(place / workdir), str(data), 1
    config.train.steps, config.train.eval_every = 6, 2
    return config

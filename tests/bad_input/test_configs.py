"""Configurations that cannot be: fields, devices, workdirs, tokenizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers.bad_input import NOISE, Case, check, each, encoded, row
from helpers.permissions import without_roots_rights
from helpers.reference import Reference

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.training.config import DataSettings, LoopSettings, ModelSettings, OptimSettings, TrainConfig
from flax_wavlm.training.train import train

LETTERS = "abcdefghijklmnopqrstuvwxyz'äöü?"  # more than the tiny checkpoint's head has outputs for


def run(**fields: Any) -> Callable[[Path, Reference], Any]:
    """`train()` of a run with the tiny checkpoint on two clips, with these fields changed ("a__b" is a.b)."""

    def give(folder: Path, tiny: Reference) -> Any:
        for name in ("train", "test"):
            (folder / f"{name}.wav").write_bytes(encoded(NOISE))
            line = row(audio_filepath=f"{name}.wav")
            (folder / f"{name}.jsonl").write_text(line)
        devices = jax.device_count()
        config = TrainConfig(
            workdir=str(folder / "run"),
            model=ModelSettings(checkpoint=str(tiny.folder)),
            data=DataSettings(corpus="manifest", path=str(folder)),
            train=LoopSettings(batch_size=devices, eval_batch_size=devices, steps=1),
            optim=OptimSettings(warmup_steps=0),
        )
        for name, value in fields.items():
            *groups, field = name.split("__")
            holder: Any = config
            for group in groups:
                holder = getattr(holder, group)
            setattr(holder, field, value(folder) if callable(value) else value)
        with without_roots_rights():
            return train(config)

    return give


CASES = [
    Case(
        "a field that a recipe misspells",
        run(optim__lr=3),
        error=r"optim\.lr: there is no such field",
    ),
    Case(
        "a string for a number",
        run(train__batch_size="8"),
        error=r"train\.batch_size is '8', expected int",
    ),
    Case(
        "a negative batch",
        run(train__batch_size=-8),
        error=r"train\.batch_size is -8, expected 1 or more",
    ),
    Case("a seed of 30 digits", run(seed=10**30), error=r"seed is 10+, expected a number below 2\^31"),
    Case(
        "a batch that the devices cannot share",
        run(train__batch_size=2 * jax.device_count() + 1, train__accumulation=2),
        error=r"train\.batch_size = \d+ cannot be split over \d+ devices",
    ),
    Case(
        "an evaluation batch of nothing",
        run(train__eval_batch_size=0),
        error=r"train\.eval_batch_size is 0",
    ),
    Case(
        "a mesh that the devices do not make",
        run(mesh__fsdp=3),
        error=r"mesh\.data = -1 and mesh\.fsdp = 3 do not fit \d+ devices",
    ),
    Case(
        "a warm-up longer than the run",
        run(train__steps=5, optim__warmup_steps=6),
        error=r"optim\.warmup_steps is 6, expected fewer than the 5 steps",
    ),
    Case(
        "a learning rate of NaN",
        run(optim__learning_rate=float("nan")),
        error=r"optim\.learning_rate is nan, expected a finite number",
    ),
    Case("no steps and no epochs", run(train__steps=0), error=r"train\.steps is 0, expected above 0"),
    Case(
        "a dropout of 7",
        run(model__overrides__hidden_dropout=7.0),
        error=r"hidden_dropout is 7\.0, expected between 0 and 1",
    ),
    Case(
        "a data type that there is not",
        run(model__dtype="float16"),
        error=r"dtype is 'float16', expected one of float32, bfloat16",
    ),
    Case(
        "a misspelt corpus in a recipe",
        run(data__corpus="manifst"),
        error=r"data\.corpus is 'manifst', .*did you mean 'manifest'",
    ),
    Case(
        "a workdir that is a file",
        run(workdir=lambda folder: str(folder / "train.wav")),
        error=r"train\.wav: cannot be written",
    ),
    Case(
        "a workdir without permission",
        run(workdir=lambda folder: (folder / "locked").mkdir(0o500) or str(folder / "locked" / "run")),
        error=r"run: cannot be written.*Permission denied",
    ),
    Case(
        "every clip too long",
        run(data__train_max_seconds=0.5),
        error=r"train: none of the 1 clips can be used",
    ),
    Case(
        "a tokenizer that is not the head's",
        run(
            data__tokenizer=lambda folder: (
                CTCTokenizer.from_texts([LETTERS]).save(folder / "other") or str(folder / "other")
            )
        ),
        error=r"other: the tokenizer has 36 tokens, expected the 32 of .*none of them is for '\[UNK\]'",
    ),
    Case(
        "a data set of the hub, offline",
        run(data__corpus="hub", data__path="nobody/no-such-data"),
        error=r"dataset 'nobody/no-such-data'.*datasets cannot load it",
    ),
]


@each(CASES)
def test_bad_config(
    case: Case,
    tiny: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    check(case, tiny, tmp_path, caplog, capfd)

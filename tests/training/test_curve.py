"""The training curve is PyTorch's: a whole run against the same steps by transformers and torch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers.reference import NO_REGULARISATION, Reference, attention_mask, pad, tiny_reference
from helpers.small_run import lines

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.corpora.timit import read_timit_sample
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.training.config import (
    DataSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    Overrides,
    TrainConfig,
)
from flax_wavlm.training.train import train

pytestmark = pytest.mark.usefixtures("one_device")
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


@pytest.mark.parametrize("kernels", ["auto", pytest.param("reference", marks=pytest.mark.slow)])
def test_training_curve_is_pytorchs(
    kernels: str, timit_sample: Path, tmp_path: Path, measured: Callable[[str], None]
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
            model=ModelSettings(
                checkpoint=str(reference.folder), kernels=kernels, overrides=Overrides(**NO_REGULARISATION)
            ),
            data=DataSettings(corpus="manifest", path=str(manifest), dev="test", buckets=1),
            train=LoopSettings(
                batch_size=8, steps=STEPS, eval_batch_size=8, log_every=1, eval_every=STEPS, aligner=False
            ),
            optim=OptimSettings(learning_rate=LEARNING_RATE, warmup_steps=WARMUP),
        )
    )
    ours = [row["loss"] for row in lines(result.workdir, "train")]

    rows, lengths = pad([preprocessor(read_audio(u.audio)) for u in chosen])
    labels = [tokenizer.encode(tokenizer.normalise(u.text)) for u in chosen]
    theirs = torch_curve(reference, rows, lengths, labels)
    difference = np.abs(np.array(ours) / np.array(theirs) - 1)
    measured(
        f"training curve, 20 steps, kernels {kernels!r}: loss {theirs[0]:.3f} to {theirs[-1]:.3f}, "
        f"largest relative difference {difference.max():.1e}"
    )
    assert theirs[-1] < 0.75 * theirs[0]  # the curve goes somewhere
    assert difference.max() <= 1e-3
    rates = [row["learning_rate"] for row in lines(result.workdir, "train")]
    assert rates[0] == 0
    np.testing.assert_allclose(rates[1], LEARNING_RATE / WARMUP, rtol=1e-5)

"""PyTorch's side of the training benchmarks: transformers' WavLMForCTC, as its Trainer steps it, and faster.

B1  bf16 autocast on a GPU, float32 on a CPU; fused AdamW, clipping, the linear schedule.
B2  B1 compiled by torch.compile; without LayerDrop, which breaks its graphs.
B3  B2 with attention by F.scaled_dot_product_attention, the gated position bias being its mask.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from pairs import peak_rss
from transformers.models.wavlm.modeling_wavlm import WavLMAttention
from workload import LEARNING_RATE

BASELINES = ("B1", "B2", "B3")


def scaled_dot_product(
    self: WavLMAttention, hidden: torch.Tensor, mask: torch.Tensor | None, bias: torch.Tensor
) -> tuple[torch.Tensor, None]:
    """In place of `torch_multi_head_self_attention`: [B, T, D], mask [B, T], bias [B * H, T, T]."""
    batch, length, _ = hidden.shape
    q, k, v = (
        project(hidden).view(batch, length, self.num_heads, -1).transpose(1, 2)
        for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    bias = bias.view(batch, self.num_heads, length, length)
    if mask is not None:
        bias = bias.masked_fill(mask[:, None, None, :].ne(1), torch.finfo(bias.dtype).min)
    rate = self.dropout if self.training else 0.0
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=rate)
    return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, -1)), None


def inputs(batch: dict[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """The batch as transformers' model wants it."""
    real = np.arange(batch["labels"].shape[1]) < batch["label_lengths"][:, None]
    sounding = np.arange(batch["samples"].shape[1]) < batch["lengths"][:, None]
    arrays = {
        "input_values": batch["samples"],
        "attention_mask": sounding.astype(np.int64),
        "labels": np.where(real, batch["labels"], -100).astype(np.int64),
    }
    return {name: torch.tensor(array, device=device) for name, array in arrays.items()}


class TorchTraining:
    """A training step of the folder's weights, and the batch that it repeats."""

    def __init__(self, folder: Path, baseline: str, *, device: str, bf16: bool, threads: int):
        if device == "cpu":
            torch.set_num_threads(threads)
        if baseline == "B3":
            WavLMAttention.torch_multi_head_self_attention = scaled_dot_product
        self.where, self.bf16 = device, bf16
        model = transformers.WavLMForCTC.from_pretrained(folder).train().to(device)
        model.freeze_feature_encoder()
        decay = [name for name, _ in model.named_parameters() if "norm" not in name and "bias" not in name]
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        groups = [
            {"params": [value for name, value in trained.items() if name in decay], "weight_decay": 0.005},
            {"params": [value for name, value in trained.items() if name not in decay], "weight_decay": 0.0},
        ]
        self.trained = list(trained.values())
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, fused=True)
        self.schedule = transformers.get_linear_schedule_with_warmup(self.optimizer, 0, 100_000)
        self.model = torch.compile(model) if baseline != "B1" else model

    def compile(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """Takes the batch; the seconds of a first step, in which what is to be compiled is."""
        self.batch = inputs(batch, self.where)
        start = time.perf_counter()
        with self._precision():
            self.model(**self.batch).loss.backward()  # no update: the losses are compared from the start
        self.optimizer.zero_grad()
        self._wait()
        return {"first_step_seconds": time.perf_counter() - start}

    def step(self) -> torch.Tensor:
        with self._precision():
            loss = self.model(**self.batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def losses(self, steps: int) -> list[float]:
        """The loss of each of the next steps."""
        return [float(self.step()) for _ in range(steps)]

    def block(self, steps: int) -> float:
        """Seconds a step, over so many of them."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._wait()
        return (time.perf_counter() - start) / steps

    def product_flops(self, size: int = 2048, repeats: int = 20) -> float:
        """Floating-point operations a second in one large matrix product, the best of some."""
        a, b = torch.randn(2, size, size, device=self.where)
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            a @ b
            self._wait()
            best = min(best, time.perf_counter() - start)
        return 2 * size**3 / best

    def peak_bytes(self) -> int:
        """Of the device's memory; on a CPU of the whole process."""
        return torch.cuda.max_memory_allocated() if self.where == "cuda" else peak_rss()

    def _precision(self) -> Any:
        return torch.autocast(self.where, torch.bfloat16, enabled=self.bf16)

    def _wait(self) -> None:
        if self.where == "cuda":
            torch.cuda.synchronize()

"""The PyTorch reference in miniature: transformers' own WavLMForCTC, with weights that a test can see."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from flax_wavlm.models.config import WavLMConfig

KINDS = ("large", "base")
# Fields of WavLMConfig that make a training call compute what an evaluation does.
NO_REGULARISATION: dict[str, Any] = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


class Reference(NamedTuple):
    kind: str
    folder: Path
    model: transformers.WavLMForCTC
    config: WavLMConfig


def tiny_reference(kind: str, folder: Path, *, seed: int = 0, scale: float = 0.2, **changes) -> Reference:
    """A tiny model of the kind, saved into the folder by transformers.

    At the default initialisation a whole relative bias is worth 4e-4 of a logit, and a wrong gate passes
    every test: N(0, scale) is added to every tensor. Dropout, LayerDrop and SpecAugment are off in .eval().
    """
    torch.manual_seed(seed)
    large = kind == "large"
    settings = {
        "vocab_size": 32,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "conv_dim": (16,) * 7,
        "conv_bias": not large,  # neither released kind has them; they must work
        "feat_extract_norm": "layer" if large else "group",
        "do_stable_layer_norm": large,
        "num_buckets": 64,
        "max_bucket_distance": 90,
        "pad_token_id": 29,
        "ctc_loss_reduction": "mean",
    }
    config = transformers.WavLMConfig(**settings | changes)
    model = transformers.WavLMForCTC(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The position bias once more: what gates it is seen through it alone.
            parameter.add_(torch.randn_like(parameter) * (1.0 if "rel_attn_embed" in name else scale))
    model.save_pretrained(folder)
    return Reference(kind, folder, model, WavLMConfig.from_hf(folder / "config.json"))


def pad(clips: list[np.ndarray], samples: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clips as rows [B, N], zero padded to the longest (or to `samples`), and their lengths [B]."""
    lengths = np.array([len(clip) for clip in clips], np.int32)
    rows = np.zeros((len(clips), max(samples, lengths.max())), np.float32)
    for row, clip in zip(rows, clips, strict=True):
        row[: len(clip)] = clip
    return rows, lengths


def attention_mask(rows: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """transformers' mask [B, N] for rows of these lengths."""
    return torch.tensor((np.arange(rows.shape[1]) < lengths[:, None]).astype(np.int64))

"""What both sides compute: models of the released sizes, their weights, a batch, and the FLOPs of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000
BLANK = 0
# Small: a large model learns a batch by heart in ten steps, and on the way there what rounding does to the
# smallest gradients, which AdamW makes as large as any, shows in the third digit of the loss.
LEARNING_RATE = 1e-5
# Differences from transformers.WavLMConfig's defaults.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    },
    "demo": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "conv_dim": (64,) * 7,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 32,
    },
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    },
}
# For comparing kernels; the recipe's own are those of the released wavlm-large.
NO_REGULARISATION: dict[str, Any] = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
RECIPE: dict[str, Any] = {
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.1,
    "final_dropout": 0.0,
    "layerdrop": 0.1,
    "apply_spec_augment": True,
    "mask_time_prob": 0.075,
}


def settings(size: str, *, layers: int = 0, recipe: bool = False) -> dict[str, Any]:
    """Keyword arguments of transformers.WavLMConfig; `layers` in place of the size's own, unless 0."""
    chosen = SIZES[size] | (RECIPE if recipe else NO_REGULARISATION)
    chosen |= {"vocab_size": 32, "pad_token_id": BLANK, "ctc_loss_reduction": "mean"}
    return chosen | ({"num_hidden_layers": layers} if layers else {})


def save_weights(folder: Path, chosen: dict[str, Any], *, seed: int = 0) -> None:
    """A model of transformers, its weights as it initialises them, in a folder that both sides load."""
    import torch
    import transformers

    torch.manual_seed(seed)
    transformers.WavLMForCTC(transformers.WavLMConfig(**chosen)).save_pretrained(folder)


def make_batch(clips: int, seconds: float, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise with 13 labels a second, TIMIT's rate. One clip is full; the others are up to 20 % shorter."""
    random = np.random.default_rng(seed)
    samples = int(seconds * SAMPLE_RATE)
    lengths = random.integers(int(0.8 * samples), samples + 1, clips).astype(np.int32)
    lengths[0] = samples
    label_lengths = np.maximum(13 * lengths // SAMPLE_RATE, 1).astype(np.int32)
    labels = random.integers(1, 32, (clips, label_lengths.max())).astype(np.int32)
    rows = random.standard_normal((clips, samples)).astype(np.float32)
    rows[np.arange(samples) >= lengths[:, None]] = 0
    return {
        "samples": rows,
        "mean": np.zeros(clips, np.float32),
        "scale": np.ones(clips, np.float32),
        "lengths": lengths,
        "labels": labels,
        "label_lengths": label_lengths,
        "valid": np.ones(clips, bool),
    }


def step_flops(chosen: dict[str, Any], clips: int, seconds: float) -> dict[str, float]:
    """Floating-point operations of one training step, the feature encoder frozen, by part.

    Products only, 2 for each multiplication and addition; 3 times the forward pass where there is a backward
    one. The padded shapes count, not the clips' own lengths.
    """
    from flax_wavlm.models.config import WavLMConfig

    config = WavLMConfig(**chosen)
    size, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    samples = int(seconds * SAMPLE_RATE)
    convolutions = 0
    for i, (kernel, channels) in enumerate(zip(config.conv_kernel, config.conv_dim, strict=True)):
        inputs = config.conv_dim[i - 1] if i else 1
        convolutions += 2 * config.frame_count(samples, layers=i + 1) * kernel * inputs * channels
    time = config.frame_count(samples)
    forward_and_backward = 3 * 2 * clips * time
    groups = config.num_conv_pos_embedding_groups
    rest = config.conv_dim[-1] * size + size * config.vocab_size + layers * size * 8
    parts = {
        "feature encoder": float(clips * convolutions),
        "positional convolution": forward_and_backward * config.num_conv_pos_embeddings * size**2 / groups,
        "q, k, v, out": forward_and_backward * 4 * size**2 * layers,
        "scores and their product with V": forward_and_backward * 2 * time * size * layers,
        "feed-forward": forward_and_backward * 2 * size * config.intermediate_size * layers,
        "rest": float(forward_and_backward * rest),
    }
    assert heads * (size // heads) == size
    return parts | {"total": sum(parts.values())}


PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, of the data sheets


def peak_flops(device: str) -> float | None:
    """Of the data sheet; None where it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)

"""The model equals transformers' PyTorch WavLM: logits, hidden states, masks, and at full size."""

import types
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from helpers.reference import Reference, attention_mask, pad, tiny_reference
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from flax_wavlm.models.wavlm import relative_buckets
from flax_wavlm.porting.load import load_model

DEEP = 1e-4  # tolerance for a whole model in float32
SIMPLE = 1e-5  # tolerance for a simple module


def reference_logits(reference: Reference, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = reference.model(torch.tensor(rows), attention_mask=attention_mask(rows, lengths))
    return output.logits.numpy()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_logits_and_states(
    reference: Reference, speech: list[np.ndarray], count: int, measured: Callable[[str], None]
) -> None:
    rows, lengths = pad(speech[:count])
    model = load_model(reference.folder)
    logits, frames, states = model.with_hidden_states(rows, lengths)
    with torch.no_grad():
        expected = reference.model(
            torch.tensor(rows), attention_mask=attention_mask(rows, lengths), output_hidden_states=True
        )
    assert logits.shape == expected.logits.shape
    assert logits.dtype == jnp.float32
    difference = np.abs(logits - expected.logits.numpy()).max()
    measured(f"tiny {reference.kind}, {count} clips, logits: largest difference {difference:.1e}")
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=DEEP)
    np.testing.assert_allclose(states, torch.stack(expected.hidden_states), rtol=0, atol=DEEP)
    np.testing.assert_array_equal(
        frames, reference.model._get_feat_extract_output_lengths(torch.tensor(lengths))
    )


def test_logits_without_lengths(reference: Reference, speech: list[np.ndarray]) -> None:
    rows, _ = pad(speech[:2])
    logits, frames = load_model(reference.folder)(rows)
    with torch.no_grad():
        expected = reference.model(torch.tensor(rows)).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=DEEP)
    np.testing.assert_array_equal(frames, [logits.shape[1]] * 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_conv_pos_embeddings": 31},  # an odd kernel has no extra frame to drop
        {"feat_extract_activation": "relu", "hidden_act": "gelu_new"},
        {"num_buckets": 320, "max_bucket_distance": 800},
        {"conv_dim": (24, 16, 8), "conv_kernel": (10, 3, 2), "conv_stride": (5, 4, 8)},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_logits_of_other_architectures(changes: dict, tmp_path, speech: list[np.ndarray]) -> None:
    reference = tiny_reference("large", tmp_path, **changes)
    rows, lengths = pad(speech[:2])
    logits, _ = load_model(tmp_path)(rows, lengths)
    np.testing.assert_allclose(logits, reference_logits(reference, rows, lengths), rtol=0, atol=DEEP)


def test_reference_sees_every_tensor(reference: Reference, speech: list[np.ndarray]) -> None:
    """The parity above means something: a 10 % error in any one tensor moves the logits beyond it."""
    rows, lengths = pad(speech[:2])
    before = reference_logits(reference, rows, lengths)
    rng = torch.Generator().manual_seed(1)
    blind = []
    for name, parameter in reference.model.named_parameters():
        kept = parameter.data.clone()
        spread = kept.std() if kept.numel() > 1 else kept.abs().mean()
        parameter.data += 0.1 * spread * torch.randn(kept.shape, generator=rng)
        moved = np.abs(reference_logits(reference, rows, lengths) - before).max()
        if moved <= DEEP:
            blind.append((name, moved))
        parameter.data = kept
    # Mathematics: softmax does not see a key's bias, nor does a norm over time see what it takes the mean
    # of, and nothing is masked here. The gradients and the fixed mask below do see the first and the last.
    unseen = {f"wavlm.encoder.layers.{i}.attention.k_proj.bias" for i in range(3)}
    unseen.add("wavlm.masked_spec_embed")
    if reference.kind == "base":
        unseen.add("wavlm.feature_extractor.conv_layers.0.conv.bias")
    assert {name for name, _ in blind} <= unseen, blind


def test_fixed_mask(reference: Reference, speech: list[np.ndarray]) -> None:
    """The mask embedding, which nothing shows while nothing is masked."""
    rows, lengths = pad(speech[:2])
    model = load_model(reference.folder)
    frames = int(reference.config.frame_count(rows.shape[1]))
    mask = np.random.default_rng(0).random((2, frames)) < 0.3
    logits, _ = model(rows, lengths, mask_time=mask)
    with torch.no_grad():
        hidden = reference.model.wavlm(
            torch.tensor(rows),
            attention_mask=attention_mask(rows, lengths),
            mask_time_indices=torch.tensor(mask),
        )
        expected = reference.model.lm_head(hidden.last_hidden_state)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=DEEP)
    assert np.abs(logits - model(rows, lengths)[0]).max() > 100 * DEEP


@pytest.mark.parametrize(("buckets", "distance"), [(320, 800), (320, 1280), (64, 90), (32, 128)])
def test_relative_buckets(buckets: int, distance: int) -> None:
    """Bit-equal for every distance up to 80 s of speech."""
    stand_in = types.SimpleNamespace(num_buckets=buckets, max_distance=distance)
    frames = 4000
    distances = torch.arange(-(frames - 1), frames)
    expected = WavLMAttention._relative_positions_bucket(stand_in, distances)
    np.testing.assert_array_equal(relative_buckets(frames, buckets, distance), expected)


def test_padding_of_group_norm(tmp_path, speech: list[np.ndarray]) -> None:
    """A base model depends on its padding as transformers' does, and with masked_group_norm does not."""
    reference = tiny_reference("base", tmp_path)
    alone, _ = pad(speech[:1])
    padded, lengths = pad(speech[:1], 2 * alone.shape[1])
    as_transformers = load_model(tmp_path)
    logits, _ = as_transformers(padded, lengths)
    np.testing.assert_allclose(logits, reference_logits(reference, padded, lengths), rtol=0, atol=DEEP)
    expected, _ = as_transformers(alone)
    assert np.abs(logits[:, : expected.shape[1]] - expected).max() > 100 * DEEP
    logits, _ = load_model(tmp_path, overrides={"masked_group_norm": True})(padded, lengths)
    np.testing.assert_allclose(logits[:, : expected.shape[1]], expected, rtol=0, atol=SIMPLE)


FULL_SIZE = {
    "wavlm-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    },
    "wavlm-base": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size(name: str, tmp_path, speech: list[np.ndarray], measured: Callable[[str], None]) -> None:
    """The released architectures with random weights on 4 s of real speech: 1e-3."""
    torch.manual_seed(0)
    hf = transformers.WavLMForCTC(transformers.WavLMConfig(**FULL_SIZE[name])).eval()
    with torch.no_grad():
        # Larger than the initialisation, where position biases and gates are invisible, yet not so large
        # that 24 layers of it blow rounding up.
        for parameter_name, parameter in hf.named_parameters():
            if any(part in parameter_name for part in ("gru_rel_pos", "rel_attn_embed", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    hf.save_pretrained(tmp_path)
    clip = np.concatenate(speech)[: 4 * 16000]
    rows, lengths = pad([clip, clip[: 3 * 16000]])
    with torch.no_grad():
        expected = hf(torch.tensor(rows), attention_mask=attention_mask(rows, lengths)).logits.numpy()
    logits, _ = load_model(tmp_path)(rows, lengths)
    difference = np.abs(logits - expected).max()
    measured(
        f"{name}, {hf.num_parameters() / 1e6:.1f} M parameters, logits: largest difference {difference:.1e}, "
        f"relative to the largest logit {difference / np.abs(expected).max():.1e}"
    )
    assert difference <= 1e-3

"""One result however it is computed: padding, unrolling, rematerialisation, precision."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reference import Reference, pad

from flax_wavlm.models.parameters import split
from flax_wavlm.porting.load import load_model

DEEP = 1e-4  # tolerance for a whole model in float32
SIMPLE = 1e-5  # tolerance for a simple module


@pytest.mark.parametrize("how", [{"unroll": 3}, {"remat": "full"}, {"remat": "dots"}], ids=str)
def test_unroll_and_remat_change_nothing(large_reference: Reference, speech: list, how: dict) -> None:
    rows, lengths = pad(speech[:2])
    expected, _ = load_model(large_reference.folder)(rows, lengths)
    logits, _ = load_model(large_reference.folder, overrides=how)(rows, lengths)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=SIMPLE)


def test_bfloat16_is_near(large_reference: Reference, speech: list[np.ndarray]) -> None:
    rows, lengths = pad(speech[:2])
    expected, _ = load_model(large_reference.folder)(rows, lengths)
    model = load_model(large_reference.folder, overrides={"dtype": "bfloat16"})
    assert {leaf.dtype for leaf in jax.tree.leaves(split(model)[1])} == {jnp.dtype("float32")}
    logits, _ = model(rows, lengths)
    assert logits.dtype == jnp.float32
    relative = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert 1e-5 < relative < 0.05  # bfloat16 has three digits; equal would mean it was not used


def test_padding_changes_nothing_for_layer_norm(
    large_reference: Reference, speech: list[np.ndarray], measured: Callable[[str], None]
) -> None:
    model = load_model(large_reference.folder)
    alone, _ = pad(speech[:1])
    padded, lengths = pad(speech[:1], 2 * alone.shape[1])
    expected, frames = model(alone)
    logits, padded_frames = model(padded, lengths)
    assert int(frames[0]) == int(padded_frames[0]) == expected.shape[1]
    difference = np.abs(logits[:, : expected.shape[1]] - expected).max()
    measured(f"tiny large, padded to twice its length: largest difference {difference:.1e}")
    np.testing.assert_allclose(logits[:, : expected.shape[1]], expected, rtol=0, atol=SIMPLE)
    # Without lengths it would: the test can fail.
    assert np.abs(model(padded)[0][:, : expected.shape[1]] - expected).max() > 100 * SIMPLE


def test_row_without_a_frame_is_finite(large_reference: Reference) -> None:
    model = load_model(large_reference.folder)
    logits, frames = model(np.zeros((2, 4000), np.float32), np.array([4000, 100]))
    assert np.isfinite(logits).all()
    assert frames.tolist() == [12, 0]


def test_input_shorter_than_a_frame(large_reference: Reference) -> None:
    model = load_model(large_reference.folder)
    assert large_reference.config.min_samples == 400
    assert model(np.zeros((1, 400), np.float32))[0].shape == (1, 1, 32)
    with pytest.raises(ValueError, match="400 samples"):
        model(np.zeros((1, 399), np.float32))


def test_frames_in_eights_change_nothing(
    reference: Reference, speech: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the rows are a multiple of 8 frames long, and nobody sees it; with lengths and without."""
    rows, lengths = pad([clip[:40_000] for clip in speech[:2]])
    rows, lengths = rows[:, :39_000], np.minimum(lengths, [39_000, 30_000])
    model = load_model(reference.folder, overrides={"attention": "xla"})
    for known in (lengths, None):
        logits, frames, states = model.with_hidden_states(rows, known)
        assert logits.shape[1] % 8
        with monkeypatch.context() as context:
            context.setattr(jax, "default_backend", lambda: "gpu")
            padded_logits, padded_frames, padded_states = model.with_hidden_states(rows, known)
        np.testing.assert_array_equal(padded_frames, frames)
        real = np.arange(logits.shape[1]) < np.asarray(frames)[:, None]
        assert padded_logits.shape == logits.shape
        assert padded_states.shape == states.shape
        np.testing.assert_allclose(padded_logits[real], logits[real], rtol=0, atol=DEEP)
        np.testing.assert_allclose(padded_states[:, real], states[:, real], rtol=0, atol=DEEP)

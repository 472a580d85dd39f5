"""SpecAugment: its spans are distributed as the reference's, for every clip on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.reference import NO_REGULARISATION, Reference
from transformers.models.wavlm.modeling_wavlm import _compute_mask_indices

from flax_wavlm.models.masking import span_mask, spec_augment
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model


def spans(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return list(edges[1::2] - edges[::2])


@pytest.mark.parametrize(
    ("share", "span", "min_spans"), [(0.075, 10, 2), (0.05, 10, 2), (0.5, 10, 2), (0.3, 4, 0)]
)
def test_span_statistics(share: float, span: int, min_spans: int) -> None:
    """Masked share, number of runs and their lengths are the reference's, over many draws."""
    lengths, size, draws = np.array([199, 120, 60]), 199, 1500
    attention = torch.tensor((np.arange(size) < lengths[:, None]).astype(int))
    np.random.seed(0)  # noqa: NPY002 - the reference draws from it
    expected = np.stack(
        [_compute_mask_indices((3, size), share, span, attention, min_spans) for _ in range(draws)]
    )
    draw = jax.jit(
        jax.vmap(
            lambda key: span_mask(
                key, jnp.asarray(lengths), size, share=share, span=span, min_spans=min_spans
            )
        )
    )
    ours = np.asarray(draw(jax.random.split(jax.random.key(0), draws)))
    for row, length in enumerate(lengths):
        assert not ours[:, row, length:].any()  # padding is never masked
        for statistic in (
            lambda mask: mask.mean(),
            lambda mask: len(spans(mask)),
            lambda mask: max(spans(mask), default=0),
        ):
            a = np.array([statistic(mask) for mask in ours[:, row]])
            b = np.array([statistic(mask) for mask in expected[:, row]])
            error = np.sqrt((a.var() + b.var()) / draws)
            assert abs(a.mean() - b.mean()) < 4 * error + 1e-9
        # Everywhere alike: the share at each position, within five standard errors.
        p = expected[:, row].mean(axis=0)
        assert np.all(np.abs(ours[:, row].mean(axis=0) - p) < 5 * np.sqrt(2 * p * (1 - p) / draws) + 0.01)


def test_spans_of_short_clips() -> None:
    """Where the reference raises: fewer frames than a span."""
    mask = span_mask(jax.random.key(0), jnp.array([5, 0]), 8, share=0.5, span=10, min_spans=2)
    assert not mask.any()
    mask = span_mask(jax.random.key(0), jnp.array([10, 11, 3]), 12, share=0.5, span=10, min_spans=2)
    assert mask.sum(axis=1).tolist()[0] == 10
    assert mask.sum(axis=1).tolist()[2] == 0


def test_spans_differ_between_clips_and_keys() -> None:
    def draw(seed: int) -> np.ndarray:
        return np.asarray(
            span_mask(jax.random.key(seed), jnp.full(16, 199), 199, share=0.075, span=10, min_spans=2)
        )

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any(axis=1).all()
    assert len({row.tobytes() for row in draw(0)}) == 16


def test_spans_do_not_depend_on_the_topology() -> None:
    """Rows on different devices (and so hosts) draw different spans, and those of a single device."""

    def draw(lengths: jax.Array) -> jax.Array:
        return span_mask(jax.random.key(3), lengths, 199, share=0.075, span=10, min_spans=2)

    rows = sharding.put_batch(sharding.make_mesh(), {"lengths": np.full(16, 199)})["lengths"]
    assert len(rows.sharding.device_set) == jax.device_count()
    masks = np.asarray(jax.jit(draw)(rows))
    np.testing.assert_array_equal(masks, jax.jit(draw)(jnp.full(16, 199)))
    assert len({mask.tobytes() for mask in masks}) == 16


def test_feature_mask(large_reference: Reference) -> None:
    config = NO_REGULARISATION | {
        "apply_spec_augment": True,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.5,
        "mask_feature_min_masks": 1,
    }
    model = load_model(large_reference.folder, overrides=config)
    x = jnp.ones((2, 30, 64))
    masked = spec_augment(
        model.config, x, jnp.array([30, 20]), jnp.zeros(64), mask_time=None, key=jax.random.key(0)
    )
    zeroed = np.asarray(masked == 0)
    assert (zeroed == zeroed[:, :1]).all()  # the same features in every frame
    assert 0 < zeroed.mean() < 0.6
    assert (zeroed[0] != zeroed[1]).any()


def test_spec_augment_any_clip_length(large_reference: Reference) -> None:
    model = load_model(large_reference.folder)
    for samples in (400, 3000):
        logits, _ = model(np.ones((1, samples), np.float32), key=jax.random.key(0))
        assert np.isfinite(logits).all()

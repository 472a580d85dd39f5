"""The model against transformers' PyTorch WavLM, and what the reference cannot show."""

import dataclasses
import itertools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from helpers.reference import NO_REGULARISATION, Reference, attention_mask, pad, tiny_reference
from transformers.models.wavlm.modeling_wavlm import WavLMAttention, _compute_mask_indices

from flax_wavlm import WavLMConfig, WavLMForCTC
from flax_wavlm.models.heads import structure
from flax_wavlm.models.masking import span_mask
from flax_wavlm.models.parameters import merge, split
from flax_wavlm.models.wavlm import EncoderLayer, relative_buckets, total
from flax_wavlm.ops.dropout import dropout
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.save import hf_tensors

DEEP = 1e-4  # tolerance for a whole model in float32
SIMPLE = 1e-5  # and for a simple module


def reference_logits(reference: Reference, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = reference.model(torch.tensor(rows), attention_mask=attention_mask(rows, lengths))
    return output.logits.numpy()


# --- Equal to the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 8])
def test_logits_and_states(
    reference: Reference, speech: list[np.ndarray], count: int, measured: Callable[[str], None]
) -> None:
    rows, lengths = pad(speech[:count])
    model = load_model(reference.folder)
    logits, frames, states = model(rows, lengths, with_states=True)
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


# --- The same however it is computed ------------------------------------------------------------------------


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
        logits, frames, states = model(rows, known, with_states=True)
        assert logits.shape[1] % 8
        with monkeypatch.context() as context:
            context.setattr(jax, "default_backend", lambda: "gpu")
            padded_logits, padded_frames, padded_states = model(rows, known, with_states=True)
        np.testing.assert_array_equal(padded_frames, frames)
        real = np.arange(logits.shape[1]) < np.asarray(frames)[:, None]
        assert padded_logits.shape == logits.shape
        assert padded_states.shape == states.shape
        np.testing.assert_allclose(padded_logits[real], logits[real], rtol=0, atol=DEEP)
        np.testing.assert_allclose(padded_states[:, real], states[:, real], rtol=0, atol=DEEP)


# --- Regularisation -----------------------------------------------------------------------------------------


def test_evaluation_is_deterministic_and_training_is_not(reference: Reference, speech: list) -> None:
    rows, lengths = pad(speech[:2])
    graphdef, params = split(load_model(reference.folder))
    call = jax.jit(lambda params, key: merge(graphdef, params)(rows, lengths, key=key)[0])
    one, again, other = (call(params, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


def test_training_call_without_regularisation_is_the_evaluation(reference: Reference, speech: list) -> None:
    rows, lengths = pad(speech[:2])
    model = load_model(reference.folder, overrides=NO_REGULARISATION)
    np.testing.assert_allclose(
        model(rows, lengths, key=jax.random.key(0))[0], model(rows, lengths)[0], rtol=0, atol=SIMPLE
    )


@pytest.mark.parametrize("field", [f for f in NO_REGULARISATION if f != "apply_spec_augment"])
def test_every_rate_is_used(large_reference: Reference, speech: list[np.ndarray], field: str) -> None:
    rows, lengths = pad(speech[:1])
    model = load_model(large_reference.folder, overrides=NO_REGULARISATION | {field: 0.5})
    assert np.abs(model(rows, lengths, key=jax.random.key(0))[0] - model(rows, lengths)[0]).max() > 0.01


def test_dropout_masks_differ_between_layers(large_reference: Reference) -> None:
    """Two layers with the same weights and inputs: a key repeated under the scan would make them equal."""
    config = large_reference.config.replace(**NO_REGULARISATION | {"hidden_dropout": 0.5})
    graphdef, params = structure(config)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    params["wavlm"]["encoder"]["positions"]["direction"] += 1.0
    params["wavlm"]["encoder"]["layers"]["attention"]["out"]["bias"] += 1.0
    x = jnp.zeros((1, 400 + 320 * 30))
    states = merge(graphdef, params)(x, key=jax.random.key(0), with_states=True)[2]
    masks = [np.asarray(after - before) for before, after in itertools.pairwise(states)]
    assert all(set(np.unique(np.round(mask, 3))) == {0.0, 2.0} for mask in masks)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert 0.4 < np.mean(masks[one] == masks[other]) < 0.6


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_biases_are_dropped_with_their_products(large_reference: Reference, rate: float) -> None:
    """A layer against the formula, in a training call: dropout is of a branch's output, bias and all."""
    config = large_reference.config.replace(**NO_REGULARISATION | {"hidden_dropout": rate})
    layer = EncoderLayer(config, nnx.Rngs(0))
    for number, dense in enumerate((layer.attention.out, layer.feed_forward.down), start=1):
        dense.bias.set_value(jnp.full(config.hidden_size, float(number)))
    x, delta = jax.random.normal(jax.random.key(0), (2, 2, 50, config.hidden_size))
    bias = jnp.arange(float(config.hidden_size))
    keys = jax.random.split(jax.random.key(1), 4)

    def attend(qkv: jax.Array, qkv_bias: jax.Array, gates: jax.Array, key: jax.Array) -> jax.Array:
        return qkv[:, :, 0] + qkv_bias[0]

    stream = (x, delta, bias) if rate == 0 else (x, delta)
    new = layer(stream, attend, jax.random.key(1))
    assert len(new) == len(stream)
    expected = x + delta + bias if rate == 0 else x + delta
    product, bias = layer.attention(layer.attention_norm(expected), attend, keys[0])
    expected += dropout(product + bias, rate, keys[1])
    product, bias = layer.feed_forward(layer.final_norm(expected), keys[2])
    expected += dropout(product + bias, rate, keys[3])
    np.testing.assert_allclose(total(new), expected, rtol=0, atol=SIMPLE)


def test_layerdrop_drops_biases_too(large_reference: Reference) -> None:
    """Of three layers the last two are dropped, and their biases get no gradient."""
    overrides = NO_REGULARISATION | {"layerdrop": 1.0}
    graphdef, params = split(load_model(large_reference.folder, overrides=overrides))
    biases = params["wavlm"]["encoder"]["layers"]["feed_forward"]["down"]["bias"]
    biases += jnp.arange(1.0, 4)[:, None]

    def loss(biases: jax.Array) -> tuple[jax.Array, jax.Array]:
        params["wavlm"]["encoder"]["layers"]["feed_forward"]["down"]["bias"] = biases
        x = jax.random.normal(jax.random.key(0), (1, 4000))
        logits, _, states = merge(graphdef, params)(x, key=jax.random.key(0), with_states=True)
        return jnp.sum(jnp.square(logits)), states

    gradient, states = jax.jit(jax.grad(loss, has_aux=True))(biases)
    np.testing.assert_array_equal(states[2], states[1])
    np.testing.assert_array_equal(states[3], states[1])
    assert np.abs(gradient[0]).max() > 0
    np.testing.assert_array_equal(gradient[1:], 0)


def test_layerdrop_never_drops_the_first_layer(large_reference: Reference, speech: list) -> None:
    rows, lengths = pad(speech[:1])
    model = load_model(large_reference.folder, overrides=NO_REGULARISATION | {"layerdrop": 1.0})
    states = model(rows, lengths, key=jax.random.key(0), with_states=True)[2]
    assert np.abs(states[1] - states[0]).max() > 0.1
    np.testing.assert_array_equal(states[2], states[1])
    np.testing.assert_array_equal(states[3], states[1])


def test_layerdrop_rate(large_reference: Reference) -> None:
    graphdef, params = split(
        load_model(large_reference.folder, overrides=NO_REGULARISATION | {"layerdrop": 0.3})
    )
    x = jnp.ones((1, 2000))

    def dropped(key: jax.Array) -> jax.Array:
        states = merge(graphdef, params)(x, key=key, with_states=True)[2]
        return jnp.all(states[1:] == states[:-1], axis=(1, 2, 3))

    share = np.mean(jax.vmap(dropped)(jax.random.split(jax.random.key(0), 400)), axis=0)
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], 0.3, atol=0.1)


# --- SpecAugment --------------------------------------------------------------------------------------------


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
    masked = model.wavlm.spec_augment(x, jnp.array([30, 20]), None, jax.random.key(0))
    zeroed = np.asarray(masked == 0)
    assert (zeroed == zeroed[:, :1]).all()  # the same features in every frame
    assert 0 < zeroed.mean() < 0.6
    assert (zeroed[0] != zeroed[1]).any()


def test_spec_augment_any_clip_length(large_reference: Reference) -> None:
    model = load_model(large_reference.folder)
    for samples in (400, 3000):
        logits, _ = model(np.ones((1, samples), np.float32), key=jax.random.key(0))
        assert np.isfinite(logits).all()


# --- New models ---------------------------------------------------------------------------------------------


def test_initialisation_is_the_references() -> None:
    """The spread of every tensor of a new model, against transformers' own initialisation."""
    torch.manual_seed(0)
    hf = transformers.WavLMForCTC(
        transformers.WavLMConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            conv_dim=(64,) * 7,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
        )
    )
    config = WavLMConfig.from_hf(hf.config.to_dict())
    ours = hf_tensors(config, split(WavLMForCTC(config, nnx.Rngs(0)))[1])
    assert set(ours) == set(hf.state_dict())
    for name, expected in hf.state_dict().items():
        assert ours[name].shape == tuple(expected.shape)
        if "pos_conv_embed.conv.parametrizations" in name:
            # transformers means to draw N(0, 4 / (taps * size)), as fairseq does and as we do, but its weight
            # norm is a parametrization by then and keeps torch's default.
            continue
        a, b = ours[name], expected.numpy()
        assert abs(a.std() - b.std()) <= 0.15 * b.std() + 1e-7, name
        assert abs(a.mean() - b.mean()) <= 0.3 * b.std() + 1e-7, name


def test_initialisation_of_positions() -> None:
    config = WavLMConfig(hidden_size=128, num_hidden_layers=1, num_attention_heads=4)
    positions = WavLMForCTC(config, nnx.Rngs(0)).wavlm.encoder.positions
    assert positions.direction[...].std() == pytest.approx(2 / np.sqrt(128 * 128), rel=0.02)
    norms = np.linalg.norm(positions.direction[...], axis=(1, 2))
    np.testing.assert_allclose(positions.magnitude[...], norms, rtol=1e-5)


def test_layers_are_initialised_apart() -> None:
    params = split(WavLMForCTC(dataclasses.replace(WavLMConfig(), hidden_size=48), nnx.Rngs(0)))[1]
    kernel = params["wavlm"]["encoder"]["layers"]["feed_forward"]["up"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


# --- Full size ----------------------------------------------------------------------------------------------

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

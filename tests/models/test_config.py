"""The configuration against transformers' own, field by field, and what is said of values that cannot be."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_wavlm.errors import UserError
from flax_wavlm.models.config import ACTIVATIONS, WavLMConfig

OURS = {"dtype", "matmul_precision", "unroll", "remat", "kernels", "attention", "masked_group_norm"}
SHARED = [field.name for field in dataclasses.fields(WavLMConfig) if field.name not in OURS]
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "feat_proj_dropout": 0.1,
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
    "mask_time_prob": 0.075,
    "ctc_loss_reduction": "sum",
}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@st.composite
def configs(draw: st.DrawFn) -> WavLMConfig:
    """Any configuration that holds together."""
    convs = draw(st.integers(1, 8))
    heads, groups = draw(st.sampled_from([1, 2, 4, 12])), draw(st.sampled_from([1, 2, 16]))
    sizes = st.lists(st.integers(1, 600), min_size=convs, max_size=convs).map(tuple)
    buckets = 4 * draw(st.integers(1, 100))
    count, rate = st.integers(1, 4000), st.floats(0, 1) | st.sampled_from([0, 1])
    token = st.none() | st.integers(0, 100)
    return WavLMConfig(
        vocab_size=draw(count),
        hidden_size=heads * groups * draw(st.integers(1, 20)),
        num_hidden_layers=draw(count),
        num_attention_heads=heads,
        intermediate_size=draw(count),
        hidden_act=draw(st.sampled_from(ACTIVATIONS)),
        layer_norm_eps=draw(st.floats(1e-12, 1) | st.just(1)),
        initializer_range=draw(rate),
        feat_extract_norm=draw(st.sampled_from(["group", "layer"])),
        feat_extract_activation=draw(st.sampled_from(ACTIVATIONS)),
        conv_dim=draw(sizes),
        conv_stride=draw(sizes),
        conv_kernel=draw(sizes),
        conv_bias=draw(st.booleans()),
        num_conv_pos_embeddings=draw(count),
        num_conv_pos_embedding_groups=groups,
        num_buckets=buckets,
        max_bucket_distance=buckets // 4 + draw(count),
        do_stable_layer_norm=draw(st.booleans()),
        hidden_dropout=draw(rate),
        activation_dropout=draw(rate),
        attention_dropout=draw(rate),
        feat_proj_dropout=draw(rate),
        final_dropout=draw(rate),
        layerdrop=draw(rate),
        apply_spec_augment=draw(st.booleans()),
        mask_time_prob=draw(rate),
        mask_time_length=draw(count),
        mask_time_min_masks=draw(st.integers(0, 5)),
        mask_feature_prob=draw(rate),
        mask_feature_length=draw(count),
        mask_feature_min_masks=draw(st.integers(0, 5)),
        ctc_loss_reduction=draw(st.sampled_from(["mean", "sum"])),
        ctc_zero_infinity=draw(st.booleans()),
        pad_token_id=draw(st.integers(0, 100)),
        bos_token_id=draw(token),
        eos_token_id=draw(token),
    )


# --- To and from transformers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARED)
def test_default_is_the_references(name: str) -> None:
    if name == "mask_feature_min_masks" and not hasattr(transformers.WavLMConfig(), name):
        pytest.skip("this transformers leaves it out of WavLMConfig")  # 0 in every version that has it
    assert plain(getattr(WavLMConfig(), name)) == plain(getattr(transformers.WavLMConfig(), name))


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_from_hf_takes_every_field(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = transformers.WavLMConfig(**changes)
    theirs.save_pretrained(tmp_path)
    for source in (theirs.to_dict(), tmp_path / "config.json", str(tmp_path / "config.json")):
        config = WavLMConfig.from_hf(source)
        for name in SHARED:
            assert plain(getattr(config, name)) == plain(getattr(theirs, name, 0)), name
    assert config == WavLMConfig(**changes)


@given(configs())
@settings(max_examples=60, deadline=None)
def test_to_hf_is_loaded_with_equal_values(config: WavLMConfig) -> None:
    written = json.loads(json.dumps(config.to_hf()))
    assert WavLMConfig.from_hf(written) == config
    theirs = transformers.WavLMConfig.from_dict(written)
    for name in SHARED:
        assert plain(getattr(theirs, name)) == plain(getattr(config, name)), name
    assert theirs.architectures == ["WavLMForCTC"]
    assert WavLMConfig.from_hf(theirs.to_dict()) == config  # and what transformers writes again


def test_what_is_ours_is_not_written() -> None:
    config = WavLMConfig(dtype="bfloat16", unroll=4, remat="full", attention="xla", masked_group_norm=True)
    assert OURS.isdisjoint(config.to_hf())
    assert set(config.to_hf()) == {*SHARED, "architectures", "model_type"}
    assert WavLMConfig.from_hf(config.to_hf()) == WavLMConfig()


def test_from_hf_of_wavlm_base_plus() -> None:
    """Its released config lacks max_bucket_distance, and has keys that say nothing about a CTC model."""
    released = transformers.WavLMConfig().to_dict() | {
        "_name_or_path": "wavlm-base-plus",
        "architectures": ["WavLMModel"],
        "freeze_feat_extract_train": True,
        "mask_channel_prob": 0.0,
        "no_mask_channel_overlap": False,
        "num_ctc_classes": 80,
        "replace_prob": 0.5,
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
    }
    del released["max_bucket_distance"]
    assert WavLMConfig.from_hf(released) == WavLMConfig()


def test_pad_token_null_is_the_default() -> None:
    assert WavLMConfig.from_hf({"model_type": "wavlm", "pad_token_id": None}).pad_token_id == 0


# --- Frames -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"conv_kernel": (10, 3, 2), "conv_stride": (5, 4, 8), "conv_dim": (8, 8, 8)}],
    ids=["released", "other"],
)
def test_frame_count_is_the_references(changes: dict[str, Any]) -> None:
    config = WavLMConfig(**changes)
    with torch.device("meta"):
        hf = transformers.WavLMModel(transformers.WavLMConfig(num_hidden_layers=1, **changes))
    shortest = config.min_samples
    samples = np.array([*range(shortest, shortest + 1500), 16000, 64000, 10**7])
    expected = hf._get_feat_extract_output_lengths(torch.tensor(samples)).numpy()
    counts = config.frame_count(samples)
    np.testing.assert_array_equal(counts, expected)
    assert isinstance(config.frame_count(64000), int)
    assert [config.frame_count(int(n)) for n in samples[:50]] == list(counts[:50])
    assert counts[0] == 1


def test_frame_count_after_some_layers() -> None:
    config = WavLMConfig()
    assert [config.frame_count(16000, layers=n) for n in (0, 1, 2, 7)] == [16000, 3199, 1599, 49]


def test_min_samples() -> None:
    assert WavLMConfig().min_samples == 400
    assert WavLMConfig(conv_dim=(4,), conv_kernel=(7,), conv_stride=(3,)).min_samples == 7


@given(configs(), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_frame_count_is_never_negative(config: WavLMConfig, samples: int) -> None:
    count = config.frame_count(samples)
    assert count >= 0
    assert (count > 0) == (samples >= config.min_samples)
    np.testing.assert_array_equal(config.frame_count(np.array([samples])), [count])


# --- What cannot be -----------------------------------------------------------------------------------------

BAD_VALUES: list[tuple[dict[str, Any], str, str, str]] = [
    # values | field | how the value is shown | what was expected
    ({"hidden_act": "mish"}, "hidden_act", "'mish'", "gelu"),
    ({"feat_extract_activation": "tanh"}, "feat_extract_activation", "'tanh'", "relu"),
    ({"feat_extract_norm": "batch"}, "feat_extract_norm", "'batch'", "group, layer"),
    ({"ctc_loss_reduction": "none"}, "ctc_loss_reduction", "'none'", "mean, sum"),
    ({"dtype": "float16"}, "dtype", "'float16'", "float32, bfloat16"),
    ({"matmul_precision": "best"}, "matmul_precision", "'best'", "default, high, highest"),
    ({"remat": "all"}, "remat", "'all'", "none, dots, full"),
    ({"attention": "flash"}, "attention", "'flash'", "auto, xla, cudnn, pallas"),
    ({"unroll": -1}, "unroll", "-1", "0 or more"),
    ({"num_attention_heads": 5}, "num_attention_heads", "5", "divisor of hidden_size = 768"),
    ({"hidden_size": 12}, "num_conv_pos_embedding_groups", "16", "divisor of hidden_size = 12"),
    ({"hidden_size": True}, "hidden_size", "True", "int"),
    ({"hidden_size": "768"}, "hidden_size", "'768'", "int"),
    ({"hidden_size": 768.0}, "hidden_size", "768.0", "int"),
    ({"hidden_size": None}, "hidden_size", "None", "int"),
    ({"do_stable_layer_norm": 1}, "do_stable_layer_norm", "1", "bool"),
    ({"do_stable_layer_norm": "false"}, "do_stable_layer_norm", "'false'", "bool"),
    ({"hidden_act": 3}, "hidden_act", "3", "str"),
    ({"layerdrop": "0.1"}, "layerdrop", "'0.1'", "float"),
    ({"layerdrop": False}, "layerdrop", "False", "float"),
    ({"bos_token_id": "<s>"}, "bos_token_id", "'<s>'", "int | None"),
    ({"conv_kernel": (10, 3.0, 3, 3, 3, 2, 2)}, "conv_kernel", "10, 3.0, 3", "tuple[int, ...]"),
    ({"conv_dim": 512}, "conv_dim", "512", "tuple[int, ...]"),
    ({"conv_dim": None}, "conv_dim", "None", "tuple[int, ...]"),
    ({"conv_stride": "5222222"}, "conv_stride", "'5222222'", "tuple[int, ...]"),
    ({"conv_stride": (5, 2, 2, 0, 2, 2, 2)}, "conv_stride", "0", "above 0"),
    ({"hidden_dropout": 1.5}, "hidden_dropout", "1.5", "between 0 and 1"),
    ({"attention_dropout": -0.1}, "attention_dropout", "-0.1", "between 0 and 1"),
    ({"mask_time_prob": float("nan")}, "mask_time_prob", "nan", "between 0 and 1"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps", "0.0", "above 0"),
    ({"mask_time_length": 0}, "mask_time_length", "0", "above 0"),
    ({"num_hidden_layers": -1}, "num_hidden_layers", "-1", "above 0"),
    ({"num_buckets": 30}, "num_buckets", "30", "multiple of 4"),
    ({"max_bucket_distance": 80}, "max_bucket_distance", "80", "above num_buckets / 4 = 80"),
    ({"conv_dim": (512, 512)}, "conv_dim", "2, 7, 7", "one value for each"),
    ({"conv_dim": (), "conv_kernel": (), "conv_stride": ()}, "conv_dim", "0, 0, 0", "one value for each"),
]


@pytest.mark.parametrize(
    ("changes", "name", "shown", "expected"), BAD_VALUES, ids=lambda v: str(v) if isinstance(v, dict) else ""
)
def test_bad_value(changes: dict[str, Any], name: str, shown: str, expected: str, tmp_path: Path) -> None:
    def check(error: UserError) -> None:
        assert name in error.field or name in error.problem
        assert expected in error.expected
        for part in (name, shown, expected):
            assert part in str(error)
        assert "\n" not in str(error)

    with pytest.raises(UserError, match=r"^config: ") as raised:
        WavLMConfig(**changes)
    check(raised.value)
    with pytest.raises(UserError, match=r"^config: ") as raised:
        WavLMConfig().replace(**changes)
    check(raised.value)
    if OURS.isdisjoint(changes) and "nan" not in shown:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"model_type": "wavlm"} | changes))
        with pytest.raises(UserError) as raised:
            WavLMConfig.from_hf(path)
        assert str(raised.value).startswith(f"{path}: ")  # the file is named
        assert name in str(raised.value)
        assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"model_type": "wav2vec2"}, ("model_type", "'wav2vec2'", "expected 'wavlm'")),
        ({"model_type": "hubert"}, ("model_type", "'hubert'", "expected 'wavlm'")),
        ({"hidden_size": 64}, ("model_type", "None", "expected 'wavlm'")),
        ({"model_type": "wavlm", "add_adapter": True}, ("add_adapter", "True", "not supported")),
        ([1, 2], ("list", "expected an object")),
        ("wavlm", ("str", "expected an object")),
    ],
    ids=["wav2vec2", "hubert", "no model_type", "adapters", "list", "string"],
)
def test_config_of_something_else(content: Any, parts: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as raised:
        WavLMConfig.from_hf(path)
    for part in (str(path), *parts):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b'{"model_type": "wavlm",', "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
    ],
    ids=["missing", "cut off", "empty", "not text"],
)
def test_unreadable_file(content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as raised:
        WavLMConfig.from_hf(path)
    assert str(path) in str(raised.value)


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read") as raised:
        WavLMConfig.from_hf(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_replace() -> None:
    config = WavLMConfig()
    assert config.replace(layerdrop=0.5) == WavLMConfig(layerdrop=0.5)
    assert config == WavLMConfig()
    assert hash(config.replace(conv_dim=[1] * 7)) == hash(WavLMConfig(conv_dim=(1,) * 7))
    with pytest.raises(UserError, match="'hiden_dropout'; did you mean 'hidden_dropout'"):
        config.replace(hiden_dropout=0.1)
    with pytest.raises(UserError, match=r"'xyz'$"):
        config.replace(xyz=1)

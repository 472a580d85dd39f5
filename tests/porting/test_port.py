"""Every format in, Hugging Face out, bit for bit; and what does not fit is an error that names it all."""

import collections
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx
from helpers.errors import refused
from helpers.reference import KINDS, Reference, pad, tiny_reference
from helpers.spellings import microsoft_name

from flax_wavlm import UserError, WavLMConfig, WavLMForCTC
from flax_wavlm.models.parameters import split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.names import canonical_names
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.porting.save import hf_tensors
from flax_wavlm.porting.table import table

State = dict[str, torch.Tensor]

# --- The formats that users hold, made by renaming ----------------------------------------------------------


def safetensors_folder(reference: Reference, folder: Path) -> Path:
    return reference.folder


def sharded_safetensors(reference: Reference, folder: Path) -> Path:
    reference.model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def pickled(reference: Reference, folder: Path) -> Path:
    write_config(reference, folder)
    torch.save(reference.model.state_dict(), folder / "pytorch_model.bin")
    return folder


def sharded_pickled(reference: Reference, folder: Path) -> Path:
    write_config(reference, folder)
    state = reference.model.state_dict()
    names = sorted(state)
    index = {}
    for i in range(3):
        part = {name: state[name] for name in names[i::3]}
        torch.save(part, folder / f"pytorch_model-{i + 1:05}-of-00003.bin")
        index |= {name: f"pytorch_model-{i + 1:05}-of-00003.bin" for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def old_weight_norm(reference: Reference, folder: Path) -> Path:
    write_config(reference, folder)
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in reference.model.state_dict().items()
    }
    assert any(name.endswith("conv.weight_g") for name in state)
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def torchaudio_as_hugging_face_names(reference: Reference, folder: Path) -> Path:
    return torchaudio(reference, folder, encoder="encoder.")


def torchaudio(reference: Reference, folder: Path, encoder: str = "encoder.transformer.") -> Path:
    write_config(reference, folder)
    state = {}
    for name, tensor in reference.model.state_dict().items():
        name = name.removeprefix("wavlm.").replace("lm_head.", "aux.")
        if encoder != "encoder.":
            name = re.sub(r"^encoder\.", encoder, name)
            name = re.sub(r"^feature_projection\.", "encoder.feature_projection.", name)
        name = name.replace("attention.out_proj.", "attention.attention.out_proj.")
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        state[name] = tensor
    for name in [name for name in state if ".q_proj." in name]:
        parts = [state.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        state[name.replace("attention.q_proj.", "attention.attention.in_proj_")] = torch.cat(parts)
    assert not any("q_proj" in name for name in state)
    torch.save(state, folder / "wavlm.pth")
    return folder / "wavlm.pth"


def microsoft(reference: Reference, folder: Path) -> Path:
    """Microsoft's own .pt: encoder only."""
    state = {
        microsoft_name(name, layer_norm=reference.kind == "large"): tensor
        for name, tensor in reference.model.wavlm.state_dict().items()
    }
    config = reference.config
    cfg = {
        "extractor_mode": "layer_norm" if reference.kind == "large" else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
        "layer_norm_first": config.do_stable_layer_norm,
        "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        "conv_bias": config.conv_bias,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "relative_position_embedding": True,
        "num_buckets": config.num_buckets,
        "max_distance": config.max_bucket_distance,
        "gru_rel_pos": True,
        "normalize": reference.kind == "large",
        "mask_prob": 0.8,
    }
    torch.save({"cfg": cfg, "model": state}, folder / "WavLM.pt")
    return folder / "WavLM.pt"


def encoder_only(reference: Reference, folder: Path) -> Path:
    reference.model.wavlm.save_pretrained(folder)
    return folder


def write_config(reference: Reference, folder: Path) -> None:
    (folder / "config.json").write_bytes((reference.folder / "config.json").read_bytes())


WITH_HEAD = [
    safetensors_folder,
    sharded_safetensors,
    pickled,
    sharded_pickled,
    old_weight_norm,
    torchaudio,
    torchaudio_as_hugging_face_names,
]
ENCODER_ONLY = [encoder_only, microsoft]


@pytest.mark.parametrize("form", WITH_HEAD + ENCODER_ONLY, ids=lambda form: form.__name__)
def test_round_trip_is_bit_exact(
    reference: Reference, tmp_path: Path, form: Callable[[Reference, Path], Path]
) -> None:
    (tmp_path / "in").mkdir()
    model = load_model(form(reference, tmp_path / "in"))
    model.save_pretrained(tmp_path / "out")
    loaded, info = transformers.WavLMForCTC.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    expected = reference.model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        if form in WITH_HEAD or not name.startswith("lm_head"):
            assert torch.equal(tensor, expected[name]), name
    for field in ("num_buckets", "max_bucket_distance", "do_stable_layer_norm", "conv_dim", "conv_bias"):
        assert getattr(model.config, field) == getattr(reference.config, field)


def test_microsoft_regularisation_is_the_released_one(reference: Reference, tmp_path: Path) -> None:
    config = open_weights(microsoft(reference, tmp_path)).config
    large = reference.kind == "large"
    assert (config.layerdrop, config.mask_time_prob) == ((0.1, 0.075) if large else (0.05, 0.05))
    assert open_weights(tmp_path / "WavLM.pt").do_normalize is large


def test_torchaudio_without_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torchaudio's state dict holds no configuration, and no mask embedding."""
    reference = tiny_reference("large", tmp_path, num_buckets=320, max_bucket_distance=800)
    path = torchaudio(reference, tmp_path)
    (tmp_path / "config.json").unlink()
    state = torch.load(path)
    del state["masked_spec_embed"]
    torch.save(state, path)
    with caplog.at_level(logging.WARNING, "flax_wavlm"):
        model = load_model(path)
    assert "inferred" in caplog.text
    assert "masked_spec_embed" in caplog.text
    rows, lengths = pad([np.random.default_rng(0).normal(size=n).astype(np.float32) for n in (9000, 5000)])
    expected = load_model(reference_folder(reference, tmp_path / "hf"))
    np.testing.assert_array_equal(model(rows, lengths)[0], expected(rows, lengths)[0])


def reference_folder(reference: Reference, folder: Path) -> Path:
    reference.model.save_pretrained(folder)
    return folder


def test_half_precision_files(large_reference: Reference, tmp_path: Path) -> None:
    """float16 and bfloat16 files become float32 with the same values."""
    for dtype in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        write_config(large_reference, folder)
        state = {name: tensor.to(dtype) for name, tensor in large_reference.model.state_dict().items()}
        safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        ours = hf_tensors(large_reference.config, split(load_model(folder))[1])
        for name, tensor in state.items():
            np.testing.assert_array_equal(ours[name], tensor.float().numpy())


# --- What may be missing, and what not ----------------------------------------------------------------------


def test_fresh_head_is_announced(
    large_reference: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder_only(large_reference, tmp_path)
    with caplog.at_level(logging.WARNING, "flax_wavlm"):
        one = load_model(tmp_path, overrides={"vocab_size": 50}, seed=1)
        other = load_model(tmp_path, overrides={"vocab_size": 50}, seed=2)
    assert caplog.text.count("initialised at random: lm_head.bias, lm_head.weight") == 2
    assert one.head.kernel.shape == (64, 50)
    assert np.abs(one.head.kernel[...] - other.head.kernel[...]).max() > 0.01


def test_fresh_head_on_request(large_reference: Reference) -> None:
    model = load_model(large_reference.folder, overrides={"vocab_size": 7}, fresh_head=True)
    assert model.head.kernel.shape == (64, 7)
    with refused(r"lm_head\.weight is \[32, 64\], expected \[7, 64\]"):
        load_model(large_reference.folder, overrides={"vocab_size": 7})


def edited(reference: Reference, folder: Path, edit: Callable[[State], object]) -> Path:
    state = dict(reference.model.state_dict())
    edit(state)
    write_config(reference, folder)
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_everything_that_does_not_fit_is_listed(large_reference: Reference, tmp_path: Path) -> None:
    def edit(state: State) -> None:
        del state["wavlm.encoder.layers.1.attention.k_proj.bias"]
        del state["wavlm.feature_projection.projection.weight"]
        state["wavlm.encoder.layers.1.attention.rel_attn_embed.weight"] = torch.ones(2)
        state["wavlm.encoder.codevectors"] = torch.ones(2)
        state["lm_head.bias"] = torch.ones(31)
        state["wavlm.encoder.layer_norm.weight"] = torch.ones(2, 32)

    with pytest.raises(UserError) as caught:
        load_model(edited(large_reference, tmp_path, edit))
    assert caught.value.where == str(tmp_path)
    for part in (
        "2 tensors that the model needs are missing",
        "wavlm.encoder.layers.1.attention.k_proj.bias",
        "wavlm.feature_projection.projection.weight",
        "2 tensors have no place",
        "wavlm.encoder.layers.1.attention.rel_attn_embed.weight",
        "wavlm.encoder.codevectors",
        "2 tensors have the wrong shape",
        "lm_head.bias is [31], expected [32]",
        "wavlm.encoder.layer_norm.weight is [2, 32], expected [64]",
    ):
        assert part in caught.value.problem


def test_half_a_head_is_an_error(large_reference: Reference, tmp_path: Path) -> None:
    with refused(r"missing: lm_head\.bias"):
        load_model(edited(large_reference, tmp_path, lambda state: state.pop("lm_head.bias")))


def test_missing_mask_embedding_is_announced_where_the_config_masks(
    large_reference: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers takes such weights too. Without masks the embedding changes nothing."""
    folder = edited(large_reference, tmp_path, lambda state: state.pop("wavlm.masked_spec_embed"))
    model = load_model(folder)
    assert caplog.text.count("initialised at random: wavlm.masked_spec_embed") == 1
    assert np.isfinite(model.wavlm.mask_embedding[...]).all()
    load_model(folder, overrides={"mask_time_prob": 0.0})
    assert caplog.text.count("initialised at random") == 1


def test_model_without_masks_has_no_mask_embedding(tmp_path: Path) -> None:
    """transformers' model lacks the tensor where both mask probabilities are 0, and so must our export."""
    tiny_reference("large", tmp_path / "in", mask_time_prob=0.0)
    load_model(tmp_path / "in").save_pretrained(tmp_path / "out")
    _, info = transformers.WavLMForCTC.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


def bad_files(folder: Path, reference: Reference) -> dict[str, tuple[Path, str]]:
    """Things that are no checkpoint of a WavLM, each with what the error must say."""
    good = (reference.folder / "model.safetensors").read_bytes()
    cases = {}

    def case(name: str, expected: str, *, config: dict | None = None, **files: bytes) -> None:
        path = folder / name
        path.mkdir()
        values = json.loads((reference.folder / "config.json").read_text()) | (config or {})
        (path / "config.json").write_text(json.dumps(values))
        for file, content in files.items():
            (path / file.replace("__", ".")).write_bytes(content)
        cases[name] = (path, expected)

    case("empty", "expected one of model.safetensors")
    case("truncated", "not a whole safetensors file", model__safetensors=good[: len(good) // 2])
    case("no safetensors", "not a whole safetensors file", model__safetensors=b"hello")
    case("text as pickle", "can be loaded safely", pytorch_model__bin=b"hello")
    case("wav2vec2", "model_type is 'wav2vec2'", config={"model_type": "wav2vec2"}, model__safetensors=good)
    case("hubert", "model_type is 'hubert'", config={"model_type": "hubert"}, model__safetensors=good)
    case("adapter", "add_adapter", config={"add_adapter": True}, model__safetensors=good)
    case("more layers", "missing", config={"num_hidden_layers": 4}, model__safetensors=good)
    case("fewer layers", "no place", config={"num_hidden_layers": 2}, model__safetensors=good)
    case("other width", "wrong shape", config={"intermediate_size": 95}, model__safetensors=good)
    index = {"weight_map": {"a": "model-1.safetensors"}}
    case("shard missing", "no such file", **{"model__safetensors__index__json": json.dumps(index).encode()})
    index = {"weight_map": {"a": "../model.safetensors"}}
    case("shard escapes", "same folder", **{"model__safetensors__index__json": json.dumps(index).encode()})
    return cases


def test_bad_checkpoints(large_reference: Reference, tmp_path: Path) -> None:
    for name, (path, expected) in bad_files(tmp_path, large_reference).items():
        with pytest.raises(UserError) as caught:
            load_model(path)
        assert expected in str(caught.value), name
        assert str(path) in str(caught.value), name


def test_no_code_in_a_pickle_is_run(tmp_path: Path) -> None:
    class Dangerous:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"weight": Dangerous()}, tmp_path / "model.pt")
    with refused("loaded safely", where=r"model\.pt$"):
        load_model(tmp_path / "model.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("source", ["no/such/folder/here", "./nothing", "nothing"])
def test_no_such_path(source: str) -> None:
    with refused("no such file or folder", where=re.escape(source)):
        load_model(source)


def test_unknown_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(where="nobody/has-this-model", do="HF_HUB_OFFLINE"):
        load_model("nobody/has-this-model")


# --- The table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_table_is_one_to_one(kind: str, tmp_path: Path) -> None:
    """Every tensor has one entry, and the entries' parts cover every element of ours exactly once."""
    reference = tiny_reference(kind, tmp_path)
    entries = table(reference.config)
    assert collections.Counter(entry.name for entry in entries) == collections.Counter(
        list(reference.model.state_dict())
    )
    params = split(load_model(tmp_path))[1]
    covered = jax.tree.map(lambda leaf: np.zeros(leaf.shape, int), params)
    for entry in entries:
        part = covered
        for key in entry.path:
            part = part[key]
        part[entry.index] += 1
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(covered))


def test_names_are_their_own_spelling(reference: Reference) -> None:
    for entry in table(reference.config):
        assert canonical_names(entry.name) == [entry.name]


# --- Placement, and what is needed to load ------------------------------------------------------------------


def test_arrays_are_put_where_placement_says(large_reference: Reference) -> None:
    mesh = sharding.make_mesh(fsdp=jax.device_count())
    spec = jax.sharding.PartitionSpec(None, None, None, "fsdp")

    def placement(path: tuple[str, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
        split_last = path[-2:] == ("qkv", "kernel")
        return jax.sharding.NamedSharding(mesh, spec if split_last else jax.sharding.PartitionSpec())

    model = load_model(large_reference.folder, placement=placement)
    kernel = model.wavlm.encoder.layers.attention.qkv.kernel[...]
    assert kernel.sharding.spec == spec
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 64, 3, 64 // jax.device_count())}
    expected = split(load_model(large_reference.folder))[1]
    jax.tree.map(np.testing.assert_array_equal, split(model)[1], expected)


def test_safetensors_need_no_torch(large_reference: Reference, tmp_path: Path) -> None:
    """Loading, running and saving without PyTorch, as on a TPU machine."""
    script = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from flax_wavlm import WavLMForCTC
model = WavLMForCTC.from_pretrained({str(large_reference.folder)!r})
logits, frames = model(np.zeros((1, 4000), np.float32))
model.save_pretrained({str(tmp_path)!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert (tmp_path / "model.safetensors").exists()


def test_from_scratch(tmp_path: Path) -> None:
    """A new model of ours is one of theirs."""
    config = WavLMConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, conv_dim=(16,) * 7
    )
    WavLMForCTC(config, nnx.Rngs(0)).save_pretrained(tmp_path)
    _, info = transformers.WavLMForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info

"""A WavLM inside whatever it was saved with: the same tensors as alone, and what was left out is named."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from helpers.errors import Parts, refused
from helpers.pickles import RunsCode
from helpers.reference import Reference, tiny_reference
from helpers.spellings import MICROSOFT_CFG, fairseq_name

from flax_wavlm.errors import UserError
from flax_wavlm.models.parameters import split
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.pretrained import PretrainedWeights, open_weights
from flax_wavlm.porting.save import hf_tensors

State = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "conv_dim": (4,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return tiny_reference("large", tmp_path_factory.mktemp("tiny"), **SMALL, conv_bias=False)


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def encoder(state: State) -> State:
    return {
        name.removeprefix("wavlm."): tensor for name, tensor in state.items() if name.startswith("wavlm.")
    }


def inside(wrapper: str, state: State) -> State:
    """As where submodules are wrapped: the wrapper stands within the names."""
    return {re.sub(r"(layers\.\d+)\.", rf"\1.{wrapper}.", name): tensor for name, tensor in state.items()}


def fairseq(state: State) -> State:
    """The names of fairseq's Wav2VecCtc around a WavLM."""
    return {fairseq_name(name): tensor for name, tensor in state.items()}


NESTED = {
    "model": {"_name": "wav2vec_ctc", "w2v_args": {"model": MICROSOFT_CFG, "task": {"normalize": True}}}
}
AS_NAMESPACE = argparse.Namespace(
    arch="wav2vec_ctc", normalize=True, w2v_args=argparse.Namespace(**MICROSOFT_CFG, other=None)
)
ODD = "net.backbone.encoder_model."  # a name that is in no list

# What people save, of a model with a CTC head of 32 outputs.
WITH_HEAD: dict[str, Callable[[State], Any]] = {
    "DistributedDataParallel": lambda s: under("module.", s),
    "torch.compile": lambda s: under("_orig_mod.", s),
    "both, and a trainer's step": lambda s: {"model": under("module._orig_mod.", s), "step": 3},
    "compiled layers": lambda s: inside("_orig_mod", s),
    "checkpointed FSDP": lambda s: {"net": inside("_fsdp_wrapped_module._checkpoint_wrapped_module", s)},
    "Lightning": lambda s: {
        "epoch": 3,
        "state_dict": under("model.", s) | {"loss.weight": torch.ones(32)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "hyper_parameters": argparse.Namespace(lr=1e-4, name="x", inner=argparse.Namespace(a=[1, None])),
    },
    "any attribute": lambda s: {
        "model_state_dict": under(ODD, encoder(s)) | {f"net.{n}": s[n] for n in s if n.startswith("lm_head")}
    },
    "an optimizer beside it": lambda s: {
        "model": s,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(3)}}},
    },
    "a module that two share": lambda s: under("model.", s) | under("encoder.", encoder(s)),
    "dict in dict": lambda s: {"a": {"b": {"checkpoint": {"weights": s}}}},
    "a wav2vec2 of more layers beside it": lambda s: s | {
        f"teacher.encoder.layers.{i}.{n}.{part}": torch.ones(16)
        for i in range(9)
        for n in ("layer_norm", "final_layer_norm", "attention.q_proj", "attention.k_proj")
        for part in ("weight", "bias")
    },
    "fairseq, its settings nested": lambda s: {"args": None, "cfg": NESTED, "model": fairseq(s)},
    "fairseq, its settings in a Namespace": lambda s: {"args": AS_NAMESPACE, "model": fairseq(s)},
    "fairseq's names without settings": lambda s: {"model": under("module.", fairseq(s))},
}  # fmt: skip
WITHOUT_HEAD: dict[str, Callable[[State], Any]] = {
    "SpeechBrain's wavlm.ckpt": lambda s: under("model.", encoder(s)),
    "SpeechBrain's model.ckpt": lambda s: under("0.wav2vec2.model.", encoder(s))
    | {"1.linear.w.weight": torch.ones(2, 2)},
    "s3prl": lambda s: {
        "Upstream": under("model.", encoder(s)),
        "Downstream": {"model.linear.weight": torch.ones(2, 2)},
        "Args": argparse.Namespace(upstream="wavlm"),
    },
}  # fmt: skip


def opened(content: Any, tiny: Reference, folder: Path, *, config: bool = True) -> PretrainedWeights:
    folder.mkdir(exist_ok=True)
    if config:
        (folder / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    torch.save(content, folder / "weights.ckpt")
    return open_weights(folder / "weights.ckpt")


def assert_same(weights: PretrainedWeights, state: State) -> None:
    """Each tensor, bit for bit, and no other."""
    assert set(weights.tensors) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(weights.tensors[name].read(), tensor.numpy(), err_msg=name)


@pytest.mark.parametrize("kind", [*WITH_HEAD, *WITHOUT_HEAD])
def test_the_same_tensors_as_alone(kind: str, tiny: Reference, tmp_path: Path) -> None:
    state = dict(tiny.model.state_dict())
    weights = opened((WITH_HEAD | WITHOUT_HEAD)[kind](state), tiny, tmp_path)
    if kind in WITHOUT_HEAD:
        state = {name: tensor for name, tensor in state.items() if name.startswith("wavlm.")}
    assert_same(weights, state)
    assert weights.config.vocab_size == 32
    settled = ("num_buckets", "max_bucket_distance", "hidden_size", "num_hidden_layers", "conv_dim")
    assert all(getattr(weights.config, name) == getattr(tiny.config, name) for name in settled)
    if "settings" in kind and "without" not in kind:
        assert weights.do_normalize is True


@pytest.mark.slow
def test_the_logits_are_the_unwrapped_models(tiny: Reference, tmp_path: Path) -> None:
    """Once through the whole way: a Lightning checkpoint of a module under an odd name."""
    opened(WITH_HEAD["any attribute"](dict(tiny.model.state_dict())), tiny, tmp_path)
    clip = np.random.default_rng(0).normal(size=(1, 4000)).astype(np.float32)
    with torch.no_grad():
        expected = tiny.model(torch.from_numpy(clip)).logits.numpy()
    np.testing.assert_allclose(load_model(tmp_path / "weights.ckpt")(clip).logits, expected, atol=2e-5)


def test_a_folder_of_compiled_weights(tiny: Reference, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    state = dict(tiny.model.state_dict())
    safetensors.torch.save_file(under("_orig_mod.model.", state), tmp_path / "model.safetensors")
    assert_same(open_weights(tmp_path), state)


def test_a_head_of_another_width_than_the_config_beside(tiny: Reference, tmp_path: Path) -> None:
    """The file beside is the pretrained encoder's; the head says its own width."""
    state = dict(tiny.model.state_dict())
    state |= {"lm_head.weight": torch.ones(50, 16), "lm_head.bias": torch.ones(50)}
    assert opened({"state_dict": state}, tiny, tmp_path).config.vocab_size == 50


def test_a_config_json_of_a_trainers_is_no_models(tiny: Reference, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"lr": 0.1}')
    weights = opened(dict(tiny.model.state_dict()), tiny, tmp_path, config=False)
    assert (weights.config.hidden_size, weights.config.vocab_size) == (16, 32)


HEADS = {
    "ForSequenceClassification": ("projector (2)", "classifier (2)", "layer_weights (1)"),
    "ForAudioFrameClassification": ("classifier (2)", "layer_weights (1)"),
    "ForXVector": ("projector (2)", "classifier (2)", "tdnn (", "objective (1)", "feature_extractor (2)"),
}


@pytest.mark.parametrize("task", HEADS)
def test_heads_of_other_tasks_are_named(task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The encoder alone is loaded, as transformers' WavLMForCTC does it."""
    config = transformers.WavLMConfig(
        **SMALL | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "num_buckets": 64},
        use_weighted_layer_sum=True,
        classifier_proj_size=4,
        tdnn_dim=(4, 4, 4, 4, 8),
        xvector_output_dim=4,
    )
    model = getattr(transformers, f"WavLM{task}")(config)
    model.save_pretrained(tmp_path)
    weights = open_weights(tmp_path)
    assert not weights.has_head
    assert all(name in caplog.text for name in HEADS[task]), caplog.text
    expected = {n: t for n, t in model.state_dict().items() if n.startswith("wavlm.")}
    ours = hf_tensors(weights.config, split(load_model(weights))[1])
    assert all(np.array_equal(ours[name], tensor.numpy()) for name, tensor in expected.items())


def test_what_is_left_of_pre_training_is_named(
    tiny: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = {"quantizer.vars": 3, "project_q.weight": 2, "project_hid.bias": 2, "final_proj.weight": 2}
    state = encoder(dict(tiny.model.state_dict()))
    extra = {name: torch.ones(2) for name in [*left, "label_embs_concat"]}
    weights = opened({"cfg": MICROSOFT_CFG | {"normalize": True}, "model": state | extra}, tiny, tmp_path)
    assert_same(weights, under("wavlm.", state))
    assert all(f"{name.partition('.')[0]} (1)" in caplog.text.replace("model.", "") for name in extra)


# --- What cannot be told apart, or is no WavLM --------------------------------------------------------------


def test_two_that_differ_are_refused(tiny: Reference, tmp_path: Path) -> None:
    state = encoder(dict(tiny.model.state_dict()))
    other = {name: tensor + 1 for name, tensor in state.items()}
    with refused(r"holds 2 WavLMs that differ, under 'student\.', 'teacher\.'"):
        opened(under("student.", state) | under("teacher.", other), tiny, tmp_path)


@pytest.mark.parametrize("content", ["whole", "alone"])
def test_an_adapter_is_to_be_merged_first(content: str, tiny: Reference, tmp_path: Path) -> None:
    state = under("base_model.model.", dict(tiny.model.state_dict()))
    layer = "base_model.model.wavlm.encoder.layers.0.attention.q_proj"
    adapter = {f"{layer}.lora_A.default.weight": torch.ones(2, 16)}
    if content == "whole":
        adapter |= state | {f"{layer}.base_layer.weight": state.pop(f"{layer}.weight")}
    with refused("holds an adapter", do=r"merge_and_unload\(\)"):
        opened(adapter, tiny, tmp_path)


def test_a_folder_of_peft(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base"}))
    (tmp_path / "adapter_model.safetensors").touch()
    with refused("holds an adapter", do=r"from_pretrained\('me/base'\).*merge_and_unload"):
        open_weights(tmp_path)


@pytest.mark.parametrize("place", ["Namespace", "a list in a Namespace", "a Namespace's constructor"])
def test_a_namespace_runs_nothing(place: str, tiny: Reference, tmp_path: Path) -> None:
    """argparse.Namespace is allowed; what lies in it is looked at as closely as before."""
    ran = tmp_path / "ran"
    made = RunsCode(ran)
    bad: Any = argparse.Namespace(lr=[made] if "list" in place else made)
    if "constructor" in place:

        class Calls:
            def __reduce__(self) -> tuple[Any, ...]:
                return argparse.Namespace, (made,)

        bad = Calls()
    state = under("model.", dict(tiny.model.state_dict()))
    with refused("loaded safely"):
        opened({"state_dict": state, "hyper_parameters": bad}, tiny, tmp_path)
    assert not ran.exists()


def module(folder: Path) -> Path:
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    return folder / "module.pt"


def torchscript(folder: Path) -> Path:
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "script.pt")
    return folder / "script.pt"


def with_a_path(folder: Path) -> Path:
    torch.save({"state_dict": {"a": torch.ones(1)}, "path": folder}, folder / "path.ckpt")
    return folder / "path.ckpt"


def cut(folder: Path) -> Path:
    data = with_a_path(folder).read_bytes()
    (folder / "cut.ckpt").write_bytes(data[: len(data) // 2])
    return folder / "cut.ckpt"


@pytest.mark.parametrize(
    ("make", "problem", "do"),
    [
        (module, r"whole model with its code \(torch\.nn\.", r"state_dict\(\)"),
        (torchscript, "TorchScript", r"state_dict\(\)"),
        (with_a_path, r"holds pathlib\.\w+, which is no tensor", r"state_dict\(\)"),
        (cut, "RuntimeError", "download it again"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_refuses_in_our_words(
    make: Callable[[Path], Path], problem: str, do: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        open_weights(make(tmp_path))
    Parts(problem, do=do).check(raised.value)
    assert not re.search(r"weights_only|add_safe_globals|\x1b|pip install", str(raised.value))

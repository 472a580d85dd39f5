"""Checkpoints that are damaged, unsafe, of another architecture, or in the way of what is to be written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from helpers.bad_input import NOISE, TEN_MINUTES, Case, check, each, encoded
from helpers.errors import Parts
from helpers.permissions import without_roots_rights
from helpers.pickles import RunsCode
from helpers.reference import Reference
from helpers.spellings import MICROSOFT_CFG

from flax_wavlm.porting.convert import convert
from flax_wavlm.porting.load import load_model
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.training.export import export_run


def edited(
    change: Callable[[dict[str, torch.Tensor]], object], **config: Any
) -> Callable[[Path, Reference], Any]:
    """`load_model` of the tiny checkpoint with other tensors or another config.json."""

    def give(folder: Path, tiny: Reference) -> Any:
        state = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
        change(state)
        safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        values = json.loads((tiny.folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | config))
        return load_model(folder)

    return give


def damaged(damage: Callable[[Path], object], use: Callable[[Path], Any]) -> Callable[[Path, Reference], Any]:
    """An entry point that uses a copy of the tiny checkpoint's folder, after `damage(copy)`."""

    def give(folder: Path, tiny: Reference) -> Any:
        copy = Path(shutil.copytree(tiny.folder, folder / "copy"))
        damage(copy)
        with without_roots_rights():
            return use(copy)

    return give


def other_model(kind: str) -> Callable[[Path, Reference], Any]:
    """A folder of another architecture, as transformers saves it."""

    def give(folder: Path, tiny: Reference) -> Any:
        config = getattr(transformers, f"{kind}Config")(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(4,) * 7
        )
        getattr(transformers, f"{kind}ForCTC")(config).save_pretrained(folder)
        return load_model(folder)

    return give


def pickled(name: str, *, index: bool = False) -> Callable[[Path, Reference], Any]:
    """A pickle that would run code, under this name, and under an index."""

    def give(folder: Path, tiny: Reference) -> Any:
        (folder / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
        torch.save({"lm_head.bias": RunsCode(folder / "ran")}, folder / name)
        if index:
            content = json.dumps({"weight_map": {"lm_head.bias": name}})
            (folder / "pytorch_model.bin.index.json").write_text(content)
        try:
            return load_model(folder if name.endswith(".bin") else folder / name)
        finally:
            assert not (folder / "ran").exists()

    return give


def microsoft(**changes: Any) -> Callable[[Path, Reference], Any]:
    """Microsoft's .pt with these values in its cfg; a value of None is left out of it."""
    cfg = MICROSOFT_CFG | {"conv_pos_groups": 1, "num_buckets": 320, "max_distance": 800, "normalize": True}
    cfg |= changes

    def give(folder: Path, tiny: Reference) -> Any:
        kept = {name: value for name, value in cfg.items() if value is not None}
        torch.save({"cfg": kept, "model": {"mask_emb": torch.ones(16)}}, folder / "WavLM.pt")
        return load_model(folder / "WavLM.pt")

    return give


def state_dict(content: Any) -> Callable[[Path, Reference], Any]:
    """A pickle of this, with no config.json beside it."""

    def give(folder: Path, tiny: Reference) -> Any:
        torch.save(content, folder / "weights.pth")
        return load_model(folder / "weights.pth")

    return give


def listless(folder: Path) -> None:
    folder.chmod(0o300)
    try:
        with without_roots_rights():
            load_model(folder)
    finally:
        folder.chmod(0o700)


def index(**weight_map: Any) -> Callable[[Path, Reference], Any]:
    """A folder whose index of safetensors names these shards."""

    def give(folder: Path, tiny: Reference) -> Any:
        (folder / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return load_model(folder)

    return give


def widen(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"é": 32}))


def rewrite(name: str, **values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        before = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(before | values))

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def flip_header(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[20] ^= 0x80
    (folder / "model.safetensors").write_bytes(data)


def poison(state: dict[str, torch.Tensor]) -> None:
    state["wavlm.encoder.layer_norm.weight"][3] = float("nan")


def quantise(state: dict[str, torch.Tensor]) -> None:
    name = "wavlm.encoder.layers.0.feed_forward.output_dense.weight"
    state[name] = state[name].to(torch.int8)


def nothing(folder: Path) -> None:
    pass


def transcribe_one(tiny: Reference, folder: Path, audio: bytes, **settings: float) -> None:
    (folder / "clip.wav").write_bytes(audio)
    recogniser = Recogniser.from_pretrained(tiny.folder)
    (transcript,) = recogniser.transcribe_files([folder / "clip.wav"], **settings)
    if transcript.error is not None:
        raise transcript.error


CASES = [
    Case(
        "a missing tensor",
        edited(lambda state: state.pop("wavlm.encoder.layer_norm.bias")),
        error=Parts(r"1 tensors that the model needs are missing: wavlm\.encoder\.layer_norm\.bias$"),
    ),
    Case(
        "a tensor of the wrong shape",
        edited(lambda state: state.update({"lm_head.bias": torch.ones(31)})),
        error=Parts(r"1 tensors have the wrong shape: lm_head\.bias is \[31\], expected \[32\]$"),
    ),
    Case(
        "a tensor that no WavLM has",
        edited(lambda state: state.update({"wavlm.encoder.gate": torch.ones(2)})),
        error=Parts(r"1 tensors have no place in the model: wavlm\.encoder\.gate$"),
    ),
    Case(
        "weights with NaN",
        edited(poison),
        error=Parts(r"holds NaN or Inf", field="wavlm.encoder.layer_norm.weight"),
    ),
    Case(
        "quantised weights",
        edited(quantise),
        error=Parts(r"type I8: .*output_dense\.weight$", where=r"model\.safetensors$", expected="one of F32"),
    ),
    Case(
        "a config with another number of layers",
        edited(lambda state: None, num_hidden_layers=4),
        error=Parts(r"do not fit the configuration: 38 tensors that the model needs are missing"),
    ),
    Case(
        "a config with another width",
        edited(lambda state: None, intermediate_size=95),
        error=Parts(r"tensors have the wrong shape: .*intermediate_dense"),
    ),
    Case(
        "a wav2vec2 folder",
        other_model("Wav2Vec2"),
        error=r"config\.json: model_type is 'wav2vec2', expected 'wavlm'",
    ),
    Case(
        "a HuBERT folder",
        other_model("Hubert"),
        error=r"config\.json: model_type is 'hubert', expected 'wavlm'",
    ),
    Case(
        "a truncated safetensors file",
        damaged(cut, load_model),
        error=Parts(r"not a whole safetensors file", where=r"model\.safetensors$"),
    ),
    Case(
        "a flipped bit in safetensors' header",
        damaged(flip_header, load_model),
        error=Parts(r"not a whole safetensors file", where=r"model\.safetensors$"),
    ),
    Case(
        "a pickle that would run code",
        pickled("pytorch_model.bin"),
        error=Parts(r"not a checkpoint that can be loaded safely", where=r"pytorch_model\.bin$"),
    ),
    Case(
        "a .pt that would run code",
        pickled("WavLM.pt"),
        error=Parts(r"not a checkpoint that can be loaded safely", where=r"WavLM\.pt$"),
    ),
    Case(
        "a shard that would run code",
        pickled("pytorch_model-1.bin", index=True),
        error=Parts(r"not a checkpoint that can be loaded safely", where=r"pytorch_model-1\.bin$"),
    ),
    Case(
        "Microsoft's .pt with a word for a number",
        microsoft(encoder_layers="many"),
        error=Parts(
            r"'cfg' holds a value of another kind \(invalid literal for int\(\)", where=r"WavLM\.pt$"
        ),
    ),
    Case(
        "Microsoft's .pt with a width that cannot be",
        microsoft(encoder_embed_dim=7),
        error=r"WavLM\.pt: .*num_attention_heads is 2, expected a divisor",
    ),
    Case(
        "Microsoft's .pt with half a cfg",
        microsoft(conv_bias=None),
        error=Parts(r"'cfg' lacks 'conv_bias'", where=r"WavLM\.pt$"),
    ),
    Case(
        "a pickle of numbered tensors",
        state_dict({0: torch.ones(2)}),
        error=Parts(r"none of its 1 tensors is a WavLM's encoder: 0$", where=r"weights\.pth$"),
    ),
    Case(
        "a joint projection of ten rows",
        state_dict({"encoder.transformer.layers.0.attention.attention.in_proj_bias": torch.ones(10)}),
        error=Parts(found=[10], expected="query, key and value joined"),
    ),
    Case(
        "a state dict of something else",
        state_dict({"encoder.layers.0.fc1.weight": torch.ones(2, 2)}),
        error=Parts(r"0 convolutions", where=r"weights\.pth$", do=r"put its config\.json beside it"),
    ),
    Case(
        "a pickle of a list",
        state_dict([torch.ones(2)]),
        error=Parts(r"holds a list", where=r"weights\.pth$", expected="a dict"),
    ),
    Case(
        "a folder that cannot be listed",
        lambda folder, tiny: listless(folder),
        error=Parts(r"cannot be read \(Permission denied\)"),
    ),
    Case(
        "a conversion to a name too long for the system",
        lambda folder, tiny: convert(tiny.folder, folder / ("a" * 5000)),
        error=Parts(r"cannot be read \(File name too long\)"),
    ),
    Case(
        "a shard that is missing",
        index(a="model-1.safetensors"),
        error=Parts(r"no such file", where=r"model-1\.safetensors$"),
    ),
    Case(
        "a shard outside the folder",
        index(a="../model.safetensors"),
        error=Parts(field="weight_map", found="../model.safetensors", expected="a file of the same folder"),
    ),
    Case(
        "a shard that is the index itself",
        index(a="model.safetensors.index.json"),
        error=Parts(field="weight_map", found="model.safetensors.index.json"),
    ),
    Case(
        "numbers and names for shards",
        index(a=1, b="x.bin", c=[2]),
        error=Parts(field="weight_map", found=1, expected="a file"),
    ),
    Case(
        "a folder without weights",
        damaged(lambda folder: (folder / "model.safetensors").unlink(), load_model),
        error=Parts(r"holds no weights, but added_tokens\.json, config\.json", where="copy$"),
    ),
    Case(
        "a config that is cut off",
        damaged(lambda folder: (folder / "config.json").write_text('{"model_type'), load_model),
        error=Parts(r"not JSON", where=r"config\.json$"),
    ),
    Case(
        "a config without permission",
        damaged(lambda folder: (folder / "config.json").chmod(0), load_model),
        error=Parts(r"cannot be read \(Permission denied\)", where=r"config\.json$"),
    ),
    Case(
        "weights without permission",
        damaged(lambda folder: (folder / "model.safetensors").chmod(0), load_model),
        error=Parts(r"cannot be read \(Permission denied\)", where=r"model\.safetensors$"),
    ),
    Case(
        "a config with a dropout of 7",
        damaged(rewrite("config.json", layerdrop=7), load_model),
        error=r"config\.json: layerdrop is 7\.0, expected between 0 and 1",
    ),
    Case(
        "a config with an Inf",
        damaged(rewrite("config.json", layer_norm_eps=float("inf")), load_model),
        error=r"config\.json: layer_norm_eps is inf, expected a finite number",
    ),
    Case(
        "a path that does not exist",
        lambda folder, tiny: load_model(folder / "no"),
        error=Parts(r"no such file or folder", where="/no$", expected="hub id"),
    ),
    Case(
        "the home folder of nobody",
        lambda folder, tiny: load_model("~no-such-user/model"),
        error=Parts(r"no such file or folder", where="^~no-such-user/model$"),
    ),
    Case(
        "no name",
        lambda folder, tiny: Recogniser.from_pretrained(""),
        error=Parts(r"name of a checkpoint is empty"),
    ),
    Case(
        "an unknown hub id, offline",
        lambda folder, tiny: load_model("nobody/no-such-model"),
        error=Parts(r"no such file or folder here", where="^nobody/no-such-model$", do="HF_HUB_OFFLINE"),
    ),
    Case(
        "a tokenizer wider than the head",
        damaged(widen, Recogniser.from_pretrained),
        error=r"the tokenizer has 33 tokens, expected the 32 of the CTC head",
    ),
    Case(
        "a checkpoint without a vocabulary",
        damaged(lambda folder: (folder / "vocab.json").unlink(), Recogniser.from_pretrained),
        error=r"copy: has no vocab\.json",
    ),
    Case(
        "a vocabulary with a gap",
        damaged(rewrite("vocab.json", a=99), Recogniser.from_pretrained),
        error=Parts(r"missing, repeated or too high", found=[0, 99]),
    ),
    Case(
        "a preprocessor for 8 kHz",
        damaged(rewrite("preprocessor_config.json", sampling_rate=8000), Recogniser.from_pretrained),
        error=Parts(where=r"preprocessor_config\.json$", field="sampling_rate", found=8000, expected="16000"),
    ),
    Case(
        "a checkpoint converted into itself",
        damaged(nothing, lambda folder: convert(folder, folder)),
        error=Parts(r"is the source's own folder", where="copy$"),
    ),
    Case(
        "a folder that is no run",
        lambda folder, tiny: export_run(folder, folder / "out"),
        error=r"has no checkpoints/, so it is not the workdir of a run",
    ),
    Case(
        "a longer recording than is allowed",
        lambda folder, tiny: transcribe_one(tiny, folder, TEN_MINUTES, max_seconds=60.0),
        error=r"clip\.wav: 600\.0 s or more, expected at most 60 s",
    ),
    Case(
        "less than a frame to transcribe",
        lambda folder, tiny: transcribe_one(tiny, folder, encoded(NOISE[:399])),
        error=r"clip\.wav: 399 samples at 16 kHz, expected at least 400",
    ),
    Case(
        "text to transcribe",
        lambda folder, tiny: transcribe_one(tiny, folder, b"not audio"),
        error=Parts(r"libsndfile cannot decode it", where=r"clip\.wav$"),
    ),
]


@each(CASES)
def test_bad_checkpoint(
    case: Case,
    tiny: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    check(case, tiny, tmp_path, caplog, capfd)

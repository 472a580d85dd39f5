"""Converting a checkpoint, and the proof of it: it passes on what is right and fails on what is not."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused
from helpers.reference import Reference
from safetensors.numpy import load_file, save_file

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import merge, split
from flax_wavlm.porting import convert as convert_module
from flax_wavlm.porting.convert import Conversion, convert
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.porting.save import save_model
from flax_wavlm.porting.verify import Check, speech_like, verify

SECOND = speech_like(1.0)  # enough where the check is to fail


@pytest.fixture
def conversion(large_reference: Reference, tmp_path: Path) -> Conversion:
    return convert(large_reference.folder, tmp_path / "converted")


def verdicts(checks: list[Check]) -> dict[str, bool]:
    """Keyed by what was compared: "tensors", "logits", "hidden"."""
    return {check.what.split()[0]: check.passed for check in checks}


def test_both_kinds_pass(reference, tmp_path):
    checks = verify(convert(reference.folder, tmp_path / "converted"))
    assert verdicts(checks) == {"tensors": True, "logits": True, "hidden": True}, checks


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("wavlm.feature_extractor.conv_layers.3.conv.weight", 0.3),
        ("wavlm.encoder.layers.0.attention.rel_attn_embed.weight", 0.3),
        ("wavlm.encoder.layers.2.feed_forward.output_dense.bias", 0.3),
        ("lm_head.weight", np.nan),
    ],
)
def test_a_corrupted_weight_fails(conversion, name, change):
    weights = load_file(conversion.folder / "model.safetensors")
    weights[name] = weights[name].copy()
    weights[name].flat[5] += change
    save_file(weights, conversion.folder / "model.safetensors", metadata={"format": "pt"})
    checks = verify(conversion, SECOND)
    assert verdicts(checks) == {"tensors": False, "logits": False, "hidden": True}
    assert f"1 of {len(weights)} are wrong: {name} differs" in checks[0].found


def test_a_swapped_bit_fails(conversion):
    """The last bit of one weight changes no logit that anyone could see, and yet it is another model."""
    weights = load_file(conversion.folder / "model.safetensors")
    weights["lm_head.bias"] = np.nextafter(weights["lm_head.bias"], np.float32(np.inf))
    save_file(weights, conversion.folder / "model.safetensors", metadata={"format": "pt"})
    assert verdicts(verify(conversion, SECOND)) == {"tensors": False, "logits": True, "hidden": True}


def test_a_wrong_model_fails(conversion):
    """Both of transformers' readings are right, and ours is not: a wrong port of the computation."""
    wrong = conversion.model.config.replace(layer_norm_eps=0.1)
    conversion = conversion._replace(model=merge(structure(wrong)[0], split(conversion.model)[1]))
    assert verdicts(verify(conversion, SECOND)) == {"tensors": True, "logits": False, "hidden": False}


def test_tensors_that_are_too_many_or_too_few_fail(conversion):
    """transformers would make the missing one anew; the check must not come so far."""
    weights = conversion.weights
    fewer = {name: tensor for name, tensor in weights.tensors.items() if name != "lm_head.bias"}
    more = {**weights.tensors, "lm_head.scale": weights.tensors["lm_head.bias"]}
    for tensors, found in (
        (fewer, "lm_head.bias was not there"),
        (more, "lm_head.scale is missing"),
    ):
        changed = conversion._replace(weights=dataclasses.replace(weights, tensors=tensors))
        check = verify(changed, SECOND)[0]
        assert not check.passed
        assert found in check.found


def test_the_users_clip(conversion, large_reference):
    long = np.concatenate([speech_like(10), np.full(SAMPLE_RATE, np.nan, np.float32)])
    assert all(check.passed for check in verify(conversion, long))  # the first 10 s alone are heard
    with refused("399 samples", field="clip", expected="at least 400"):
        verify(conversion, np.zeros(399, np.int16))


def test_the_signal_is_always_the_same():
    signal = speech_like()
    assert signal.dtype == np.float32
    assert signal.shape == (64_000,)
    assert np.array_equal(signal, speech_like())
    assert 0.1 < np.abs(signal).max() < 1


def test_an_encoder_gets_a_head(large_reference, tmp_path, caplog):
    large_reference.model.wavlm.save_pretrained(tmp_path / "encoder")
    conversion = convert(tmp_path / "encoder", tmp_path / "converted")
    assert not conversion.weights.has_head
    assert "initialised at random: lm_head.bias, lm_head.weight" in caplog.text
    checks = verify(conversion, SECOND)
    assert all(check.passed for check in checks), checks
    assert checks[0].found.endswith("equal, 2 new")


def test_files_beside_the_weights_come_along(large_reference, tmp_path):
    source = tmp_path / "source"
    save_model(load_model(large_reference.folder), source)
    CTCTokenizer.from_texts(["abc"]).save(source)
    Preprocessor(do_normalize=False, return_attention_mask=True).save(source)
    (source / "training_args.bin").write_bytes(b"not of use")
    folder = convert(source, tmp_path / "converted").folder
    copied = {"vocab.json", "tokenizer_config.json", "preprocessor_config.json"}
    assert copied <= {file.name for file in folder.iterdir()}
    assert not (folder / "training_args.bin").exists()
    for name in copied:
        assert (folder / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("normalises", [True, False])
def test_microsofts_normalisation_is_written_down(large_reference, tmp_path, monkeypatch, normalises):
    """tests/porting/test_port.py reads the format itself."""
    opened = dataclasses.replace(open_weights(large_reference.folder), do_normalize=normalises)
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "open_weights", lambda source: opened)
        folder = convert("WavLM-Large.pt", tmp_path / "converted").folder
    assert Preprocessor.from_pretrained(folder) == Preprocessor(normalises, return_attention_mask=True)


def test_what_is_there_is_not_lost(conversion, large_reference, tmp_path):
    with refused("holds weights already", field="overwrite", where=str(conversion.folder)):
        convert(large_reference.folder, conversion.folder)
    convert(large_reference.folder, conversion.folder, overwrite=True)

    for source in (conversion.folder, conversion.folder / "model.safetensors"):
        before = (conversion.folder / "model.safetensors").read_bytes()
        with refused("the source's own folder"):
            convert(source, conversion.folder, overwrite=True)
        assert (conversion.folder / "model.safetensors").read_bytes() == before

    with refused("is a file"):
        convert(large_reference.folder, conversion.folder / "config.json")
    with refused("cannot be written"):
        convert(large_reference.folder, conversion.folder / "config.json" / "below")


def test_without_torch(conversion, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with refused("PyTorch is not installed", do=r"pip install 'flax-wavlm\[torch\]'"):
        verify(conversion)


def test_a_folder_that_transformers_cannot_load(conversion):
    config = json.loads((conversion.folder / "config.json").read_text())
    (conversion.folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 95}))
    with refused("WavLMForCTC", where=str(conversion.folder)):
        verify(conversion)

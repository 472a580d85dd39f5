"""What people name in place of weights: one line that says what to name instead."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.errors import Parts, refused
from helpers.reference import Reference, tiny_reference

from flax_wavlm.errors import UserError, reason
from flax_wavlm.porting.mistaken import missing_vocabulary
from flax_wavlm.porting.pretrained import open_weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return tiny_reference("large", tmp_path_factory.mktemp("tiny"), conv_dim=(4,) * 7, **small)


@pytest.fixture
def run(tiny: Reference, tmp_path: Path) -> Path:
    """A run's workdir, without what lies in its checkpoints."""
    folder = tmp_path / "run"
    for name in ("checkpoints/200/state/d", "checkpoints/400", "processor", "predictions"):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text('{"model": {}, "data": {}, "train": {}, "optim": {}}')
    (folder / "metrics.jsonl").touch()
    (folder / "processor" / "vocab.json").write_text("{}")
    shutil.copytree(tiny.folder, folder / "export")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *(".", "checkpoints", "checkpoints/200", "checkpoints/200/state", "processor", "predictions"),
        *("config.json", "metrics.jsonl", "processor/vocab.json", "export/config.json", "not-yet"),
    ],
)
def test_a_part_of_a_run(name: str, run: Path) -> None:
    with refused("run", do=f"give its export, {run}/export"):
        open_weights(run / name)
    shutil.rmtree(run / "export")
    step = r" --step 200" if "200" in name else ""
    with refused(do=rf"^run flax-wavlm export --workdir {run} --output FOLDER{step} and give FOLDER$"):
        open_weights(run / name)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with refused(do="saved no checkpoint yet"):
        open_weights(run if "checkpoints" in name else run / name)


def test_the_export_itself_loads(run: Path) -> None:
    assert open_weights(run / "export").has_head
    assert open_weights(run / "export" / "model.safetensors").has_head


def test_a_file_beside_the_weights_and_the_folders_above(tiny: Reference, tmp_path: Path) -> None:
    hub = tmp_path / "models--me--tuned"
    snapshot = hub / "snapshots" / "0123abc"
    shutil.copytree(tiny.folder, snapshot)
    (hub / "refs").mkdir()
    for name in ("config.json", "README.md"):
        (snapshot / name).touch()
        with refused("is no file of weights", do=f"give its folder, {snapshot}"):
            open_weights(snapshot / name)
    for above in (snapshot.parent, hub, tmp_path):
        with refused("folders in it do", where=str(above), do=f"give it: {snapshot}"):
            open_weights(above)
    shutil.copytree(tiny.folder, tmp_path / "checkpoint-500")
    with refused(do=rf"give one of them: {tmp_path}/checkpoint-500, {snapshot}"):
        open_weights(tmp_path)


def test_one_shard_of_several(tiny: Reference, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path, max_shard_size="5KB")
    shard = next(iter(sorted(tmp_path.glob("model-*.safetensors"))))
    with refused("one of several files", do=f"give its folder, {tmp_path}"):
        open_weights(shard)
    with refused(do=f"give its folder, {tmp_path}"):
        open_weights(tmp_path / "model.safetensors.index.json")


BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/v1\n": Parts("Git LFS pointer", do="git lfs pull"),
    b"\xef\xbb\xbf\n <!DOCTYPE html><html>denied</html>": Parts("web page", do="download"),
    b"<html>": Parts("web page", do="download"),
    b"Entry not found": Parts("web service's error", do="download"),
    b'{"error":"Access to model x is restricted"}': Parts("web service's error", do="download"),
    b"": Parts("empty file", do="download"),
    b"\x89HDF\r\n\x1a\n": Parts("TensorFlow or Keras"),
    b"\x1f\x8b\x08\x00": Parts("gzip", do="unpack"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "wavlm.ckpt"])
def test_what_is_no_weights_by_its_first_bytes(name: str, tiny: Reference, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    for start, parts in BEGINNINGS.items():
        (tmp_path / name).write_bytes(start)
        with pytest.raises(UserError) as raised:
            open_weights(tmp_path / name if name.endswith("ckpt") else tmp_path)
        parts.check(raised.value)
        assert raised.value.where == str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("model.safetensors.incomplete", "half a download"),
        ("model.onnx", "ONNX"),
        ("flax_model.msgpack", "Flax"),
        ("tf_model.h5", "TensorFlow"),
        ("wavlm.ckpt.index", "TensorFlow"),
        ("wavlm.ckpt.data-00000-of-00001", "TensorFlow"),
        ("wavlm.nemo", "NeMo"),
    ],
)
def test_what_is_no_weights_by_its_name(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    for path in (tmp_path / name, tmp_path):  # the file, and a folder that has only that
        with refused(problem, do="."):
            open_weights(path)


def test_a_folder_of_a_state_dict_under_another_name(tiny: Reference, tmp_path: Path) -> None:
    torch.save(tiny.model.state_dict(), tmp_path / "best.pt")
    with refused(r"holds no weights, but best\.pt", do=f"give the file itself: {tmp_path}/best.pt"):
        open_weights(tmp_path)
    assert open_weights(tmp_path / "best.pt").has_head


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("tokenizer.json", "get_vocab"),
        ("dict.ltr.txt", '"pad_token": "<s>"'),
        ("vocab.txt", "write vocab.json"),
        ("other", "copy the tokenizer's files"),
    ],
)
def test_what_lies_in_place_of_a_vocabulary(name: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert advice in missing_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("\x1b[1mIt failed.\x1b[0m Please pip install x. It is late.\nmore", "It failed. It is late."),
        ("set weights_only=False", "ValueError"),
        ("", "ValueError"),
    ],
)
def test_no_advice_of_another_library(said: str, kept: str) -> None:
    assert reason(ValueError(said)) == kept

"""What SECURITY.md promises: no code out of a checkpoint, no path out of its folder, no network unasked."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from helpers.errors import refused
from helpers.pickles import RunsCode
from helpers.reference import Reference, tiny_reference

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.porting.convert import convert
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.verify import speech_like

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    reference = tiny_reference(
        "large",
        tmp_path_factory.mktemp("tiny"),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(4,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'"]).save(reference.folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(reference.folder)
    return reference


# --- No code ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", ["microsoft", "state dict", "folder", "sharded", "disguised"])
def test_no_pickle_runs_code(form: str, zipped: bool, tiny: Reference, tmp_path: Path) -> None:
    """In whatever place of whatever file a pickle lies: among good tensors, in the cfg, in a shard."""
    ran = tmp_path / "ran"
    state = dict(tiny.model.state_dict())
    bad = state | {"lm_head.bias": RunsCode(ran)}
    shutil.copy(tiny.folder / "config.json", tmp_path)
    name, content = {
        "microsoft": ("WavLM.pt", {"cfg": RunsCode(ran), "model": state}),
        "state dict": ("wavlm.pth", bad),
        "folder": ("pytorch_model.bin", bad),
        "sharded": ("pytorch_model-00001-of-00001.bin", bad),
        "disguised": ("model.safetensors", bad),  # a pickle under the safe format's name
    }[form]
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    if form == "sharded":
        weight_map = dict.fromkeys(bad, name)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole_file = form in ("microsoft", "state dict")
    with refused("loaded safely|not a whole safetensors file"):
        load_model(tmp_path / name if whole_file else tmp_path)
    assert not ran.exists()
    if form != "microsoft":  # the control: loaded without care, it does run
        torch.load(io.BytesIO((tmp_path / name).read_bytes()), weights_only=False)
        assert ran.exists()


def test_a_tokenizer_names_no_code_and_no_file(tiny: Reference, tmp_path: Path) -> None:
    """Not by auto_map, which needs trust_remote_code, nor by a vocabulary outside the folder."""
    CTCTokenizer.from_texts(["xyz"]).save(tmp_path / "other")
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "tiny"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {
        "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
        "tokenizer_class": "Evil",
        "vocab_file": str(tmp_path / "other" / "vocab.json"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert CTCTokenizer.from_pretrained(folder).encode("abc") == [0, 1, 2]
    assert not (tmp_path / "ran").exists()


def calls_and_imports() -> Iterator[tuple[Path, ast.AST]]:
    for folder in ("flax_wavlm", "scripts"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                yield file, node


def test_the_source_has_no_way_to_run_data() -> None:
    """No eval or exec, no pickle, YAML or archive reader, no shell; torch.load reads weights only."""
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "subprocess"}
    modules |= {"zipfile", "tarfile", "runpy"}
    loads = 0
    for file, node in calls_and_imports():
        where = f"{file.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            assert not modules & {name.partition(".")[0] for name in named}, where
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert function not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), where
            assert not function.endswith("unpack_archive"), where
            for flag in ("trust_remote_code", "allow_pickle", "shell"):
                assert keywords.get(flag, "False") == "False", where
            if function == "torch.load":
                loads += 1
                assert keywords["weights_only"] == "True", where
            if function in ("np.load", "numpy.load", "yaml.load"):
                pytest.fail(where)
    assert loads == 1


# --- No way out of a folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "ABSOLUTE", "sub/secret.safetensors", "..", ".", ""]
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_no_shard_outside_its_folder(index: str, shard: str, tiny: Reference, tmp_path: Path) -> None:
    """Even where a whole checkpoint lies there, which would load."""
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(tiny.folder / "config.json", folder)
    for place in (tmp_path, folder / "sub"):
        shutil.copy(tiny.folder / "model.safetensors", place / "secret.safetensors")
    name = str(tmp_path / "secret.safetensors") if shard == "ABSOLUTE" else shard
    (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(tiny.model.state_dict(), name)}))
    with refused(field="weight_map", found=name, expected="a file of the same folder"):
        load_model(folder)


def test_the_hubs_cache_consists_of_links(tiny: Reference, tmp_path: Path) -> None:
    """So links must be followed: they are made by who owns the disk, not by who made the checkpoint."""
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(tiny.folder / name)
    assert load_model(tmp_path / "snapshot").config == tiny.config


def test_a_conversion_copies_no_foreign_file(tiny: Reference, tmp_path: Path) -> None:
    """Tokenizer files are copied, and may be links: to JSON of a tokenizer, and to nothing else."""
    secret = tmp_path / "id_rsa"
    secret.write_text("-----BEGIN PRIVATE KEY-----")
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "tiny"))
    (folder / "special_tokens_map.json").symlink_to(secret)
    with refused("not JSON", where=r"special_tokens_map\.json$"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "special_tokens_map.json").exists()


# --- No network ---------------------------------------------------------------------------------------------

# Audit hooks see every connection and every look-up of a name that Python makes, and cannot be taken away.
NO_NETWORK = """
import sys
attempts = []
def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        attempts.append((event, arguments[1:]))
        raise OSError("no network in this test")
sys.addaudithook(no_network)
"""

EVERYTHING = (
    NO_NETWORK
    + """
from pathlib import Path
from flax_wavlm import UserError
from flax_wavlm.porting.convert import convert
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.training.export import export_run
from flax_wavlm.files import local_copy
from flax_wavlm.training.train import train
from flax_wavlm.training.config import *
from flax_wavlm.recognition.recogniser import Recogniser

folder, tiny, hub = map(Path, sys.argv[1:])
result = train(TrainConfig(
    workdir=str(folder / "run"),
    model=ModelSettings(checkpoint=str(tiny)),
    data=DataSettings(corpus="manifest", path=str(folder)),
    train=LoopSettings(batch_size=1, eval_batch_size=1, steps=1, aligner=False),
    optim=OptimSettings(warmup_steps=0),
))
export_run(folder / "run", folder / "exported")
convert(folder / "exported", folder / "converted")
recogniser = Recogniser.from_pretrained(folder / "converted")
assert recogniser.transcribe_files([folder / "clip.wav"], batch_size=1)[0].error is None
recogniser.evaluate(*load_corpus("hub", hub, "train"), name="train", batch_size=1)
assert attempts == [], attempts

try:  # the control: a hub id does ask the network, and is told why there is none
    local_copy("nobody/no-such-model", ["*.json"])
except UserError as error:
    assert "nobody/no-such-model" in str(error)
assert attempts
"""
)


@pytest.mark.chaos  # a whole run in a process of its own
def test_nothing_asks_the_network_unasked(tiny: Reference, tmp_path: Path) -> None:
    """Training, export, conversion, transcription and evaluation, without HF_HUB_OFFLINE."""
    import datasets

    soundfile.write(tmp_path / "clip.wav", speech_like(1.0), 16_000)
    line = json.dumps({"audio_filepath": "clip.wav", "text": "hello"})
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(line)
    audio = {"bytes": (tmp_path / "clip.wav").read_bytes(), "path": "clip.wav"}
    rows = datasets.Dataset.from_dict({"audio": [audio], "text": ["hello"]})
    (tmp_path / "hub").mkdir()
    rows.cast_column("audio", datasets.Audio()).to_parquet(tmp_path / "hub" / "train.parquet")
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    folders = (str(tmp_path), str(tiny.folder), str(tmp_path / "hub"))
    result = in_a_process(EVERYTHING, tmp_path, *folders, XLA_FLAGS=quick)
    assert result.returncode == 0, result.stderr[-3000:]


OFFLINE = (
    NO_NETWORK
    + """
import time
from flax_wavlm import UserError
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
import datasets, huggingface_hub, transformers

for ask in (
    open_weights,
    CTCTokenizer.from_pretrained,
    Preprocessor.from_pretrained,
    lambda name: load_corpus("hub", name, "train"),
):
    begin = time.perf_counter()
    try:
        ask("nobody/nothing-of-this-name")
    except UserError as error:
        assert "nobody/nothing-of-this-name" in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError("found")
    assert time.perf_counter() - begin < 10  # no waiting for a network
assert attempts == [], attempts
"""
)


def test_offline_is_honoured(tmp_path: Path) -> None:
    result = in_a_process(OFFLINE, tmp_path, HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr[-3000:]


def in_a_process(code: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Python on one CPU device, with an empty cache of the hub, and offline only where `variables` say so."""
    dropped = ("XLA_FLAGS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment |= {"HF_HOME": str(folder / "cache"), **variables}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

"""What the commands print, and their exit status. One runs in a process of its own, the others right here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
import transformers
from helpers.commands import run
from helpers.reference import Reference, tiny_reference
from safetensors.numpy import load_file

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.models.parameters import split
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.save import copy_side_files
from flax_wavlm.porting.verify import speech_like
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.state import init_state

SCRIPTS = Path(__file__).parents[2] / "scripts"


def start(script: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs a script in a process of its own, on a single device, as on most machines."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    reference = tiny_reference("large", tmp_path_factory.mktemp("checkpoint"))
    CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'"]).save(reference.folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(reference.folder)
    return reference


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of three clips, of which one says nothing in 10 ms."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for name, samples in (("a", 16_000), ("b", 12_000), ("short", 160)):
        soundfile.write(folder / f"{name}.wav", speech_like()[:samples], 16_000)
        lines.append({"audio_filepath": f"{name}.wav", "text": f"The word {name}", "id": name})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def expected_text(folder: Path, file: Path) -> str:
    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    return pipeline(soundfile.read(file, dtype="float32")[0])["text"]


def test_transcribe(checkpoint, corpus, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF, or so it says")
    result = start("transcribe.py", "--model", checkpoint.folder, corpus / "a.wav", bad, corpus / "b.wav")
    assert result.stdout == "".join(
        f"{file}\t{expected_text(checkpoint.folder, file)}\n" for file in (corpus / "a.wav", corpus / "b.wav")
    )
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert f"{bad}: libsndfile cannot decode it" in errors[0]
    assert errors[1] == "error: 1 of 3 files could not be transcribed"
    assert "Traceback" not in result.stderr
    assert result.returncode == 2


def test_evaluate(checkpoint, corpus, tmp_path):
    predictions = tmp_path / "deep" / "predictions.jsonl"
    flags = ["--model", checkpoint.folder, "--corpus", "manifest", "--data", corpus, "--split", "train"]
    result = run("evaluate", *flags, "--predictions", predictions)
    assert result.status == 0, result.stderr
    figures = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"loss [\d.]+  WER [\d.]+  CER [\d.]+  2 clips  1 skipped", figures)
    assert "short" in result.stdout  # named
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert rows == [
        {
            "id": name,
            "reference": f"the word {name}",
            "hypothesis": expected_text(checkpoint.folder, corpus / f"{name}.wav"),
        }
        for name in "ab"
    ]


def test_evaluate_speaks_of_its_own_flags(checkpoint, tmp_path):
    result = run("evaluate", "--model", checkpoint.folder, "--corpus", "manifest", "--data", tmp_path / "x")
    assert result.status == 2
    assert re.fullmatch(r"error: --data is '.*/x', expected a folder.* --data to FOLDER\n", result.stderr)


ARPA = r"""
\data\
ngram 1=6

\1-grams:
-99	<s>
-1	</s>
-3	<unk>
-0.7	the
-0.7	word
-1.5	a

\end\
"""


@pytest.mark.slow
def test_tune_lm(checkpoint, corpus, tmp_path):
    """What it saves is what evaluate uses by itself, with the same result."""
    model = shutil.copytree(checkpoint.folder, tmp_path / "model")
    lm, words = tmp_path / "words.arpa", tmp_path / "words.txt"
    lm.write_text(ARPA)
    words.write_text("the word\n")
    speech = ["--corpus", "manifest", "--data", corpus, "--split", "train"]
    search = ["--beam", 4, "--hotwords", words]
    result = run("tune-lm", "--model", model, "--lm", lm, *speech, *search, "--save")
    assert result.status == 0, result.stderr
    lines = result.stdout.splitlines()
    pairs = [line for line in lines if re.fullmatch(r"alpha [\d.]+ +beta [-\d.]+ +WER [\d.]+", line)]
    assert len(pairs) > 20
    assert re.fullmatch(rf"greedy WER [\d.]+, the best of {len(pairs)} pairs [\d.]+", lines[-3])
    weights = re.fullmatch(r"(--alpha [\d.]+) (--beta [-\d.]+)", lines[-1])
    assert weights
    evaluated = run("evaluate", "--model", model, *speech, *search).stdout
    assert f"WER {lines[-3].split()[-1]} " in evaluated.splitlines()[-1]
    used = weights[0].replace("--", "").replace(" beta", ", beta")
    assert f"decoding: beam 4, lm.arpa, {used}" in evaluated


def test_convert_and_verify(checkpoint, corpus, tmp_path):
    target = tmp_path / "converted"
    result = run("convert", checkpoint.folder, target, "--verify", "--clip", corpus / "a.wav")
    assert result.status == 0, result.stderr
    lines = result.stdout.splitlines()
    assert f"{checkpoint.folder}: Hugging Face folder, 3 layers of width 64" in lines[0]
    assert "CTC head of 32 outputs" in lines[0]
    assert [line[:4] for line in lines[-4:]] == ["PASS"] * 4
    assert "largest difference" in result.stdout
    assert "Traceback" not in result.stderr

    assert_same_weights(checkpoint.folder, target)


def test_export_pytorch(checkpoint, corpus, tmp_path):
    """A run's folder whose one checkpoint is step 7, made from the weights of `checkpoint`."""
    workdir, output = tmp_path / "run", tmp_path / "exported"
    copy_side_files(checkpoint.folder, make_folder(workdir / "processor"))
    (workdir / "processor" / "config.json").write_text(json.dumps(checkpoint.config.to_hf()))
    (workdir / "config.json").write_text(json.dumps(TrainConfig(name="seven").to_dict()))
    row = {
        "step": 7,
        "epoch": 1.0,
        "split": "test",
        "loss": 1.0,
        "wer": 0.5,
        "cer": 0.5,
        "wer_hf_padded": 0.5,
    }
    (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    state = init_state(split(load_model(checkpoint.folder))[1], {}, optax.sgd(0.1))
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(state._replace(step=jnp.int32(7)), position={}, config={})
    checkpoints.close()

    result = run("export", "--workdir", workdir, "--output", output)
    assert result.status == 0, result.stderr
    assert f"step 7 of {workdir} is in {output}" in result.stdout
    assert_same_weights(checkpoint.folder, output)
    clip = corpus / "a.wav"
    assert expected_text(output, clip) == expected_text(checkpoint.folder, clip)
    assert (output / "README.md").exists()


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)

"""A run's folder to a Hugging Face folder, whatever version began the run."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.reference import tiny_reference
from safetensors.numpy import load_file

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.models.parameters import split
from flax_wavlm.porting.load import load_model
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.export import export_run
from flax_wavlm.training.state import init_state


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoints of steps 1 and 2 hold the same weights; the first has the lower WER."""
    folder = tmp_path_factory.mktemp("run")
    reference = tiny_reference("large", folder / "weights", num_hidden_layers=1)
    CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'"]).save(folder / "processor")
    Preprocessor(do_normalize=True, return_attention_mask=True).save(folder / "processor")
    (folder / "processor" / "config.json").write_text(json.dumps(reference.config.to_hf()))
    state = init_state(split(load_model(reference.folder))[1], {}, optax.sgd(0.1))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(state._replace(step=jnp.int32(step)), position={}, config={})
    rows = [{"step": step, "split": "test", "loss": 1.0, "wer": step / 4, "cer": 0.1} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def export(workdir: Path, config: Any, output: Path) -> int:
    (workdir / "config.json").write_text(json.dumps(config))
    return export_run(workdir, output).step


def test_best_is_exported_with_its_card(workdir: Path, tmp_path: Path) -> None:
    config = TrainConfig(name="tiny")
    config.data.corpus, config.model.checkpoint = "timit", "microsoft/wavlm-base-plus"
    assert export(workdir, config.to_dict(), tmp_path / "export") == 1
    card = huggingface_hub.ModelCard.load(tmp_path / "export" / "README.md")
    assert card.data.model_name == "tiny"
    assert card.data.base_model == "microsoft/wavlm-base-plus"
    assert "WER 0.2500" in card.text
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "export", workdir / "weights")
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_config_that_lacks_fields_is_that_of_an_older_version(workdir: Path, tmp_path: Path) -> None:
    """No field at all: the model's name is then the folder's, and it began with random weights."""
    assert export(workdir, {}, tmp_path / "export") == 1
    card = (tmp_path / "export" / "README.md").read_text()
    assert f"# {workdir.name}\n" in card
    assert "from random weights" in card
    assert "| `optim.learning_rate`" in card


def test_config_that_is_damaged(workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model is 'large', expected an object") as raised:
        export(workdir, {"model": "large"}, tmp_path / "export")
    assert raised.value.where == str(workdir / "config.json")

"""Fitting an aligner: what it learns from, what it leaves alone, and that it learns when words are said."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import run
from helpers.errors import refused
from helpers.permissions import without_roots_rights
from helpers.reference import Reference, tiny_reference
from helpers.small_run import small_run

from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.corpora.synthetic import make_corpus
from flax_wavlm.data.corpora.timit import read_timit
from flax_wavlm.data.corpora.utterance import Samples, Utterance
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import split
from flax_wavlm.porting.load import load_model
from flax_wavlm.recognition.aligner import (
    ALIGNER_FILE,
    aligner_log_probs,
    encoder_checksum,
    label_times,
    load_aligner,
    text_to_align,
)
from flax_wavlm.recognition.alignment import align_labels
from flax_wavlm.training import aligner as fitting
from flax_wavlm.training.aligner import Listener, fit_aligner, fit_folder, prior_loss, sample_of
from flax_wavlm.training.train import train

TEXTS = ("ab c", "b", "ca ab", "cab")
RATE = 16_000


def clips_of(count: int, *, seconds: float = 0.7) -> list[Clip]:
    rng = np.random.default_rng(0)
    labels = [np.array([3, 4, 2, 5][: 1 + i % 4], np.int32) for i in range(count)]
    samples = [
        (rng.standard_normal(int(RATE * seconds) + 37 * i) * 2000).astype(np.int16) for i in range(count)
    ]
    return [Clip(str(i), x, y, "abc", "") for i, (x, y) in enumerate(zip(samples, labels, strict=True))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    tokenizer = CTCTokenizer.from_texts(TEXTS)
    folder = tmp_path_factory.mktemp("model")
    reference = tiny_reference(
        "large", folder, num_hidden_layers=1, vocab_size=tokenizer.size, pad_token_id=tokenizer.blank_id
    )
    tokenizer.save(folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(folder)
    return reference


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LEAST_STEPS", 3)
    monkeypatch.setattr(fitting, "MOST_EPOCHS", 1)
    monkeypatch.setattr(fitting, "BUCKETS", 1)


def listener(reference: Reference, **changes: Any) -> Listener:
    params = split(load_model(reference.folder))[1]
    return Listener(
        dataclasses.replace(reference.config, **changes),
        params,
        blank_id=1,
        delimiter_id=2,
        do_normalize=True,
    )


def assert_same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def utterances(*texts: str) -> list[Utterance]:
    noise = [clip.samples for clip in clips_of(len(texts))]

    def audio(i: int) -> Callable[[], Samples]:
        return lambda: Samples(noise[i], RATE)

    return [Utterance(str(i), audio(i), text) for i, text in enumerate(texts)]


# --- Tiny ---------------------------------------------------------------------------------------------------


def test_same_arguments_same_aligner(checkpoint: Reference, quick: None) -> None:
    """Whatever the model's dtype: the aligner is fitted in float32."""
    clips = clips_of(3)
    first, how = fit_aligner(listener(checkpoint), clips)
    assert (how.steps, how.clips) == (3, 3)
    assert all(array.dtype == np.float32 for array in jax.tree.leaves(first))
    assert_same(fit_aligner(listener(checkpoint, dtype="bfloat16"), clips)[0], first)


def test_of_much_speech_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    config, clips = WavLMConfig(), clips_of(10)
    seconds = sum(len(clip.samples) for clip in clips) / RATE
    assert len(sample_of(clips, config, 0)) == 10
    monkeypatch.setattr(fitting, "MOST_SECONDS", seconds / 2)
    chosen = sample_of(clips, config, 0)
    assert 3 <= len(chosen) <= 5
    assert [clip.id for clip in chosen] == [clip.id for clip in sample_of(clips, config, 0)]
    assert [clip.id for clip in chosen] != [clip.id for clip in sample_of(clips, config, 1)]
    monkeypatch.setattr(fitting, "MOST_BYTES", 2 * 36 * 512 * 4)  # of two clips of 0.7 s
    assert len(sample_of(clips, config, 0)) <= 2
    monkeypatch.setattr(fitting, "MOST_BYTES", 1)
    assert len(sample_of(clips, config, 0)) == 1
    with refused("no clip"):
        sample_of([], config, 0)


def test_loss_of_fillers_is_none() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    labels = np.array([[1, 2], [3, 3]])
    loss = jax.jit(functools.partial(prior_loss, blank_id=0))

    def with_filler(scale: float, label: int) -> jax.Array:
        rows, texts = logits * np.array([1, scale], np.float32)[:, None, None], labels.copy()
        texts[1] = label
        batch = {"labels": texts, "label_lengths": np.array([2, 2]), "valid": np.array([True, False])}
        return loss(rows, np.array([6, 6]), batch)

    np.testing.assert_array_equal(with_filler(1.0, 3), with_filler(50.0, 1))


def test_written_into_the_models_folder(
    checkpoint: Reference, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside what is there, which stays; a text that the model cannot write is left out, and named."""
    folder = checkpoint.folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / ALIGNER_FILE).write_bytes(b"half")  # which every other command refuses
    with caplog.at_level("WARNING", "flax_wavlm"):
        file = fit_folder(folder, utterances(*TEXTS, "xyzzy"))
    assert "skipped 1 - text outside the vocabulary: 4" in caplog.text
    assert file == folder / ALIGNER_FILE
    assert {path.name for path in folder.iterdir()} == before.keys() | {ALIGNER_FILE}
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    params = split(load_model(folder))[1]
    assert load_aligner(folder, checkpoint.config, encoder=encoder_checksum(params)) is not None
    file.unlink()


def test_nothing_to_fit_to(checkpoint: Reference, tmp_path: Path) -> None:
    with refused("none of the 1 clips can be used", where="train"):
        fit_folder(checkpoint.folder, utterances("xyzzy"))
    with refused(field="model", found="microsoft/wavlm-large", expected="folder", do="convert"):
        fit_folder(Path("microsoft/wavlm-large"), utterances("ab"))
    (tmp_path / "empty").mkdir()
    with refused("no weights|none of", where="empty"):
        fit_folder(tmp_path / "empty", utterances("ab"))
    checkpoint.folder.chmod(0o555)
    try:
        with without_roots_rights(), refused("cannot be written", where=checkpoint.folder.name):
            fit_folder(checkpoint.folder, utterances("ab"))
    finally:
        checkpoint.folder.chmod(0o755)
    assert not (checkpoint.folder / ALIGNER_FILE).exists()


def test_command(checkpoint: Reference) -> None:
    ended = run("fit-aligner", "--model", "nobody/nothing", "--corpus", "manifest", "--data", "/nowhere")
    assert (ended.status, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("error: --data is '/nowhere'")


# --- A run --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_at_the_end_of_a_run(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes nothing else; after a kill it is the same; a damaged one is fitted again."""
    without = train(small_run(tmp_path, "without"))
    assert not (without.export / ALIGNER_FILE).exists()
    config = small_run(tmp_path, "with")
    config.train.aligner = True
    fitted = train(config)
    assert fitted.best == without.best
    weights = "model.safetensors"
    assert (fitted.export / weights).read_bytes() == (without.export / weights).read_bytes()
    file = fitted.export / ALIGNER_FILE
    first = file.read_bytes()
    for left in (None, b"half"):
        file.unlink()
        if left:
            file.write_bytes(left)
        train(config)
        assert file.read_bytes() == first
    monkeypatch.setattr(fitting, "fit_aligner", None)  # a whole one is kept
    train(config)
    assert file.read_bytes() == first


# --- Words --------------------------------------------------------------------------------------------------


def word_times(file: Path) -> np.ndarray:
    return np.array([line.split()[:2] for line in file.read_text().splitlines()], float) / RATE


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_it_learns_when_words_are_said(
    tmp_path: Path, measured: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 300 clips and their text: no word time is left to read.

    The feature encoder has random weights and hears little: tests/test_demo.py has one that was trained.
    """
    monkeypatch.setattr(fitting, "MOST_EPOCHS", 5)
    corpus = make_corpus(tmp_path / "speech", train_clips=300, test_clips=20)
    for file in (corpus / "TRAIN").rglob("*.WRD"):
        file.unlink()
    train_utterances, _ = read_timit(corpus, "train")
    tokenizer = CTCTokenizer.from_texts([utterance.text.lower() for utterance in train_utterances])
    folder = tmp_path / "model"
    reference = tiny_reference(
        "large",
        folder,
        scale=0.0,
        num_hidden_layers=1,
        conv_dim=(32,) * 7,
        vocab_size=tokenizer.size,
        pad_token_id=tokenizer.blank_id,
    )
    tokenizer.save(folder)
    preprocess = Preprocessor(do_normalize=True, return_attention_mask=True)
    preprocess.save(folder)
    fit_folder(folder, train_utterances)
    model = load_model(folder)
    aligner = load_aligner(folder, reference.config, encoder=encoder_checksum(split(model)[1]))
    assert aligner is not None
    errors = []
    for utterance in read_timit(corpus, "test")[0]:
        assert isinstance(utterance.audio, Path)
        samples = preprocess(read_audio(utterance.audio))[None]
        features = model.features(samples, jnp.array([samples.shape[1]]))
        log_probs = aligner_log_probs(aligner, features, jnp.array([features.shape[1]]))[0]
        text = np.array(tokenizer.encode(tokenizer.normalise(utterance.text)))
        labels = text_to_align(text, tokenizer.delimiter_id)
        frames = align_labels(np.asarray(log_probs), labels, tokenizer.blank_id).frames
        times = label_times(frames, labels, tokenizer.delimiter_id, 0.02)
        blanks = np.flatnonzero(labels == tokenizer.delimiter_id)
        words = np.stack([times[blanks[:-1] + 1, 0], times[blanks[1:] - 1, 1]], axis=1)
        errors.append(np.abs(words - word_times(utterance.audio.with_suffix(".WRD"))))
    found = np.concatenate(errors) * 1000
    median, high = np.median(found), np.percentile(found, 90)
    measured(f"aligner of 300 clips: word boundaries off by {median:.0f} ms, 90th percentile {high:.0f} ms")
    assert median <= 100
    assert high <= 300

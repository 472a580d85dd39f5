"""Speech to text: the same text as transformers gives, whatever shares the batch, and one bad file alone."""

import dataclasses
import functools
import json
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import torch
import transformers
from helpers.reference import Reference, tiny_reference

from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.utterance import Samples, Skipped, Utterance
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.porting.verify import speech_like
from flax_wavlm.recognition import memory
from flax_wavlm.recognition.decoding import GreedyDecoder, best_path
from flax_wavlm.recognition.metrics import error_rates
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.recognition.recordings import Source

pytestmark = pytest.mark.usefixtures("one_device")

LENGTHS = (400, 16_000, 7_001, 31_999, 48_000, 9_600, 23_456, 640, 40_000, 12_345, 5_000)  # more than a batch


def fine_tuned(kind: str, folder: Path) -> Reference:
    """A tiny checkpoint with everything that makes text: its head has the tokenizer's 32 outputs."""
    reference = tiny_reference(kind, folder)
    CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz'"]).save(folder)
    Preprocessor(do_normalize=True, return_attention_mask=kind == "large").save(folder)
    return reference


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return fine_tuned("large", tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return fine_tuned("base", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def recogniser(large: Reference, one_device: None) -> Recogniser:
    return Recogniser.from_pretrained(large.folder)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Different stretches of a speech-like signal; two as int16, as 16-bit files are read."""
    signal = speech_like(max(LENGTHS) / 16_000 + 2)
    cut = [signal[1000 * i :][:length] for i, length in enumerate(LENGTHS)]
    return [(clip * 32768).astype(np.int16) if i in (1, 4) else clip for i, clip in enumerate(cut)]


def texts(recogniser: Recogniser, clips: list[np.ndarray]) -> list[str]:
    return [transcript.text for transcript in recogniser.transcribe(clips)]


def full_scale(clip: np.ndarray) -> np.ndarray:
    return clip / np.float32(32768) if clip.dtype == np.int16 else clip


@pytest.mark.parametrize("kind", ["large", "base"])
def test_text_equals_the_pipelines(kind, clips, request):
    """transformers' pipeline takes one clip at a time; ours pads and batches both kinds of model."""
    folder = request.getfixturevalue(kind).folder
    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    expected = [pipeline(full_scale(clip))["text"] for clip in clips]
    assert len(set(expected)) > 8  # random weights say something, and hear a difference
    assert texts(Recogniser.from_pretrained(folder), clips) == expected


def test_base_models_need_their_own_group_norm(base, clips):
    """The control: transformers' text of a padded base clip is another, so ours is not the padded one."""
    alone = texts(Recogniser.from_pretrained(base.folder), clips)
    clip = Preprocessor(do_normalize=True, return_attention_mask=False)(full_scale(clips[2]))
    padded, mask = np.zeros((2, 1, 48_000), np.float32)
    padded[0, : len(clip)], mask[0, : len(clip)] = clip, 1
    with torch.no_grad():
        logits = base.model(torch.tensor(padded), attention_mask=torch.tensor(mask).long()).logits
    frames = base.config.frame_count(len(clip))
    path = logits[0, :frames].argmax(-1).numpy()
    assert CTCTokenizer.from_pretrained(base.folder).decode(path, collapsed=False) != alone[2]


def test_bfloat16_computes_in_bfloat16(large, clips):
    recogniser = Recogniser.from_pretrained(large.folder, dtype="bfloat16")
    assert recogniser.config.dtype == "bfloat16"
    assert any(texts(recogniser, clips[:3]))


def test_no_clips_no_texts(recogniser):
    assert recogniser.transcribe([]) == []


def test_files_keep_their_order_and_bad_ones_are_named(recogniser, clips, tmp_path):
    for i in (1, 2, 4):
        soundfile.write(tmp_path / f"{i}.wav", clips[i], 16_000, "PCM_16" if i != 2 else "FLOAT")
    (tmp_path / "noise.wav").write_bytes(b"not audio at all")
    soundfile.write(tmp_path / "short.wav", clips[1][:399], 16_000)
    soundfile.write(tmp_path / "long.wav", np.zeros(16_000 * 5, np.int16), 16_000)
    names = ["noise.wav", "4.wav", "short.wav", "2.wav", "long.wav", "missing.wav", "1.wav"]
    transcripts = recogniser.transcribe_files([tmp_path / name for name in names], max_seconds=4)

    assert [transcript.file.name for transcript in transcripts] == names
    found = {t.file.name: t.text for t in transcripts if t.error is None}
    assert found == dict(
        zip(["4.wav", "2.wav", "1.wav"], texts(recogniser, [clips[i] for i in (4, 2, 1)]), strict=True)
    )
    errors = {t.file.name: str(t.error) for t in transcripts if t.error is not None}
    for name, message in {
        "noise.wav": "libsndfile cannot decode it",
        "short.wav": "399 samples at 16 kHz, expected at least 400",
        "long.wav": "5.0 s or more, expected at most 4 s",
        "missing.wav": "No such file",
    }.items():
        assert errors[name].startswith(str(tmp_path / name))
        assert message in errors[name]


def test_a_clip_shorter_than_a_frame_is_an_error(recogniser, clips):
    with pytest.raises(UserError, match=r"clip 1: 399 samples .* at least 400"):
        recogniser.transcribe([clips[0], clips[1][:399]])


@pytest.mark.parametrize("batch_size", [0, -8])
def test_batch_size_is_checked(recogniser, clips, batch_size):
    with pytest.raises(UserError, match="batch_size"):
        recogniser.transcribe(clips, batch_size=batch_size)
    with pytest.raises(UserError, match="batch_size"):
        recogniser.transcribe_files(["missing.wav"], batch_size=batch_size)


def test_evaluation_scores_the_texts_of_transcription(recogniser, clips, tmp_path):
    said = texts(recogniser, clips[1:5])
    lines = [{"audio_filepath": "short.wav", "text": "too short"}, {"audio_filepath": "0.wav", "text": " "}]
    soundfile.write(tmp_path / "short.wav", clips[1][:399], 16_000)
    for i, clip in enumerate(clips[1:5]):
        soundfile.write(tmp_path / f"{i}.wav", full_scale(clip), 16_000, "FLOAT")
        lines.append({"audio_filepath": f"{i}.wav", "text": f"Said {'word ' * i}", "id": f"clip{i}"})
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))

    utterances, unusable = load_corpus("manifest", tmp_path, "test")
    figures, predictions = recogniser.evaluate(utterances, unusable, name="test")
    assert len(unusable) == 1
    assert isinstance(unusable[0], Skipped)
    assert [(p.id, p.hypothesis) for p in predictions] == [(f"clip{i}", t) for i, t in enumerate(said)]
    assert figures["clips"] == 4
    assert figures["skipped"] == 2
    assert np.isfinite(figures["loss"])
    rates = error_rates([p.reference for p in predictions], said)
    assert {name: figures[name] for name in rates} == rates


def broken(folder: Path, target: Path, **config) -> Path:
    """A copy of the checkpoint, with changes to its config.json."""
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | config))
    return target


def test_checkpoints_that_give_no_text(large, tmp_path):
    def loading(folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            Recogniser.from_pretrained(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    large.model.wavlm.save_pretrained(tmp_path / "encoder")
    assert "has no CTC head" in loading(tmp_path / "encoder")

    folder = broken(large.folder, tmp_path / "no_vocabulary")
    (folder / "vocab.json").unlink()
    assert "has no vocab.json" in loading(folder)

    folder = broken(large.folder, tmp_path / "no_preprocessor")
    (folder / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in loading(folder)

    folder = broken(large.folder, tmp_path / "narrow")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["é"] = 32
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    assert "33 tokens, expected the 32 of the CTC head" in loading(folder)


def test_a_blank_that_disagrees_is_announced(large, tmp_path, caplog):
    Recogniser.from_pretrained(broken(large.folder, tmp_path / "other", pad_token_id=3))
    assert "pad_token_id is 3, the tokenizer's 29" in caplog.text


# --- Recordings of any length -------------------------------------------------------------------------------


def test_a_long_file_shares_batches_with_short_ones(recogniser, clips, tmp_path):
    """Its words are in order of time, and the short ones' texts are what they are alone."""
    long = np.concatenate([full_scale(clip) for clip in clips])
    soundfile.write(tmp_path / "long.wav", long, 16_000, "FLOAT")
    soundfile.write(tmp_path / "short.wav", full_scale(clips[3]), 16_000, "FLOAT")
    found, short, same = recogniser.transcripts(
        [tmp_path / "long.wav", tmp_path / "short.wav", Source("-", tmp_path / "short.wav")], window=2.5
    )
    assert found.error is None
    assert found.duration == len(long) / 16_000
    times = [(word.start, word.end) for word in found.words]
    assert len(times) > 5
    assert times == sorted(times)
    assert all(0 <= start <= end <= found.duration for start, end in times)
    assert found.text.split() == [word.word for word in found.words]
    assert short.text == texts(recogniser, [clips[3]])[0]
    assert (same.file, same.text, same.words) == ("-", short.text, short.words)
    assert 0 < short.confidence <= 1


def test_emissions_are_the_models_posteriors(large, recogniser, clips):
    samples = full_scale(clips[4])
    found = recogniser.emissions(Samples(samples, 16_000))
    inputs = Preprocessor(do_normalize=True, return_attention_mask=True)(samples)
    with torch.no_grad():
        expected = large.model(torch.tensor(inputs)[None]).logits.log_softmax(-1)[0].numpy()
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)
    assert found.aligner is None
    assert found.duration == len(samples) / 16_000
    assert found.frame_seconds == 0.02


def test_in_a_pause_that_no_window_hears_nothing_is_said(recogniser, clips):
    speech, silence = full_scale(clips[1]), np.zeros(16_000 * 4, np.float32)
    found = recogniser.emissions(Samples(np.concatenate([speech, silence, speech]), 16_000), window=2.0)
    assert len(found.log_probs) == recogniser.config.frame_count(16_000 * 6)
    np.testing.assert_allclose(np.exp(found.log_probs).sum(axis=1), 1, atol=1e-5)
    blank = np.exp(found.log_probs[:, recogniser.tokenizer.blank_id])
    assert (blank[70:230] > 0.999).all()
    assert not (blank[:40] > 0.999).all()


def test_a_window_that_needs_too_much_memory_is_refused_before(recogniser, monkeypatch):
    """There is memory for 8 windows of a minute, beside the gigabyte that the process holds."""
    frames, heads = recogniser.config.frame_count(60 * 16_000), recogniser.config.num_attention_heads
    monkeypatch.setattr(memory, "held_bytes", lambda: 10**9)
    monkeypatch.setattr(memory, "device_bytes", lambda: 10**9 + 8 * memory.SCORE_BYTES * heads * frames**2)
    for window, advice in ((60.0, "set batch_size=8, which needs"), (3600.0, "set a shorter window")):
        with pytest.raises(UserError, match=rf"with windows of {window:.0f} s needs .* there are; {advice}"):
            recogniser.transcripts([], window=window, batch_size=16)
    assert list(recogniser.transcripts([], window=60.0, batch_size=8)) == []
    with pytest.raises(UserError, match="window is -1"):
        recogniser.transcripts([], window=-1.0)


# --- Other decoders -----------------------------------------------------------------------------------------


class InThreads:
    """The greedy decoder as one that takes long, with a worse hypothesis beside the best one."""

    takes_long, alternatives = True, 2

    def __init__(self, recogniser: Recogniser):
        self.greedy = GreedyDecoder(recogniser.tokenizer.blank_id, recogniser.temperature)
        self.threads: set[threading.Thread] = set()

    def describe(self) -> str:
        return "greedy in threads"

    def evidence(self, log_probs, frame_lengths):
        return self.greedy.evidence(log_probs, frame_lengths)

    def hypotheses(self, evidence):
        self.threads.add(threading.current_thread())
        [best] = self.greedy.hypotheses(evidence)
        best = best._replace(ctc_score=best.score)
        return [best, best._replace(ids=best.ids[:-1], score=best.score - 1, ctc_score=best.score - 1)]


class Failing(InThreads):
    def hypotheses(self, evidence):
        raise UserError("the model's outputs are not numbers")


def test_a_decoder_in_threads_gives_the_same_transcripts(recogniser, clips):
    decoder = InThreads(recogniser)
    said = [np.concatenate([full_scale(clip) for clip in clips]), full_scale(clips[3])]
    expected = recogniser.transcribe(said, window=2.5)
    found = recogniser.with_decoder(decoder).transcribe(said, window=2.5)
    assert [dataclasses.replace(transcript, alternatives=()) for transcript in found] == expected
    assert threading.current_thread() not in decoder.threads
    for transcript in found:
        assert transcript.alternatives[0].text == transcript.text
        assert len(transcript.alternatives) == 2
        assert transcript.alternatives[1].score == pytest.approx(transcript.alternatives[0].score - 1)
    assert all(transcript.alternatives == () for transcript in expected)


def test_what_fails_in_a_thread_is_said(recogniser, clips):
    with pytest.raises(UserError, match="the model's outputs are not numbers"):
        recogniser.with_decoder(Failing(recogniser)).transcribe(clips[:6])


def test_evaluation_by_a_decoder(recogniser, clips, tmp_path):
    """The texts are its own; the loss and the padded WER are of the model's outputs."""
    utterances = [
        Utterance(str(i), functools.partial(Samples, full_scale(clip), 16_000), f"words {i}")
        for i, clip in enumerate(clips[1:5])
    ]
    expected = recogniser.evaluate(utterances, name="test")
    decoder = InThreads(recogniser)
    found = recogniser.with_decoder(decoder).evaluate(utterances, name="test")
    assert found.predictions == expected.predictions
    assert found.figures == pytest.approx(expected.figures, rel=1e-6)
    assert threading.current_thread() not in decoder.threads
    with pytest.raises(UserError, match="the model's outputs are not numbers"):
        recogniser.with_decoder(Failing(recogniser)).evaluate(utterances, name="test")


def test_greedy_evidence_is_bit_for_bit_that_of_the_logits():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, 32)) * 4, jnp.float32)
    lengths = jnp.array([50, 30])
    log_probs = jax.nn.log_softmax(logits)
    found = GreedyDecoder(0).evidence(log_probs, lengths)
    assert np.array_equal(found["path"], best_path(logits, lengths))
    assert np.array_equal(found["log_prob"], log_probs.max(-1))
    tempered = jax.nn.log_softmax(logits / 2)
    found = GreedyDecoder(0, 2.0).evidence(log_probs, lengths)
    assert np.array_equal(found["path"], best_path(logits, lengths))
    np.testing.assert_allclose(found["log_prob"], tempered.max(-1), atol=1e-6)

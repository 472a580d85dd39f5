"""What random damage to a file may end in.

Bytes of whole files are flipped, cut and inserted. Only two ends are allowed: a result, or a UserError of one
line.
"""

import gzip
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flax import nnx
from helpers.fuzz_readers import (
    ARPA_PIECES,
    HOT_WORDS,
    JSON_PIECES,
    KALDI,
    LM_ALPHABET,
    LM_ATTRIBUTES,
    LM_PIECES,
    TABLE_PIECES,
    arpa_files,
    audio_files,
    checkpoint_reader,
    containers,
    kaldi_reader,
    lm_folder_reader,
    manifest_reader,
    read_aligner,
    read_audio_both_ways,
    read_clips_folder,
    read_clips_table,
    read_language_model,
    read_metadata,
    read_sample,
    read_saved_names,
    read_text_beside,
    text_reader,
    tokenizer_reader,
    train_on_text,
    written,
)
from helpers.reference import tiny_reference
from helpers.transcripts import check_formats, random_transcript

from flax_wavlm import UserError, WavLMConfig
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.text import TextRule
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.models.parameters import split
from flax_wavlm.porting.extras import Extras, read_extras, write_extras
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.recognition.aligner import Aligner, AlignerSize, Fitting, save_aligner
from flax_wavlm.recognition.beam_search.choice import read_hotwords
from flax_wavlm.training.report.metrics import read_metrics


class Target(NamedTuple):
    """Whole files, and a reader of (an empty folder, a file's bytes)."""

    seeds: list[bytes]
    read: Callable[[Path, bytes], Any]
    pieces: tuple[bytes, ...] = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
    quick: int = 250  # executions in the fast suite


def damaged(whole: bytes, pieces: tuple[bytes, ...], rng: random.Random) -> bytes:
    """Bytes flipped, replaced, cut out, put in or repeated, more often in the header; or the end cut off."""
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        size = len(data)
        at = rng.randrange(min(size, 200) + 1) if rng.random() < 0.6 else rng.randrange(size + 1)
        what = rng.randrange(7)
        if what == 0 and at < size:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at : at + 1] = rng.randbytes(1)
        elif what == 2:
            del data[at : at + rng.randrange(1, 40)]
        elif what == 3:
            data[at:at] = rng.choice(pieces)
        elif what == 4:
            piece = rng.choice(pieces)
            data[at : at + len(piece)] = piece
        elif what == 5:
            other = rng.randrange(size + 1)
            data[at:at] = data[min(at, other) : max(at, other)][:5000]
        else:
            del data[at:]
    return bytes(data)


def fuzz(
    name: str, target: Target, folder: Path, *, seed: int, executions: int = 0, seconds: float = 0.0
) -> Counter[str]:
    """How often each end was reached: "result" or "UserError". Any other fails; its input is in `folder`."""
    rng = random.Random(f"{name} {seed}")
    ends: Counter[str] = Counter()
    until = time.monotonic() + seconds
    while ends.total() < executions or time.monotonic() < until:
        if rng.random() < 0.05:
            data = rng.randbytes(rng.randrange(300))
        else:
            data = damaged(rng.choice(target.seeds), target.pieces, rng)
        try:
            target.read(folder, data)
            ends["result"] += 1
        except UserError as error:
            if "\n" in str(error):
                pytest.fail(f"{name}: {data!r} ends in a message of several lines, {error}")
            ends["UserError"] += 1
        except Exception as error:
            (folder / "culprit").write_bytes(data)
            raise AssertionError(f"{name}: {folder / 'culprit'} ends in {error!r}") from error
    return ends


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    reference = tiny_reference(
        "large",
        tmp_path_factory.mktemp("tiny"),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4,
        conv_dim=(2,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_buckets=8,
    )
    good = tmp_path_factory.mktemp("good")
    CTCTokenizer.from_texts(["abc"]).save(good)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(good)
    write_extras(good, Extras(TextRule(language="tr", keep="ş-", case="upper"), follows_vocabulary=False))
    aligner = split(Aligner(AlignerSize(2, 3, taps=3, width=4), nnx.Rngs(0)))[1]
    save_aligner(good, aligner, Fitting(alpha=1.0, steps=1, clips=1), encoder="00000000")
    config = reference.folder / "config.json"
    pickles = []
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save(reference.model.state_dict(), stream, _use_new_zipfile_serialization=zipped)
        pickles.append(stream.getvalue())
    rows = [
        {"audio_filepath": "a.wav", "text": "one", "duration": 1.5, "id": "x", "speaker": "s", "offset": 0}
    ]
    rows.append({"audio_filepath": "b.wav", "text": "two"})
    jsonl = "\n".join(map(json.dumps, rows)).encode()
    csv = b'audio_filepath,text,duration,id\na.wav,"one, two",1.5,x\nb.wav,three,,y\n'
    array = json.dumps(
        [rows[0], {"path": "b.wav", "segments": [{"start": 0, "end": 1, "text": "t"}]}]
    ).encode()
    tsv = b'path\ttext\tstart\tend\na.wav\t"One," two\t0\t1.5\nb.wav\tthree\t1\t2\n'
    clips = b"client_id\tpath\tsentence\ns\ta.mp3\tone\nt\tb\ttwo\n"
    metrics = b'{"step": 1, "split": "train", "loss": 2.5}\n{"step": 2, "split": "test", "wer": 0.5}\n'
    return {
        "audio": Target(audio_files(), read_audio_both_ways, quick=1500),
        "containers": Target(containers(), read_audio_both_ways, quick=250),
        "manifest.jsonl": Target([jsonl], manifest_reader("jsonl"), JSON_PIECES, quick=1000),
        "manifest.csv": Target([csv], manifest_reader("csv"), JSON_PIECES, quick=1000),
        "manifest.json": Target([jsonl, array], manifest_reader("json"), JSON_PIECES, quick=100),
        "manifest.tsv": Target([tsv], manifest_reader("tsv"), TABLE_PIECES, quick=100),
        "Common Voice": Target([clips], read_clips_table, TABLE_PIECES, quick=60),
        **{
            f"Kaldi's {name}": Target([content], kaldi_reader(name), TABLE_PIECES, quick=60)
            for name, content in KALDI.items()
        },
        "metadata.csv": Target(
            [b'file_name,text\na.wav,"one, two"\nb.wav,three\n'], read_metadata, TABLE_PIECES, quick=100
        ),
        "dataset_dict.json": Target([b'{"splits": ["train"]}'], read_saved_names, JSON_PIECES, quick=60),
        "a.lab": Target([b"one two\n", b"0 100 one\n"], read_text_beside, TABLE_PIECES, quick=60),
        "a text to align": Target(
            [b"a cab, bad\n", "a b\u2019c caf\u00e9 5\n".encode(), b"\xef\xbb\xbfcab"],
            text_reader(CTCTokenizer.from_pretrained(good)),
            (*TABLE_PIECES, b"\xff", b"\xc3", b"\xe2\x80", b"\xe4\xbd\xa0", b"|", b"[UNK]", b"[PAD]", b"<s>"),
            quick=200,
        ),
        "a text to train on": Target(
            [text := b"a b c\na b c a\n\xe4\xbd\xa0 b\n", gzip.compress(text)],
            train_on_text,
            (*TABLE_PIECES, b"\xff", b"\0", b"</s>", b"<unk>", b"\xe2\x80\xa8", b"\\data\\\n", b"a" * 5000),
            quick=100,
        ),
        "segment.json": Target(
            [b'{"audio": "a.wav", "model": "m"}'], read_clips_folder, JSON_PIECES, quick=60
        ),
        "TIMIT's .TXT": Target([b"0 46797 She had your dark suit.\n"], read_sample, JSON_PIECES),
        "metrics.jsonl": Target([metrics], written("metrics.jsonl", read_metrics), JSON_PIECES),
        "config.json": Target(
            [config.read_bytes()], written("config.json", WavLMConfig.from_hf), JSON_PIECES
        ),
        "flax_wavlm.json": Target(
            [(good / "flax_wavlm.json").read_bytes()],
            written("flax_wavlm.json", lambda file: read_extras(file.parent).text("Don’t I?")),
            JSON_PIECES,
            quick=100,
        ),
        **{
            name: Target([(good / name).read_bytes()], tokenizer_reader(good, name), JSON_PIECES, quick=100)
            for name in ("vocab.json", "tokenizer_config.json", "preprocessor_config.json")
        },
        "safetensors": Target(
            [(reference.folder / "model.safetensors").read_bytes()],
            checkpoint_reader(config, "model.safetensors"),
        ),
        "aligner.safetensors": Target([(good / "aligner.safetensors").read_bytes()], read_aligner, quick=60),
        "pickle": Target(pickles, checkpoint_reader(config, "pytorch_model.bin")),
        "attrs.json": Target([LM_ATTRIBUTES], lm_folder_reader("language_model/attrs.json"), LM_PIECES, 60),
        "alphabet.json": Target([LM_ALPHABET], lm_folder_reader("alphabet.json"), LM_PIECES, 60),
        "hot words": Target([HOT_WORDS], written("words.txt", read_hotwords), TABLE_PIECES, quick=60),
        "lm.arpa": Target(
            arpa_files(tmp_path_factory.mktemp("arpa")), read_language_model, ARPA_PIECES, quick=60
        ),
    }


NAMES = (
    "audio",
    "containers",
    "manifest.jsonl",
    "manifest.csv",
    "manifest.json",
    "manifest.tsv",
    "Common Voice",
    *(f"Kaldi's {name}" for name in KALDI),
    "metadata.csv",
    "dataset_dict.json",
    "a.lab",
    "a text to align",
    "a text to train on",
    "segment.json",
    "TIMIT's .TXT",
    "metrics.jsonl",
    "config.json",
    "vocab.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "flax_wavlm.json",
    "safetensors",
    "aligner.safetensors",
    "pickle",
    "attrs.json",
    "alphabet.json",
    "hot words",
    "lm.arpa",
)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", NAMES)
def test_damage_ends_in_our_own_error(
    name: str, targets: dict[str, Target], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    assert set(NAMES) == set(targets)
    ends = fuzz(name, targets[name], tmp_path, seed=0, executions=targets[name].quick)
    assert ends["UserError"] > 0.3 * ends.total()  # the damage does something
    assert "Traceback" not in capfd.readouterr().err  # nor does soundfile's callback print one


WORDS = (
    "model",
    "module",
    "_orig_mod",
    "net",
    "0",
    "wavlm",
    "encoder",
    "layers",
    "state_dict",
    "é",
    "",
    "a.b",
)


def wrapped(state: dict[str, torch.Tensor], rng: random.Random) -> Any:
    """The state dict under a random prefix, in random dicts, beside random other things."""
    prefix = "".join(f"{rng.choice(WORDS)}." for _ in range(rng.randrange(5)))
    content: Any = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    for _ in range(rng.randrange(4)):
        beside: dict[Any, Any] = {
            f"{rng.choice(WORDS)}.{rng.choice(WORDS)}": rng.choice([torch.ones(2), 3, None, [torch.ones(1)]])
            for _ in range(rng.randrange(3))
        }
        content = {**beside, rng.choice(WORDS): content, "optimizer": {"state": {0: {"step": 1}}}, 7: 7}
    return content


@pytest.mark.parametrize(
    "executions", [40, pytest.param(2000, marks=pytest.mark.chaos)], ids=["some", "many"]
)
def test_random_wrappers_change_nothing(executions: int, targets: dict[str, Target], tmp_path: Path) -> None:
    """Every tensor is found, whatever stands around it; or the error is one line, where a part is missing."""
    state = torch.load(io.BytesIO(targets["pickle"].seeds[0]), weights_only=True)
    rng = random.Random(0)
    for _ in range(executions):
        torch.save(wrapped(state, rng), tmp_path / "weights.ckpt")
        tensors = open_weights(tmp_path / "weights.ckpt").tensors
        assert set(tensors) == set(state)
        assert all(np.array_equal(tensors[name].read(), state[name].numpy()) for name in state)
        torn = {name: state[name] for name in rng.sample(sorted(state), rng.randrange(len(state)))}
        torch.save(wrapped(torn, rng), tmp_path / "weights.ckpt")
        try:
            open_weights(tmp_path / "weights.ckpt")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either end is right


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_much_damage_ends_in_our_own_error(
    targets: dict[str, Target], tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """A minute of it."""
    counts = {}
    for name, target in targets.items():
        (tmp_path / name).mkdir()
        counts[name] = fuzz(name, target, tmp_path / name, seed=1, seconds=60 / len(targets))
    total = sum((ends for ends in counts.values()), Counter())
    measured(
        f"fuzzing for 60 s: {total.total()} damaged files, {total['UserError']} named in a UserError, "
        f"{total['result']} still readable; "
        + ", ".join(f"{name} {ends.total()}" for name, ends in counts.items())
    )
    assert all(ends.total() > 20 for ends in counts.values())


@pytest.mark.chaos
def test_much_random_speech_is_read_back(tmp_path: Path, measured: Callable[[str], None]) -> None:
    """Half a minute of words of any characters at any times, in every format."""
    rng, count, until = random.Random(1), 0, time.monotonic() + 30
    while time.monotonic() < until:
        check_formats(random_transcript(rng), tmp_path)
        count += 1
    measured(f"fuzzing for 30 s: {count} transcripts written in 8 formats and read back")
    assert count > 1000

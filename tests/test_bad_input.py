"""One table of what users get wrong: what was given, to which entry point, and what is said of it.

Each case must end in a UserError of one readable line that names the file or the field, or else in a known
number of skipped clips with their reasons. Anything else, a foreign exception or a clip that is used in
silence, fails.
"""

import ctypes
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import transformers
from helpers.fake_timit import build_fake_timit
from helpers.reference import Reference, tiny_reference

from flax_wavlm import UserError, WavLMConfig
from flax_wavlm.data.clips import usable_clips
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.porting.convert import convert
from flax_wavlm.porting.load import load_model
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.training.config import DataSettings, LoopSettings, ModelSettings, OptimSettings, TrainConfig
from flax_wavlm.training.export import export_run
from flax_wavlm.training.train import train

SCRIPTS = Path(__file__).parents[1] / "scripts"
RATE = 16_000
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
NOISE = (np.random.default_rng(0).standard_normal(2 * RATE) * 3000).astype(np.int16)


@dataclass(frozen=True)
class Case:
    """`give(folder, tiny)` puts the bad input into an empty folder and calls the entry point.

    `error`: what the UserError says. Or, where a split was read: `skipped`, a reason for each clip that was
    left out, `used`, how many were not, and `log`, what was said of those that are used all the same.
    """

    given: str
    give: Callable[[Path, Reference], Any]
    error: str = ""
    skipped: tuple[str, ...] = ()
    used: int = 1
    log: str = ""


# --- What is given to the corpus readers --------------------------------------------------------------------


def encoded(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=format, subtype=subtype)
    return stream.getvalue()


def read_split(
    folder: Path, corpus: str = "manifest", split: str = "train", **how: Any
) -> tuple[int, list[str]]:
    """What training and evaluation do with a split: the number of clips used, and why others are not."""
    utterances, unusable = load_corpus(corpus, folder, split)
    clips, skipped = usable_clips(
        utterances,
        CTCTokenizer.from_texts([LETTERS]),
        name=split,
        frame_count=WavLMConfig().frame_count,
        **how,
    )
    return len(clips), [clip.reason for clip in (*unusable, *skipped)]


def clip(audio: bytes, text: str = "she had", **how: Any) -> Callable[[Path, Reference], Any]:
    """A manifest of a good clip and this one."""

    def give(folder: Path, tiny: Reference) -> Any:
        (folder / "bad.wav").write_bytes(audio)
        (folder / "good.wav").write_bytes(encoded(NOISE))
        rows = [{"audio_filepath": "good.wav", "text": "good"}, {"audio_filepath": "bad.wav", "text": text}]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_split(folder, **how)

    return give


def manifest(content: str | bytes, suffix: str = "jsonl") -> Callable[[Path, Reference], Any]:
    """A manifest of this content, beside a.wav and b.wav."""

    def give(folder: Path, tiny: Reference) -> Any:
        for name in ("a.wav", "b.wav"):
            (folder / name).write_bytes(encoded(NOISE))
        content_here = content.replace("FOLDER", str(folder)) if isinstance(content, str) else content
        data = content_here.encode("utf-8") if isinstance(content_here, str) else content_here
        (folder / f"train.{suffix}").write_bytes(data)
        return read_split(folder)

    return give


GOOD = '{"audio_filepath": "a.wav", "text": "one"}\n'


def row(**fields: Any) -> str:
    return json.dumps({"audio_filepath": "b.wav", "text": "two"} | fields) + "\n"


def timit(change: Callable[[Path], object], split: str = "train") -> Callable[[Path, Reference], Any]:
    """A miniature TIMIT, 40 clips in train and 20 in test, after `change(its first speaker's folder)`."""

    def give(folder: Path, tiny: Reference) -> Any:
        root = build_fake_timit(folder, "flat_upper")
        with without_roots_rights():
            change(root / "TRAIN" / "DR1" / "FCJF0")
            return read_split(root, "timit", split)

    return give


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """root may read every file: takes that right (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) away for a while."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~(1 << 1 | 1 << 2)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


def forbidden(mode: int, name: str) -> Callable[[Path, Reference], Any]:
    """A good manifest of data/a.wav, where `name` has these permissions."""

    def give(folder: Path, tiny: Reference) -> Any:
        (folder / "data").mkdir()
        (folder / "data" / "a.wav").write_bytes(encoded(NOISE))
        (folder / "good.wav").write_bytes(encoded(NOISE))
        lines = row(audio_filepath="data/a.wav") + row(audio_filepath="good.wav")
        (folder / "train.jsonl").write_text(lines)
        (folder / name).chmod(mode)
        try:
            with without_roots_rights():
                return read_split(folder)
        finally:
            (folder / name).chmod(0o700)

    return give


HALF = len(encoded(NOISE)) // 2
SHORT_FLAC_HEADER = bytearray(encoded(NOISE, format="FLAC", subtype="PCM_16"))
SHORT_FLAC_HEADER[21] |= 0x0F  # STREAMINFO's total samples: 64 billion
SLOW = bytearray(encoded(NOISE))
SLOW[24:28] = (1).to_bytes(4, "little")  # a sample a second
TEN_MINUTES = encoded(np.tile(NOISE, 300))

AUDIO = [
    Case(
        "a truncated RIFF file",
        clip(encoded(NOISE)[:HALF]),
        skipped=(r"unreadable audio: .*bad\.wav: the audio is cut short: \d+ samples, expected the 32000",),
    ),
    Case(
        "a truncated SPHERE file",
        clip(encoded(NOISE, format="NIST")[:HALF]),
        skipped=(r"unreadable audio: .*bad\.wav: the audio is cut short: \d+ samples, expected the 32000",),
    ),
    Case(
        "a truncated FLAC file",
        clip(encoded(NOISE, format="FLAC")[:HALF]),
        skipped=(r"unreadable audio: .*bad\.wav: (the audio is cut short|libsndfile cannot decode it)",),
    ),
    Case(
        "a FLAC file that promises 64 billion samples",
        clip(bytes(SHORT_FLAC_HEADER)),
        skipped=(r"unreadable audio: .*bad\.wav: (the audio is cut short: 32000 samples|libsndfile cannot)",),
    ),
    Case("an empty file", clip(b""), skipped=(r"unreadable audio: .*bad\.wav: the file is empty",)),
    Case(
        "a header without samples",
        clip(encoded(NOISE[:0])),
        skipped=(r"unreadable audio: .*bad\.wav: the audio file has 0 samples",),
    ),
    Case(
        "samples without a header",
        clip(NOISE.tobytes()),
        skipped=(r"unreadable audio: .*bad\.wav: libsndfile cannot decode it",),
    ),
    Case(
        "half a header",
        clip(encoded(NOISE)[:20]),
        skipped=(r"unreadable audio: .*bad\.wav: libsndfile cannot decode it",),
    ),
    Case(
        "a NaN among the samples",
        clip(encoded(np.array([0, np.nan, 0.1] * 900), subtype="FLOAT")),
        skipped=(r"unreadable audio: .*bad\.wav: 900 samples are NaN or Inf",),
    ),
    Case(
        "an Inf among the samples",
        clip(encoded(np.array([0, np.inf, 0.1] * 900), subtype="DOUBLE")),
        skipped=(r"unreadable audio: .*bad\.wav: 900 samples are NaN or Inf",),
    ),
    Case(
        "integers written as floats",
        clip(encoded(NOISE.astype(np.float32), subtype="FLOAT")),
        skipped=(r"unreadable audio: .*bad\.wav: samples of up to 1\.\d+e\+04, expected floats with",),
    ),
    Case(
        "a text file named .wav",
        clip(b"She had your dark suit in greasy wash water.\n" * 50),
        skipped=(r"unreadable audio: .*bad\.wav: libsndfile cannot decode it",),
    ),
    Case(
        "one sample a second",
        clip(bytes(SLOW)),
        skipped=(r"unreadable audio: .*bad\.wav: the sample rate is 1 Hz, expected 4000 to 768000",),
    ),
    Case(
        "a clip shorter than a frame",
        clip(encoded(NOISE[:399])),
        skipped=(r"too short: 399 samples make no frame",),
    ),
    Case(
        "all zeros, for training",
        clip(encoded(np.zeros(RATE, np.int16))),
        skipped=(r"silent: 16000 samples",),
    ),
    Case("dither alone, for training", clip(encoded(NOISE[:RATE] % 2)), skipped=(r"silent: 16000 samples",)),
    Case(
        "all zeros, for evaluation",
        clip(encoded(np.zeros(RATE, np.int16)), drop_infeasible=False),
        used=2,
        log=r"kept in the evaluation 1 - silent: bad\.wav",
    ),
    Case(
        "ten minutes, for training with a limit",
        clip(TEN_MINUTES, max_seconds=15.0),
        skipped=(r"too long: 600\.00 s, must be under 15 s",),
    ),
    Case(
        "ten minutes, without a limit",
        clip(TEN_MINUTES),
        used=2,
        log=r"1 clips of more than 60 s, such as bad\.wav: memory",
    ),
    Case("an MP3 named .wav", clip(encoded(NOISE / 32768, format="MP3")), used=2),
    Case("8 kHz", clip(encoded(NOISE[::2], 8_000)), used=2),
    Case("44.1 kHz stereo", clip(encoded(np.stack([NOISE, NOISE], 1), 44_100)), used=2),
    Case("24 bits", clip(encoded(NOISE / 32768, subtype="PCM_24")), used=2),
    Case("floats", clip(encoded(NOISE / 32768, subtype="FLOAT")), used=2),
    Case(
        "an audio file without permission",
        forbidden(0, "data/a.wav"),
        skipped=(r"unreadable audio: .*a\.wav: cannot read it \(Permission denied\)",),
    ),
]

TEXT = [
    Case("an empty text", clip(encoded(NOISE), ""), skipped=(r"no text \(.*train\.jsonl:2\)",)),
    Case("white space for a text", clip(encoded(NOISE), " \t\u00a0"), skipped=(r"no text",)),
    Case(
        "punctuation alone",
        clip(encoded(NOISE), "?! ..."),
        skipped=(r"no text after normalisation: '\?! \.\.\.'",),
    ),
    Case(
        "another script, for training",
        clip(encoded(NOISE), "привет"),
        skipped=(r"text outside the vocabulary: 100% of 'привет'",),
    ),
    Case(
        "another script, for evaluation",
        clip(encoded(NOISE), "привет", drop_infeasible=False),
        used=2,
        log=r"kept in the evaluation 1 - text outside the vocabulary: bad\.wav",
    ),
    Case(
        "a few characters outside the vocabulary",
        clip(encoded(NOISE), "naïve 4"),
        used=2,
        log=r"characters outside the vocabulary, read as unknown: \['4', 'ï'\]",
    ),
    Case(
        "a text that spells the blank", clip(encoded(NOISE), "a [PAD]"), used=2, log="outside the vocabulary"
    ),  # lower-cased: [, p, a, d, ]
    Case(
        "labels longer than frames",
        clip(encoded(NOISE[:1600]), "she had your dark suit"),
        skipped=(r"labels longer than frames: 22 frames needed, 4 there",),
    ),
    Case(
        "labels longer than frames, for evaluation",
        clip(encoded(NOISE[:1600]), "she had your dark suit", drop_infeasible=False),
        used=2,
        log=r"kept in the evaluation 1 - labels longer",
    ),
    Case(
        "a manifest in Latin-1",
        manifest(GOOD.encode() + '{"audio_filepath": "b.wav", "text": "é"}'.encode("latin-1")),
        error=r"train\.jsonl:2: byte 0xe9 is not UTF-8",
    ),
    Case(
        "a manifest in UTF-16",
        manifest(GOOD.encode("utf-16")),
        error=r"train\.jsonl:1: byte 0xff is not UTF-8",
    ),
    Case(
        "half a surrogate pair",
        manifest(GOOD + '{"audio_filepath": "b.wav", "text": "\\ud800"}'),
        error=r"train\.jsonl:2: not JSON \(half of a surrogate pair",
    ),
    Case(
        "no text at all",
        manifest(row(text="")),
        error=r"train\.jsonl: no usable clip, 1 unusable \(b\.wav: no text",
    ),
    Case(
        "punctuation in every text",
        manifest(row(text="...")),
        error=r"train: none of the 1 clips can be used",
    ),
]

MANIFESTS = [
    Case(
        "JSON that is cut off",
        manifest(GOOD + '{"audio_filepath": "b.wav", "text"'),
        error=r"train\.jsonl:2: not JSON \(.*\)\. Expected one JSON object a line",
    ),
    Case(
        "JSON of brackets a hundred thousand deep",
        manifest("[" * 100_000),
        error=r"train\.jsonl:1: not JSON \(nested too deep\)",
    ),
    Case(
        "a list for a row",
        manifest('["a.wav", "one"]'),
        error=r"train\.jsonl:1: holds .*expected a JSON object",
    ),
    Case(
        "no text field",
        manifest(GOOD + '{"audio_filepath": "b.wav"}'),
        error=r"train\.jsonl:2: text is missing",
    ),
    Case(
        "no audio_filepath field",
        manifest('{"text": "t"}'),
        error=r"train\.jsonl:1: audio_filepath is missing",
    ),
    Case("a number for a text", manifest(row(text=5)), error=r"train\.jsonl:1: text is 5, expected a string"),
    Case(
        "a field twice in a row",
        manifest('{"audio_filepath": "a.wav", "text": "one", "text": "two"}'),
        error=r"train\.jsonl:1: not JSON \('text' is there twice",
    ),
    Case(
        "the same id twice",
        manifest(row(id="x") + row(id="x")),
        error=r"train\.jsonl:2: id 'x' is also at .*train\.jsonl:1",
    ),
    Case("the same clip twice", manifest(GOOD + GOOD), error=r"train\.jsonl:2: id 'a\.wav' is also at"),
    Case(
        "a relative path that dangles",
        manifest(GOOD + row(audio_filepath="c/c.wav")),
        error=r"train\.jsonl:2: audio_filepath is 'c/c\.wav', but there is no file /.*/c/c\.wav",
    ),
    Case(
        "an absolute path that dangles",
        manifest(row(audio_filepath="/no/c.wav")),
        error=r"train\.jsonl:1: audio_filepath is '/no/c\.wav', but there is no file /no/c\.wav",
    ),
    Case("a relative and an absolute path", manifest(GOOD + row(audio_filepath="FOLDER/b.wav")), used=2),
    Case(
        "a folder for an audio file",
        manifest(row(audio_filepath=".")),
        error=r"train\.jsonl:1: audio_filepath is '\.', but there is no file",
    ),
    Case(
        "a path too long for the system",
        manifest(row(audio_filepath="a" * 5000)),
        error=r"train\.jsonl:1: audio_filepath cannot be used: .*File name too long",
    ),
    Case(
        "a null character in a path",
        manifest(row(audio_filepath="a\0.wav")),
        error=r"train\.jsonl:1: audio_filepath cannot be used: .*null byte",
    ),
    Case(
        "a negative duration",
        manifest(row(duration=-1)),
        error=r"train\.jsonl:1: duration is -1, expected seconds",
    ),
    Case(
        "a duration of 400 digits",
        manifest('{"audio_filepath": "a.wav", "text": "t", "duration": 1' + "0" * 400 + "}"),
        error=r"train\.jsonl:1: duration is 10+, expected seconds",
    ),
    Case(
        "true for a duration",
        manifest(row(duration=True)),
        error=r"train\.jsonl:1: duration is True, expected seconds",
    ),
    Case(
        "a clip inside a longer file",
        manifest(row(offset=3.5)),
        error=r"train\.jsonl:1: offset is 3\.5, .*not supported",
    ),
    Case(
        "CSV without a header",
        manifest("a.wav,one\n", "csv"),
        error=r"train\.csv:1: no column 'audio_filepath', found a\.wav, one",
    ),
    Case(
        "CSV with a comma in a text",
        manifest("audio_filepath,text\na.wav,one, two\n", "csv"),
        error=r"train\.csv:2: not 2 fields as in the header",
    ),
    Case(
        "CSV with a column twice",
        manifest("audio_filepath,text,text\na.wav,one,two\n", "csv"),
        error=r"train\.csv:1: the column 'text' is there twice",
    ),
    Case(
        "CSV with an open quote",
        manifest('audio_filepath,text\na.wav,"one\n', "csv"),
        error=r"train\.csv:2: not CSV",
    ),
    Case(
        "a manifest and its CSV",
        lambda folder, tiny: (
            [(folder / f"train.{s}").touch() for s in ("jsonl", "csv")] and read_split(folder)
        ),
        error=r"found 2 of train\.jsonl and train\.csv, expected one",
    ),
    Case(
        "no manifest",
        lambda folder, tiny: read_split(folder),
        error=r"found 0 of train\.jsonl and train\.csv, expected one\. Found nothing",
    ),
    Case(
        "a folder named train.jsonl",
        lambda folder, tiny: (folder / "train.jsonl").mkdir() or read_split(folder),
        error=r"train\.jsonl: cannot read it \(Is a directory\)",
    ),
    Case(
        "a folder that does not exist",
        lambda folder, tiny: read_split(folder / "no"),
        error=r"data\.path is '.*/no', which is not a folder here",
    ),
    Case(
        "a manifest for its folder",
        lambda folder, tiny: (folder / "train.jsonl").touch() or read_split(folder / "train.jsonl"),
        error=r"data\.path is '.*train\.jsonl', which is not a folder",
    ),
    Case(
        "a misspelt corpus",
        lambda folder, tiny: read_split(folder, "manifst"),
        error=r"data\.corpus is 'manifst', expected one of .*Did you mean 'manifest'",
    ),
    Case(
        "a manifest without permission",
        forbidden(0, "train.jsonl"),
        error=r"train\.jsonl: cannot read it \(Permission denied\)",
    ),
    Case(
        "a manifest's folder without permission",
        forbidden(0o600, "."),
        error=r"train\.jsonl': cannot look at it \(Permission denied\)",
    ),
    Case(
        "an audio folder without permission",
        forbidden(0, "data"),
        error=r"train\.jsonl:1: audio_filepath cannot be used: .*a\.wav'.*Permission denied",
    ),
]

TIMIT = [
    Case(
        "TIMIT without its test split",
        timit(lambda speaker: shutil.rmtree(speaker.parents[2] / "TEST"), "test"),
        error=r"no TEST folder in it.*Found TRAIN\. Expected TIMIT's layout",
    ),
    Case(
        "an empty train split",
        timit(lambda speaker: (shutil.rmtree(speaker.parents[1]), speaker.mkdir(parents=True))),
        error=r"TRAIN: no usable clip, none",
    ),
    Case(
        ".TXT files without .WAV",
        timit(lambda speaker: [(speaker / f"SA{n}.WAV").unlink() for n in (1, 2)]),
        skipped=(r"no audio file beside .*SA1\.TXT", r"no audio file beside .*SA2\.TXT"),
        used=38,
    ),
    Case(
        "a .WAV file without .TXT",
        timit(lambda speaker: (speaker / "SA1.TXT").unlink()),
        skipped=(r"no \.TXT file beside .*SA1\.WAV",),
        used=39,
    ),
    Case(
        "a .TXT file in Latin-1",
        timit(lambda speaker: (speaker / "SA1.TXT").write_bytes(b"0 9 na\xefve")),
        skipped=(r"SA1\.TXT:1: byte 0xef is not UTF-8",),
        used=39,
    ),
    Case(
        "a .TXT file without samples",
        timit(lambda speaker: (speaker / "SA1.TXT").write_text("She had.")),
        skipped=(r"SA1\.TXT: holds 'She had\.', expected a line 'begin end sentence'",),
        used=39,
    ),
    Case(
        "a .TXT file without permission",
        timit(lambda speaker: (speaker / "SA1.TXT").chmod(0)),
        skipped=(r"SA1\.TXT: cannot read it \(Permission denied\)",),
        used=39,
    ),
    Case(
        "a folder named SA1.WAV",
        timit(lambda speaker: ((speaker / "SA1.WAV").unlink(), (speaker / "SA1.WAV").mkdir())),
        skipped=(r"unreadable audio: .*SA1\.WAV: cannot read it \(Is a directory\)",),
        used=39,
    ),
    Case(
        "a dangling link",
        timit(lambda speaker: ((speaker / "SA1.WAV").unlink(), (speaker / "SA1.WAV").symlink_to("gone"))),
        skipped=(r"unreadable audio: .*SA1\.WAV: cannot read it \(No such file",),
        used=39,
    ),
    Case(
        "a clip in two cases",
        timit(lambda speaker: shutil.copy(speaker / "SA1.WAV", speaker / "sa1.wav")),
        error=r"Two copies of one TIMIT file: .*SA1\.WAV and .*sa1\.wav",
    ),
    Case(
        "a speaker's folder that cannot be listed",
        timit(lambda speaker: speaker.chmod(0o300)),
        error=r"FCJF0: cannot list it \(Permission denied\)",
    ),
    Case(
        "a region's folder that cannot be entered",
        timit(lambda speaker: speaker.parent.chmod(0o600)),
        error=r"DR1/FCJF0': cannot look at it \(Permission denied\)",
    ),
    Case(
        "NLTK's sample in place of TIMIT",
        lambda folder, tiny: (folder / "dr1-mcpm0").mkdir() or read_split(folder, "timit"),
        error=r"looks like NLTK's TIMIT sample",
    ),
    Case(
        "another split than TIMIT has",
        timit(lambda speaker: None, "dev"),
        error=r"Split 'dev' is not one that TIMIT has",
    ),
]


# --- Checkpoints --------------------------------------------------------------------------------------------


def edited(
    change: Callable[[dict[str, torch.Tensor]], object], **config: Any
) -> Callable[[Path, Reference], Any]:
    """port.load_model of the tiny checkpoint with other tensors or another config.json."""

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


class RunsCode:
    """A pickle that writes a file when it is loaded without care."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.file,))


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
    """Microsoft's .pt with these values in its cfg; None: without them."""
    cfg = {
        "extractor_mode": "layer_norm",
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 8,
        "encoder_attention_heads": 2,
        "activation_fn": "gelu",
        "layer_norm_first": True,
        "conv_feature_layers": "[(4,10,5)] + [(4,3,2)] * 4 + [(4,2,2)] * 2",
        "conv_bias": False,
        "conv_pos": 8,
        "conv_pos_groups": 1,
        "relative_position_embedding": True,
        "num_buckets": 320,
        "max_distance": 800,
        "gru_rel_pos": True,
        "normalize": True,
    } | changes

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


CHECKPOINTS = [
    Case(
        "a missing tensor",
        edited(lambda state: state.pop("wavlm.encoder.layer_norm.bias")),
        error=r"1 tensors that the model needs are missing: wavlm\.encoder\.layer_norm\.bias",
    ),
    Case(
        "a tensor of the wrong shape",
        edited(lambda state: state.update({"lm_head.bias": torch.ones(31)})),
        error=r"1 tensors have the wrong shape: lm_head\.bias is \[31\], expected \[32\]",
    ),
    Case(
        "a tensor that no WavLM has",
        edited(lambda state: state.update(quantizer=torch.ones(2))),
        error=r"1 tensors have no place in the model: quantizer",
    ),
    Case("weights with NaN", edited(poison), error=r"wavlm\.encoder\.layer_norm\.weight holds NaN or Inf"),
    Case(
        "quantised weights", edited(quantise), error=r"output_dense\.weight: of type I8, expected one of F32"
    ),
    Case(
        "a config with another number of layers",
        edited(lambda state: None, num_hidden_layers=4),
        error=r"weights do not fit the configuration\. 38 tensors that the model needs are missing",
    ),
    Case(
        "a config with another width",
        edited(lambda state: None, intermediate_size=95),
        error=r"tensors have the wrong shape: .*intermediate_dense",
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
        error=r"model\.safetensors: not a whole safetensors file",
    ),
    Case(
        "a flipped bit in safetensors' header",
        damaged(flip_header, load_model),
        error=r"model\.safetensors: not a whole safetensors file",
    ),
    Case(
        "a pickle that would run code",
        pickled("pytorch_model.bin"),
        error=r"pytorch_model\.bin: not a checkpoint that can be loaded safely",
    ),
    Case(
        "a .pt that would run code",
        pickled("WavLM.pt"),
        error=r"WavLM\.pt: not a checkpoint that can be loaded safely",
    ),
    Case(
        "a shard that would run code",
        pickled("pytorch_model-1.bin", index=True),
        error=r"pytorch_model-1\.bin: not a checkpoint that can be loaded safely",
    ),
    Case(
        "Microsoft's .pt with a word for a number",
        microsoft(encoder_layers="many"),
        error=r"WavLM\.pt: 'cfg' holds a value of another kind \(invalid literal for int\(\)",
    ),
    Case(
        "Microsoft's .pt with a width that cannot be",
        microsoft(encoder_embed_dim=7),
        error=r"WavLM\.pt: no configuration of a WavLM: num_attention_heads is 2, expected a divisor",
    ),
    Case(
        "Microsoft's .pt with half a cfg",
        microsoft(conv_bias=None),
        error=r"WavLM\.pt: 'cfg' lacks 'conv_bias'",
    ),
    Case("a pickle of numbered tensors", state_dict({0: torch.ones(2)}), error=r"something else under 0"),
    Case(
        "a joint projection of ten rows",
        state_dict({"encoder.transformer.layers.0.attention.attention.in_proj_bias": torch.ones(10)}),
        error=r"in_proj_bias is \[10\], expected query, key and value joined",
    ),
    Case(
        "a state dict of something else",
        state_dict({"encoder.layers.0.fc1.weight": torch.ones(2, 2)}),
        error=r"weights\.pth: 0 convolutions; .*Put its config\.json beside it",
    ),
    Case(
        "a pickle of a list",
        state_dict([torch.ones(2)]),
        error=r"weights\.pth: holds a list, expected a dict",
    ),
    Case(
        "a folder that cannot be listed",
        lambda folder, tiny: listless(folder),
        error=r"cannot list it \(Permission denied\)",
    ),
    Case(
        "a conversion to a name too long for the system",
        lambda folder, tiny: convert(tiny.folder, folder / ("a" * 5000)),
        error=r"cannot look at it \(File name too long\)",
    ),
    Case(
        "a shard that is missing", index(a="model-1.safetensors"), error=r"model-1\.safetensors: no such file"
    ),
    Case(
        "a shard outside the folder",
        index(a="../model.safetensors"),
        error=r"names the shard '\.\./model\.safetensors', expected a file of the same folder",
    ),
    Case(
        "a shard that is the index itself",
        index(a="model.safetensors.index.json"),
        error=r"names the shard 'model\.safetensors\.index\.json'",
    ),
    Case(
        "numbers and names for shards",
        index(a=1, b="x.bin", c=[2]),
        error=r"names the shard 1, expected a file",
    ),
    Case(
        "a folder without weights",
        damaged(lambda folder: (folder / "model.safetensors").unlink(), load_model),
        error=r"copy: has none of model\.safetensors, .*; found added_tokens\.json, config\.json",
    ),
    Case(
        "a config that is cut off",
        damaged(lambda folder: (folder / "config.json").write_text('{"model_type'), load_model),
        error=r"config\.json: not JSON",
    ),
    Case(
        "a config without permission",
        damaged(lambda folder: (folder / "config.json").chmod(0), load_model),
        error=r"config\.json: cannot read it \(Permission denied\)",
    ),
    Case(
        "weights without permission",
        damaged(lambda folder: (folder / "model.safetensors").chmod(0), load_model),
        error=r"model\.safetensors: cannot be read: Permission denied",
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
        error=r"/no: no such file or folder, and not a hub id",
    ),
    Case(
        "the home folder of nobody",
        lambda folder, tiny: load_model("~no-such-user/model"),
        error=r"~no-such-user/model: no such file or folder",
    ),
    Case(
        "no name", lambda folder, tiny: Recogniser.from_pretrained(""), error=r"name of a checkpoint is empty"
    ),
    Case(
        "an unknown hub id, offline",
        lambda folder, tiny: load_model("nobody/no-such-model"),
        error=r"nobody/no-such-model: no such file or folder here, .*HF_HUB_OFFLINE",
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
        error=r"token ids that are missing, repeated or too high: \[0, 99\]",
    ),
    Case(
        "a preprocessor for 8 kHz",
        damaged(rewrite("preprocessor_config.json", sampling_rate=8000), Recogniser.from_pretrained),
        error=r"preprocessor_config\.json: sampling_rate is 8000, expected 16000",
    ),
    Case(
        "a checkpoint converted into itself",
        damaged(nothing, lambda folder: convert(folder, folder)),
        error=r"copy: is the source's own folder",
    ),
    Case(
        "a folder that is no run",
        lambda folder, tiny: export_run(folder, folder / "out"),
        error=r"has no checkpoints/, so it is not the workdir of a run",
    ),
    Case(
        "ten minutes to transcribe",
        lambda folder, tiny: transcribe_one(tiny, folder, TEN_MINUTES),
        error=r"clip\.wav: 600\.0 s, expected at most 60 s",
    ),
    Case(
        "less than a frame to transcribe",
        lambda folder, tiny: transcribe_one(tiny, folder, encoded(NOISE[:399])),
        error=r"clip\.wav: 399 samples at 16 kHz, expected at least 400",
    ),
    Case(
        "text to transcribe",
        lambda folder, tiny: transcribe_one(tiny, folder, b"not audio"),
        error=r"clip\.wav: libsndfile cannot decode it",
    ),
]


def transcribe_one(tiny: Reference, folder: Path, audio: bytes) -> None:
    (folder / "clip.wav").write_bytes(audio)
    (transcript,) = Recogniser.from_pretrained(tiny.folder).transcribe_files([folder / "clip.wav"])
    if transcript.error is not None:
        raise transcript.error


# --- Configurations -----------------------------------------------------------------------------------------


def run(**fields: Any) -> Callable[[Path, Reference], Any]:
    """`train()` of a run with the tiny checkpoint on two clips, with these fields changed ("a__b" is a.b)."""

    def give(folder: Path, tiny: Reference) -> Any:
        for name in ("train", "test"):
            (folder / f"{name}.wav").write_bytes(encoded(NOISE))
            line = row(audio_filepath=f"{name}.wav")
            (folder / f"{name}.jsonl").write_text(line)
        devices = jax.device_count()
        config = TrainConfig(
            workdir=str(folder / "run"),
            model=ModelSettings(checkpoint=str(tiny.folder)),
            data=DataSettings(corpus="manifest", path=str(folder)),
            train=LoopSettings(batch_size=devices, eval_batch_size=devices, steps=1),
            optim=OptimSettings(warmup_steps=0),
        )
        for name, value in fields.items():
            *groups, field = name.split("__")
            holder: Any = config
            for group in groups:
                holder = getattr(holder, group)
            setattr(holder, field, value(folder) if callable(value) else value)
        with without_roots_rights():
            return train(config)

    return give


def script(name: str, *arguments: str, recipe: str = "", **files: bytes) -> Callable[[Path, Reference], Any]:
    """A script in a process of its own; FOLDER and TINY in its arguments are replaced.

    What it prints as its error comes back as a UserError, where it exits as it should.
    """

    def give(folder: Path, tiny: Reference) -> None:
        if recipe:
            (folder / "recipe.py").write_text(recipe)
        given = [a.replace("FOLDER", str(folder)).replace("TINY", str(tiny.folder)) for a in arguments]
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        result = subprocess.run(
            [sys.executable, str(SCRIPTS / name), *given],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stdout + result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: "), result.stderr
        raise UserError(result.stderr.splitlines()[-1].removeprefix("error: "))

    return give


RECIPE = """
from flax_wavlm import WavLMConfig
from flax_wavlm.training.config import TrainConfig

def get_config():
    config = TrainConfig(name="tiny")
    config.model.config = WavLMConfig()
    config.data.corpus = "manifest"
    config.data.path = "/nowhere"
    config.train.steps = 3
    return config
"""
CONFIG = "--config=FOLDER/recipe.py"

CONFIGS = [
    Case(
        "a field that does not exist",
        script("train_flax.py", CONFIG, "--config.optim.lerning_rate=1", recipe=RECIPE),
        error=r"--config\.optim\.lerning_rate: there is no such field; did you mean .*learning_rate",
    ),
    Case(
        "a word for a number",
        script("train_flax.py", CONFIG, "--config.train.steps=many", recipe=RECIPE),
        error=r"--config\.train\.steps=many",
    ),
    Case(
        "a flag that does not exist",
        script("train_flax.py", CONFIG, "--workdr=x", recipe=RECIPE),
        error=r"--workdr: there is no such flag; did you mean '--workdir'",
    ),
    Case("no --config", script("train_flax.py"), error=r"--config is missing"),
    Case(
        "a recipe that does not exist",
        script("train_flax.py", "--config=FOLDER/no.py"),
        error=r"--config=.*no\.py: no such file; the recipes are in configs/",
    ),
    Case(
        "a recipe that is not Python",
        script("train_flax.py", CONFIG, recipe="learning rate: 3\n"),
        error=r"--config=.*recipe\.py:1: SyntaxError",
    ),
    Case(
        "a recipe without get_config",
        script("train_flax.py", CONFIG, recipe="x = 1\n"),
        error=r"--config=.*recipe\.py: AttributeError: .*get_config",
    ),
    Case(
        "a recipe that fails",
        script(
            "train_flax.py", CONFIG, recipe="import os\ndef get_config():\n    return os.environ['NO_SUCH']\n"
        ),
        error=r"--config=.*recipe\.py:3: KeyError: 'NO_SUCH'",
    ),
    Case(
        "a recipe that gives a dict",
        script("train_flax.py", CONFIG, recipe="def get_config():\n    return {}\n"),
        error=r"get_config\(\) gave a dict, expected a TrainConfig",
    ),
    Case(
        "an architecture that cannot be",
        script(
            "train_flax.py", CONFIG, recipe=RECIPE.replace("WavLMConfig()", "WavLMConfig(hidden_size=100)")
        ),
        error=r"config: num_attention_heads is 12, expected a divisor of hidden_size = 100",
    ),
    Case(
        "files that are not asked for",
        script("evaluate.py", "--model=x", "--corpus=timit", "a.wav"),
        error=r"found \['a\.wav'\], expected no argument",
    ),
    Case(
        "no file to transcribe",
        script("transcribe.py", "--model=x"),
        error=r"found \[\], expected FILE\.\.\.",
    ),
    Case("no --model", script("transcribe.py", "a.wav"), error=r"--model"),
    Case(
        "a corpus that does not exist",
        script("evaluate.py", "--model=TINY", "--corpus=timt", "--data=FOLDER"),
        error=r"--corpus is 'timt', expected one of timit",
    ),
    Case(
        "a model that does not exist",
        script("transcribe.py", "--model=FOLDER/no", "FOLDER/a.wav"),
        error=r"/no: no such file or folder, and not a hub id",
    ),
    Case(
        "a run that does not exist",
        script("export_pytorch.py", "--workdir=FOLDER/no", "--output=FOLDER/out"),
        error=r"/no: has no checkpoints/",
    ),
    Case(
        "a conversion of nothing",
        script("convert.py", "FOLDER/no", "FOLDER/out"),
        error=r"/no: no such file or folder",
    ),
    Case(
        "a field that a recipe misspells",
        run(optim__lr=3),
        error=r"optim\.lr: there is no such field",
    ),
    Case(
        "a string for a number",
        run(train__batch_size="8"),
        error=r"train\.batch_size is '8', expected int",
    ),
    Case(
        "a negative batch",
        run(train__batch_size=-8),
        error=r"train\.batch_size is -8, expected 1 or more",
    ),
    Case("a seed of 30 digits", run(seed=10**30), error=r"seed is 10+, expected a number below 2\^31"),
    Case(
        "a batch that the devices cannot share",
        run(train__batch_size=2 * jax.device_count() + 1, train__accumulation=2),
        error=r"train\.batch_size = \d+ cannot be split over \d+ devices",
    ),
    Case(
        "an evaluation batch of nothing",
        run(train__eval_batch_size=0),
        error=r"train\.eval_batch_size is 0",
    ),
    Case(
        "a mesh that the devices do not make",
        run(mesh__fsdp=3),
        error=r"mesh\.data = -1 and mesh\.fsdp = 3 do not fit \d+ devices",
    ),
    Case(
        "a warm-up longer than the run",
        run(train__steps=5, optim__warmup_steps=6),
        error=r"optim\.warmup_steps is 6, expected fewer than the 5 steps",
    ),
    Case(
        "a learning rate of NaN",
        run(optim__learning_rate=float("nan")),
        error=r"optim\.learning_rate is nan, expected a finite number",
    ),
    Case("no steps and no epochs", run(train__steps=0), error=r"train\.steps is 0, expected above 0"),
    Case(
        "a dropout of 7",
        run(model__overrides__hidden_dropout=7.0),
        error=r"config: hidden_dropout is 7\.0, expected between 0 and 1",
    ),
    Case(
        "a data type that there is not",
        run(model__dtype="float16"),
        error=r"config: dtype is 'float16', expected one of float32, bfloat16",
    ),
    Case(
        "a misspelt corpus in a recipe",
        run(data__corpus="manifst"),
        error=r"data\.corpus is 'manifst', .*did you mean 'manifest'",
    ),
    Case(
        "a workdir that is a file",
        run(workdir=lambda folder: str(folder / "train.wav")),
        error=r"train\.wav: cannot be written",
    ),
    Case(
        "a workdir without permission",
        run(workdir=lambda folder: (folder / "locked").mkdir(0o500) or str(folder / "locked" / "run")),
        error=r"run: cannot be written \(Permission denied\)",
    ),
    Case(
        "every clip too long",
        run(data__train_max_seconds=0.5),
        error=r"train: none of the 1 clips can be used",
    ),
    Case(
        "a tokenizer that is not the head's",
        run(
            data__tokenizer=lambda folder: (
                CTCTokenizer.from_texts(["ab"]).save(folder / "ab") or str(folder / "ab")
            )
        ),
        error=r"ab: the tokenizer has 7 tokens, but the CTC head .* has 32 outputs",
    ),
    Case(
        "a data set of the hub, offline",
        run(data__corpus="hub", data__path="nobody/no-such-data"),
        error=r"dataset 'nobody/no-such-data'.*datasets cannot load it",
    ),
]

CASES = [*AUDIO, *TEXT, *MANIFESTS, *TIMIT, *CHECKPOINTS, *CONFIGS]


# --- The test -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A small fine-tuned checkpoint with its tokenizer and preprocessor."""
    reference = tiny_reference(
        "large",
        tmp_path_factory.mktemp("tiny"),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(4,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        scale=0.01,
    )
    CTCTokenizer.from_texts([LETTERS]).save(reference.folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(reference.folder)
    return reference


def test_the_table_is_large_and_its_names_are_unique() -> None:
    assert len({case.given for case in CASES}) == len(CASES) >= 50


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.given)
def test_bad_input(
    case: Case,
    tiny: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    if case.error:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - its type and message are looked at below
            case.give(tmp_path, tiny)
        message = str(raised.value)
        assert type(raised.value) is UserError, repr(raised.value)
        assert re.search(case.error, message), message
        assert "\n" not in message
        # The file or the field is named; what is in no file and no field is named as the user typed it.
        named = (
            str(tmp_path),
            "--",
            "flag",
            "data.",
            "mesh.",
            "train",
            "config:",
            "optim.",
            "seed",
            "plit",
            "nobody/",
            "~no",
            "empty",
        )
        assert any(name in message for name in named), message
    else:
        used, reasons = case.give(tmp_path, tiny)
        assert len(reasons) == len(case.skipped), reasons
        for reason, expected in zip(reasons, case.skipped, strict=True):
            assert re.search(expected, reason), reason
            assert "\n" not in reason
        assert used == case.used
        assert re.search(case.log, caplog.text), caplog.text
    assert "Traceback" not in capfd.readouterr().err

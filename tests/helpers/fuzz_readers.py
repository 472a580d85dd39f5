"""Whole files for the fuzzers, and readers of a file's bytes: (an empty folder, bytes) -> anything."""

import contextlib
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from flax_wavlm import WavLMConfig
from flax_wavlm.data.audio import duration_seconds, read_audio
from flax_wavlm.data.corpora.common_voice import read_common_voice
from flax_wavlm.data.corpora.folder import read_folder
from flax_wavlm.data.corpora.hub import read_hub
from flax_wavlm.data.corpora.kaldi import read_kaldi
from flax_wavlm.data.corpora.manifest import read_manifest
from flax_wavlm.data.corpora.timit import read_timit_sample
from flax_wavlm.data.corpora.utterance import EmptySplit
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.streams import open_stream
from flax_wavlm.data.text import TextRule
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.language_model.arpa import read_arpa, write_arpa
from flax_wavlm.language_model.counting import number_words
from flax_wavlm.language_model.kneser_ney import kneser_ney
from flax_wavlm.language_model.model import NGramModel
from flax_wavlm.language_model.tables import BEGIN, END
from flax_wavlm.language_model.text import WordsByRule, lines_of_files
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.recognition.align import align_text
from flax_wavlm.recognition.aligner import AlignerSize, load_aligner
from flax_wavlm.recognition.beam_search.folder import alphabet, folder_lm
from flax_wavlm.recognition.emissions import Emissions
from flax_wavlm.recognition.known_text import known_text, read_text
from flax_wavlm.recognition.segment_folder import Cutting, announce_finished
from helpers.ngrams import random_model
from helpers.recordings import by_pyav, sweep

JSON_PIECES = (
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
    ),
    *(b"\\ud800", b"\\u0000", b"null", b"true", b"1e999", b"-1", b"NaN", b"0.0", b"~nobody/", b"/", b";"),
    *(b"9" * 400, b"9" * 5000, b"[" * 5000, b'{"a":' * 5000, b"a" * 5000),
    *(b'"audio_filepath"', b'"text"', b'"id"', b'"duration"', b'"offset"'),
)


def audio_files() -> list[bytes]:
    noise = (np.random.default_rng(0).standard_normal(1000) * 3000).astype(np.int16)
    files = []
    for format, subtype, channels, rate in (
        ("WAV", "PCM_16", 1, 16_000),
        ("WAV", "PCM_24", 2, 44_100),
        ("WAV", "FLOAT", 1, 16_000),
        ("WAV", "IMA_ADPCM", 1, 16_000),
        ("WAV", "GSM610", 1, 8_000),
        ("WAVEX", "PCM_16", 1, 16_000),
        ("NIST", "PCM_16", 1, 16_000),
        ("FLAC", "PCM_16", 1, 16_000),
        ("AIFF", "PCM_16", 1, 16_000),
        ("AU", "PCM_16", 1, 16_000),
        ("W64", "PCM_16", 1, 16_000),
        ("CAF", "PCM_16", 1, 16_000),
        ("MP3", None, 1, 16_000),
        ("OGG", None, 1, 16_000),
    ):
        stream = io.BytesIO()
        soundfile.write(stream, np.stack([noise] * channels, 1), rate, format=format, subtype=subtype)
        files.append(stream.getvalue())
    return files


def containers() -> list[bytes]:
    """Whole files in PyAV's containers, and each one's first bytes before random ones."""
    kinds = (
        ("mp4", "aac", 16_000),
        ("mov", "pcm_s16le", 16_000),
        ("webm", "libopus", 48_000),
        ("adts", "aac", 16_000),
        ("amr", "libopencore_amrnb", 8_000),
        ("avi", "pcm_s16le", 16_000),
        ("flv", "aac", 44_100),
    )
    files = [by_pyav(sweep(rate, 0.3), rate, container, codec) for container, codec, rate in kinds]
    random_bytes = np.random.default_rng(0).bytes(2000)
    lists = [b"ffconcat version 1.0\nfile 'clip.wav'\n", b"#EXTM3U\n#EXTINF:3,\nclip.wav\n"]
    return [*files, *(file[:12] + random_bytes for file in files), *lists]


def read_audio_both_ways(folder: Path, data: bytes) -> None:
    (folder / "clip.wav").write_bytes(data)
    for source in (folder / "clip.wav", data):
        samples = read_audio(source, "clip")
        assert samples.ndim == 1
        assert len(samples) > 0
        assert samples.dtype in (np.int16, np.float32)
        assert np.isfinite(samples).all()
        duration_seconds(source)
        with open_stream(source, "clip") as stream:
            pieces = list(iter(lambda stream=stream: stream.read(5_000).tobytes(), b""))
        assert sum(map(len, pieces)) == samples.nbytes


def manifest_reader(suffix: str) -> Callable[[Path, bytes], Any]:
    def read(folder: Path, data: bytes) -> Any:
        for name in ("a.wav", "b.wav"):
            (folder / name).touch()
        (folder / f"train.{suffix}").write_bytes(data)
        return read_manifest(folder, "train")

    return read


TABLE_PIECES = (
    *JSON_PIECES,
    *(
        b"\t",
        b" ",
        b"|",
        b" |",
        b"-",
        b":12",
        b".ark",
        b"../",
        b"\r\n",
        b"\xff\xfe",
        b'""',
        b"\n\n",
        b"a.wav",
    ),
)
KALDI = {
    "wav.scp": b"ra a.wav\nrb b.wav\n",
    "text": b"u1 one two\nu2 three\n",
    "segments": b"u1 ra 0 1.5\nu2 rb 1 -1\n",
    "utt2spk": b"u1 anna\nu2 ben\n",
}


def kaldi_reader(name: str) -> Callable[[Path, bytes], Any]:
    def read(folder: Path, data: bytes) -> Any:
        for audio in ("a.wav", "b.wav"):
            (folder / audio).touch()
        for file, content in (KALDI | {name: data}).items():
            if file == name or not (folder / file).exists():
                (folder / file).write_bytes(content)
        return read_kaldi(folder, "train")

    return read


def read_clips_table(folder: Path, data: bytes) -> Any:
    (folder / "clips").mkdir(exist_ok=True)
    for name in ("a.mp3", "b.mp3"):
        (folder / "clips" / name).touch()
    (folder / "train.tsv").write_bytes(data)
    return read_common_voice(folder, "train")


def read_metadata(folder: Path, data: bytes) -> Any:
    for name in ("a.wav", "b.wav"):
        (folder / name).touch()
    (folder / "metadata.csv").write_bytes(data)
    return read_hub(str(folder), "train")


def read_saved_names(folder: Path, data: bytes) -> Any:
    """The names of splits that `save_to_disk` wrote, each of which has no rows."""
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / "state.json").write_text('{"_data_files": []}')
    (folder / "dataset_dict.json").write_bytes(data)
    with contextlib.suppress(EmptySplit):
        read_hub(str(folder), "train")


def read_text_beside(folder: Path, data: bytes) -> Any:
    (folder / "a.wav").touch()
    (folder / "a.lab").write_bytes(data)
    return read_folder(folder, "train")


def read_sample(folder: Path, data: bytes) -> Any:
    speaker = folder / "dr1-mcpm0"
    speaker.mkdir(exist_ok=True)
    (speaker / "sa1.wav").touch()
    (speaker / "sa1.txt").write_bytes(data)
    utterances, skipped = read_timit_sample(folder, "train", [])
    assert len(utterances) + len(skipped) == 1


def text_reader(tokenizer: CTCTokenizer) -> Callable[[Path, bytes], Any]:
    def read(folder: Path, data: bytes) -> None:
        (folder / "a.txt").write_bytes(data)
        known = known_text(tokenizer, read_text(folder / "a.txt"), "a.txt")
        log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(tokenizer.size), size=50))
        aligned = align_text(Emissions(log_probs, None, 0.02, 1.0), known, "a.wav")
        words = aligned.transcript.words
        assert [word.word for word in words] == [known.text[word.begin : word.end] for word in known.words]
        assert all(0 <= word.start <= word.end <= 1 and 0 <= word.confidence <= 1 for word in words)

    return read


def read_clips_folder(folder: Path, data: bytes) -> None:
    """A folder of clips whose segment.json is damaged."""
    (folder / "a.wav").touch()
    (folder / "train.jsonl").touch()
    (folder / "segment.json").write_bytes(data)
    announce_finished(folder, Cutting(folder / "a.wav", "a text", "a model"))


def written(name: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    def write_and_read(folder: Path, data: bytes) -> Any:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return write_and_read


def tokenizer_reader(good: Path, name: str) -> Callable[[Path, bytes], Any]:
    def read(folder: Path, data: bytes) -> None:
        for file in good.iterdir():
            shutil.copy(file, folder)
        (folder / name).write_bytes(data)
        tokenizer = CTCTokenizer.from_pretrained(folder)
        tokenizer.decode(tokenizer.encode("ab c"), collapsed=True)
        tokenizer.save(folder / "again")
        Preprocessor.from_pretrained(folder)

    return read


def checkpoint_reader(config: Path, name: str) -> Callable[[Path, bytes], Any]:
    def read(folder: Path, data: bytes) -> None:
        shutil.copy(config, folder)
        (folder / name).write_bytes(data)
        for tensor in open_weights(folder).tensors.values():
            tensor.read()

    return read


def read_aligner(folder: Path, data: bytes) -> None:
    (folder / "aligner.safetensors").write_bytes(data)
    config = WavLMConfig(conv_dim=(2,) * 7, vocab_size=3)
    aligner = load_aligner(folder, config, encoder="00000000")
    assert aligner is not None
    assert AlignerSize.of_params(aligner) == (2, 3, 3, 4)


LM_ATTRIBUTES = b'{"alpha": 0.5, "beta": 1.5, "unk_score_offset": -10.0, "score_boundary": true}'
LM_LETTERS = CTCTokenizer.from_texts(["abc"])
LM_ALPHABET = json.dumps({"labels": alphabet(LM_LETTERS), "is_bpe": False}).encode()
HOT_WORDS = "one\nNew York\n\ncaf\u00e9\n".encode()
LM_PIECES = (*JSON_PIECES, b'"alpha"', b'"labels"', b'"score_boundary"', b"[UNK]", b'" "', b'""', b"-10.0")


def lm_folder_reader(name: str) -> Callable[[Path, bytes], Any]:
    """Reads the files beside a language model, of which this one is damaged."""

    def read(folder: Path, data: bytes) -> None:
        (folder / "language_model").mkdir(exist_ok=True)
        (folder / "language_model" / "lm.arpa").touch()
        (folder / name).write_bytes(data)
        found = folder_lm(folder, LM_LETTERS)
        assert found is not None
        assert np.isfinite([found.settings.alpha, found.settings.beta, found.settings.unknown_offset]).all()

    return read


def read_language_model(folder: Path, data: bytes) -> None:
    """A file that is read is a sound model: each score is finite, and it is written and read back."""
    (folder / "lm.arpa").write_bytes(data)
    tables = read_arpa(folder / "lm.arpa")
    model = NGramModel.of(tables)
    words = [word for word in model.words if word not in (BEGIN, END)]
    for sentence in ([], words[:50], words[:50][::-1], [*words[:3] * 4, "nonesuch"]):
        assert -1e7 < model.score(sentence) < 1e6
    write_arpa(folder / "again.arpa", tables)
    again = read_arpa(folder / "again.arpa")
    assert again.words == tables.words
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(again.tables, tables.tables, strict=True))


def train_on_text(folder: Path, data: bytes) -> None:
    """What is made of a text that can be read is a model that can be read."""
    (folder / "text").write_bytes(data)
    text = number_words(map(WordsByRule(TextRule()), lines_of_files([str(folder / "text")])))
    model = kneser_ney(text, 3, prune=[0, 0, 1]).model
    write_arpa(folder / "lm.arpa", model)
    assert read_arpa(folder / "lm.arpa").words == model.words


ARPA_PIECES = (
    *TABLE_PIECES,
    *(
        b"<s>",
        b"</s>",
        b"<unk>",
        b"<UNK>",
        b"\\data\\",
        b"\\end\\",
        b"\\1-grams:",
        b"\\2-grams:",
        b"\\9-grams:",
    ),
    *(
        b"ngram 1=9\n",
        b"ngram 3=99999999\n",
        b"-inf",
        b"nan",
        b"1e9",
        b"-1e30",
        b"-99",
        b"\x1f\x8b",
        b"\n" * 5000,
    ),
)


def arpa_files(folder: Path) -> list[bytes]:
    """Models of 1 to 3 words, whole and pruned, plain and packed; and with lines repeated and cut."""
    for order in (1, 2, 3):
        write_arpa(folder / f"{order}.arpa", random_model(order, order, vocabulary=4, contexts=0.6, ends=0.6))
    plain = [file.read_bytes() for file in sorted(folder.iterdir())]
    lines = plain[-1].splitlines(keepends=True)
    rng = random.Random(0)
    swapped = []
    for _ in range(8):
        moved = list(lines)
        place = rng.randrange(len(lines))
        moved.insert(rng.randrange(len(lines)), moved.pop(place) if rng.random() < 0.6 else moved[place])
        swapped.append(b"".join(moved))
    return [*plain * 4, *(gzip.compress(file) for file in plain), *swapped]

"""What holds for every input, and not for examples alone; and what random damage to a file may end in.

The properties are drawn by hypothesis without a random seed of its own, so that a failure is the same
everywhere. The fuzzers take whole files, flip, cut and insert bytes, and allow two ends only: a result, or a
UserError of one line.
"""

import io
import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import soundfile
import torch
from helpers.reference import tiny_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_wavlm import UserError, WavLMConfig
from flax_wavlm.data.audio import duration_seconds, read_audio
from flax_wavlm.data.batches import FILLER, Batches, eval_batches
from flax_wavlm.data.buckets import choose_buckets
from flax_wavlm.data.clips import Clip, min_ctc_frames
from flax_wavlm.data.corpora.manifest import read_manifest
from flax_wavlm.data.corpora.timit import read_timit_sample
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer, normalise
from flax_wavlm.models.heads import structure
from flax_wavlm.porting.names import canonical_names
from flax_wavlm.porting.pretrained import open_weights
from flax_wavlm.porting.save import hf_tensors
from flax_wavlm.porting.table import HEAD, MASK_EMBEDDING, table
from flax_wavlm.recognition.decoding import collapse
from flax_wavlm.recognition.metrics import error_rates
from flax_wavlm.training.report.metrics import read_metrics

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
SLOWER_PROPERTY = settings(PROPERTY, max_examples=20)

# --- Text ---------------------------------------------------------------------------------------------------

texts = st.lists(st.text(max_size=30), min_size=1, max_size=4)


def spoken(text: str) -> str:
    """A normalised text, where a bar is the space that it stands for in a vocabulary."""
    return " ".join(normalise(text).replace("|", " ").split())


@PROPERTY
@given(texts.filter(lambda drawn: any(spoken(text) for text in drawn)))
def test_a_corpus_can_be_written_with_its_own_vocabulary(drawn: list[str]) -> None:
    """Any text, in any script: labels and back, and none of it unknown."""
    written = [spoken(text) for text in drawn]
    tokenizer = CTCTokenizer.from_texts(written)
    for text in written:
        assert tokenizer.normalise(text) == text
        assert tokenizer.unknown_characters(text) == set()
        assert tokenizer.unknown_share(text) == 0
        labels = tokenizer.encode(text)
        assert len(labels) == len(text)
        assert not set(labels) & tokenizer.special_ids
        assert tokenizer.decode(labels, collapsed=True) == text


@SLOWER_PROPERTY
@given(texts.filter(lambda drawn: any(spoken(text) for text in drawn)))
def test_a_tokenizer_is_the_same_after_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[str]
) -> None:
    tokenizer = CTCTokenizer.from_texts(map(spoken, drawn))
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    again = CTCTokenizer.from_pretrained(folder)
    assert (again.size, again.blank_id, again.special_ids) == (
        tokenizer.size,
        tokenizer.blank_id,
        tokenizer.special_ids,
    )
    assert [again.token(id) for id in range(again.size)] == [tokenizer.token(id) for id in range(again.size)]


# --- Decoding and error rates -------------------------------------------------------------------------------


def plain_collapse(path: list[int], blank_id: int) -> list[int]:
    labels, before = [], None
    for label in path:
        if label not in (before, blank_id):
            labels.append(label)
        before = label
    return labels


@PROPERTY
@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 4))
def test_collapse_is_the_plain_one(path: list[int], blank_id: int) -> None:
    assert collapse(np.array(path, np.int32), blank_id).tolist() == plain_collapse(path, blank_id)


@PROPERTY
@given(st.lists(st.integers(1, 4), max_size=12), st.data())
def test_collapse_undoes_every_alignment(labels: list[int], data: st.DataObject) -> None:
    """Labels said for any number of frames, with blanks wherever they may and must be."""
    path = [0] * data.draw(st.integers(0, 2))
    for label, following in zip(labels, [*labels, None][1:], strict=True):
        path += [label] * data.draw(st.integers(1, 3)) + [0] * data.draw(st.integers(label == following, 2))
    assert collapse(np.array(path, np.int32), 0).tolist() == labels
    assert min_ctc_frames(np.array(labels, np.int32)) <= len(path)


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's distance, by his own table."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        before, row = row, [i]
        for j, found in enumerate(hypothesis, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (expected != found)))
    return row[-1]


sentences = st.text("abc ", max_size=12).map(normalise)


@PROPERTY
@given(
    st.lists(st.tuples(sentences, sentences), min_size=1, max_size=5).filter(lambda p: any(r for r, _ in p))
)
def test_error_rates_are_the_plain_ones(pairs: list[tuple[str, str]]) -> None:
    rates = error_rates([r for r, _ in pairs], [h for _, h in pairs])
    units: dict[str, Callable[[str], list[str]]] = {"wer": str.split, "cer": list}
    for name, unit in units.items():
        total = sum(len(unit(reference)) for reference, _ in pairs)
        wrong = sum(edits(unit(reference), unit(hypothesis)) for reference, hypothesis in pairs)
        assert rates[name] == pytest.approx(wrong / total)


# --- Batches ------------------------------------------------------------------------------------------------


def clips_of(lengths: list[int]) -> list[Clip]:
    """Clips whose every sample says whose it is."""
    return [
        Clip(str(i), np.full(length, i + 1, np.float32), np.full(1 + i % 9, 1 + i % 7, np.int32), "", "")
        for i, length in enumerate(lengths)
    ]


lengths_of_clips = st.lists(st.integers(400, 6000), min_size=1, max_size=40)


def check_whole(batches: list[dict[str, np.ndarray]], clips: list[Clip]) -> None:
    """Each clip once, every sample and label of it, and nothing else in its row."""
    seen: Counter[int] = Counter()
    for batch in batches:
        for values, length, labels, width, valid, index in zip(
            *(batch[key] for key in ("samples", "lengths", "labels", "label_lengths", "valid", "clip")),
            strict=True,
        ):
            assert valid == (index != FILLER)
            if valid:
                seen[int(index)] += 1
                np.testing.assert_array_equal(values[:length], clips[index].samples)
                np.testing.assert_array_equal(labels[:width], clips[index].labels)
            assert not values[length if valid else 0 :].any()
    assert seen == Counter(range(len(clips)))


@SLOWER_PROPERTY
@given(lengths_of_clips, st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_every_clip_is_used_once_and_whole(
    lengths: list[int], share: int, processes: int, buckets: int, seed: int
) -> None:
    """In each epoch of training and in an evaluation, over all processes together."""
    clips, chosen = clips_of(lengths), choose_buckets(lengths, buckets)
    for epoch in range(2):
        batches = []
        for process in range(processes):
            own = Batches(
                clips,
                share * processes,
                chosen,
                steps=1000,
                seed=seed,
                do_normalize=False,
                process_index=process,
                process_count=processes,
            )
            steps = range(epoch * own.steps_per_epoch, (epoch + 1) * own.steps_per_epoch)
            batches += [own[step] for step in steps]
        check_whole(batches, clips)
    shares = [
        eval_batches(
            clips,
            share * processes,
            chosen,
            do_normalize=False,
            process_index=process,
            process_count=processes,
        )
        for process in range(processes)
    ]
    check_whole([batch for own in shares for batch in own], clips)


@PROPERTY
@given(lengths_of_clips, st.integers(1, 6), st.integers(1, 8))
def test_padding_is_bounded(lengths: list[int], buckets: int, batch_size: int) -> None:
    chosen = choose_buckets(lengths, buckets)
    own = [min(bucket for bucket in chosen if bucket >= length) for length in lengths]
    # Buckets only help, and with one for each length what is left is the rounding up to a frame.
    assert sum(own) <= len(lengths) * choose_buckets(lengths, 1)[0]
    if buckets >= len({-(-length // 320) for length in lengths}):
        assert all(bucket - length < 320 for bucket, length in zip(own, lengths, strict=True))
    # An evaluation's clips are sorted, so that each border between two buckets falls into one batch.
    batches = list(eval_batches(clips_of(lengths), batch_size, chosen, do_normalize=False))
    padded = sum(batch["samples"].shape[1] * int(batch["valid"].sum()) for batch in batches)
    assert padded <= sum(own) + (batch_size - 1) * (chosen[-1] - chosen[0])


# --- The table of names -------------------------------------------------------------------------------------


@st.composite
def architectures(draw: st.DrawFn) -> WavLMConfig:
    """Small models of every kind."""
    convs, heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = st.lists(st.integers(1, 3), min_size=convs, max_size=convs).map(tuple)
    return WavLMConfig(
        vocab_size=draw(st.integers(1, 5)),
        hidden_size=heads * groups * draw(st.integers(1, 2)),
        num_hidden_layers=draw(st.integers(1, 12)),
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(1, 5)),
        feat_extract_norm=draw(st.sampled_from(["group", "layer"])),
        conv_dim=draw(sizes),
        conv_stride=draw(sizes),
        conv_kernel=draw(sizes),
        conv_bias=draw(st.booleans()),
        num_conv_pos_embeddings=draw(st.integers(1, 4)),
        num_conv_pos_embedding_groups=groups,
        num_buckets=8,
        do_stable_layer_norm=draw(st.booleans()),
    )


# Hugging Face's names, without "wavlm.", as the other formats spell them.
OLD_WEIGHT_NORM = (
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
)
TORCHAUDIO = (
    *OLD_WEIGHT_NORM,
    (r"^encoder\.", "encoder.transformer."),
    (r"^feature_projection\.", "encoder.feature_projection."),
    (r"^lm_head\.", "aux."),
    (r"attention\.out_proj", "attention.attention.out_proj"),
)
MICROSOFT = (
    *OLD_WEIGHT_NORM,
    (r"^masked_spec_embed$", "mask_emb"),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"pos_conv_embed\.conv\.", "pos_conv.0."),
    (r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"\.attention\.gru_rel_pos_linear\.", ".self_attn.grep_linear."),
    (r"\.attention\.gru_rel_pos_const", ".self_attn.grep_a"),
    (r"\.attention\.rel_attn_embed\.", ".self_attn.relative_attention_bias."),
    (r"\.attention\.", ".self_attn."),
    (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
    (r"\.feed_forward\.output_dense\.", ".fc2."),
)


def spelled(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    name = name.removeprefix("wavlm.")
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def microsoft_norms(name: str, config: WavLMConfig) -> str:
    norm = r"\1.2.1." if config.feat_extract_norm == "layer" else r"\1.2."
    return re.sub(r"(conv_layers\.\d+)\.self_attn_layer_norm\.", norm, name)


@settings(PROPERTY, max_examples=12)
@given(architectures(), st.integers(0, 2**31 - 1))
def test_every_name_has_one_place_and_back(config: WavLMConfig, seed: int) -> None:
    entries = table(config)
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    rng = np.random.default_rng(seed)
    theirs = {entry.name: rng.standard_normal(entry.shape).astype(np.float32) for entry in entries}

    ours = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), structure(config)[1])
    filled = jax.tree.map(lambda leaf: np.zeros(leaf.shape, int), ours)
    for entry in entries:
        array, count = ours, filled
        for key in entry.path:
            array, count = array[key], count[key]
        array[entry.index] = entry.layout.to_ours(theirs[entry.name])
        count[entry.index] += 1
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(filled))  # every element, once
    again = hf_tensors(config, ours)
    assert set(names) - set(again) <= {MASK_EMBEDDING}
    for name, array in again.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name, strict=True)

    # Every format's spelling of every name leads to this name, and no two names to one spelling.
    for rules in ((), OLD_WEIGHT_NORM, TORCHAUDIO, MICROSOFT):
        spellings = {name: microsoft_norms(spelled(name, rules), config) for name in names}
        assert len(set(spellings.values())) == len(names)
        for name, spelling in spellings.items():
            if not (rules is MICROSOFT and name in HEAD):  # Microsoft's has no head
                assert canonical_names(spelling) == [name]
    joint = {f"{part}_proj.{what}" for part in "qkv" for what in ("weight", "bias")}
    for what in ("weight", "bias"):
        joined = canonical_names(f"encoder.transformer.layers.0.attention.attention.in_proj_{what}")
        assert set(joined) <= set(names)
        joint -= {name.removeprefix("wavlm.encoder.layers.0.attention.") for name in joined}
    assert not joint


# --- Random damage ------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """Whole files, and a reader of (an empty folder, a file's bytes)."""

    seeds: list[bytes]
    read: Callable[[Path, bytes], Any]
    pieces: tuple[bytes, ...] = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
    quick: int = 250  # executions in the fast suite


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
    """Counts of the ends: "result" and "UserError". Any other end fails, and leaves its input in `folder`."""
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


def read_audio_both_ways(folder: Path, data: bytes) -> None:
    (folder / "clip.wav").write_bytes(data)
    for source in (folder / "clip.wav", data):
        samples = read_audio(source, "clip")
        assert samples.ndim == 1
        assert len(samples) > 0
        assert samples.dtype in (np.int16, np.float32)
        assert np.isfinite(samples).all()
        duration_seconds(source)


def manifest_reader(suffix: str) -> Callable[[Path, bytes], Any]:
    def read(folder: Path, data: bytes) -> Any:
        for name in ("a.wav", "b.wav"):
            (folder / name).touch()
        (folder / f"train.{suffix}").write_bytes(data)
        return read_manifest(folder, "train")

    return read


def read_sample(folder: Path, data: bytes) -> Any:
    speaker = folder / "dr1-mcpm0"
    speaker.mkdir(exist_ok=True)
    (speaker / "sa1.wav").touch()
    (speaker / "sa1.txt").write_bytes(data)
    utterances, skipped = read_timit_sample(folder, "train", [])
    assert len(utterances) + len(skipped) == 1


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
    metrics = b'{"step": 1, "split": "train", "loss": 2.5}\n{"step": 2, "split": "test", "wer": 0.5}\n'
    return {
        "audio": Target(audio_files(), read_audio_both_ways, quick=1500),
        "manifest.jsonl": Target([jsonl], manifest_reader("jsonl"), JSON_PIECES, quick=1000),
        "manifest.csv": Target([csv], manifest_reader("csv"), JSON_PIECES, quick=1000),
        "TIMIT's .TXT": Target([b"0 46797 She had your dark suit.\n"], read_sample, JSON_PIECES),
        "metrics.jsonl": Target([metrics], written("metrics.jsonl", read_metrics), JSON_PIECES),
        "config.json": Target(
            [config.read_bytes()], written("config.json", WavLMConfig.from_hf), JSON_PIECES
        ),
        **{
            name: Target([(good / name).read_bytes()], tokenizer_reader(good, name), JSON_PIECES, quick=100)
            for name in ("vocab.json", "tokenizer_config.json", "preprocessor_config.json")
        },
        "safetensors": Target(
            [(reference.folder / "model.safetensors").read_bytes()],
            checkpoint_reader(config, "model.safetensors"),
        ),
        "pickle": Target(pickles, checkpoint_reader(config, "pytorch_model.bin")),
    }


NAMES = (
    "audio",
    "manifest.jsonl",
    "manifest.csv",
    "TIMIT's .TXT",
    "metrics.jsonl",
    "config.json",
    "vocab.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "safetensors",
    "pickle",
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

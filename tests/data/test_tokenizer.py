"""The recipe's normalisation and vocabulary, and parity with transformers' tokenizer."""

import json
import os
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import Parts, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.text import TextRule, before_0_2
from flax_wavlm.data.tokenizer import CTCTokenizer, normalise, vocabulary
from flax_wavlm.errors import UserError

ENGLISH = [string.ascii_lowercase, "don't stop"]
VOCAB = {c: i for i, c in enumerate([*string.ascii_lowercase, "'", "|", "[UNK]", "[PAD]"])}


@pytest.fixture(scope="module")
def tokenizer() -> CTCTokenizer:
    return CTCTokenizer.from_texts(ENGLISH)


def reference(vocab: dict, folder: Path, **settings) -> Wav2Vec2CTCTokenizer:
    """transformers' own tokenizer, made as the seed's notebook made it."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **settings)


# The seed's rule


@pytest.mark.parametrize(
    ("written", "normalised"),
    [
        ("Don't ask me to carry an oily rag like that.", "don't ask me to carry an oily rag like that"),
        ("Wine glass heels, in high and semi-heights.", "wine glass heels in high and semiheights"),
        ('She said: "Why? Go!"; then left.', "she said why go then left"),
        ("  two \t spaces \n here - and there ", "two spaces here and there"),
        ("(kept) 1+1 é", "(kept) 1+1 é"),
        ("?!", ""),
    ],
)
def test_timit_is_the_recipes_rule(written, normalised):
    assert TextRule("timit")(written) == before_0_2(written) == normalised


@given(st.text())
def test_normalise_is_idempotent_and_never_doubles_the_delimiter(text):
    once = normalise(text)
    assert normalise(once) == once
    assert "  " not in once
    assert once == once.strip()


def test_english_vocabulary_is_the_recipes():
    assert vocabulary(ENGLISH) == VOCAB
    assert list(vocabulary(ENGLISH).values()) == list(range(30))


def test_vocabulary_depends_on_the_set_of_characters_alone():
    texts = ["zé 1", "b'a", "|"]
    expected = {"a": 0, "b": 1, "z": 2, "é": 3, "'": 4, "1": 5, "|": 6, "[UNK]": 7, "[PAD]": 8}
    assert vocabulary(texts) == vocabulary(reversed(texts)) == vocabulary(iter(texts * 2)) == expected


@pytest.mark.parametrize("texts", [[], [""], ["  "]])
def test_vocabulary_of_nothing_is_an_error(texts):
    with refused("no text holds a single character", do="text column"):
        vocabulary(texts)


# The tokenizer


def test_ids_blank_and_head_width_are_the_recipes(tokenizer):
    assert (tokenizer.size, tokenizer.blank_id) == (32, 29)
    assert [tokenizer.token(id) for id in (0, 26, 27, 28, 29, 30, 31)] == [
        "a", "'", "|", "[UNK]", "[PAD]", "<s>", "</s>",
    ]  # fmt: skip
    assert tokenizer.special_ids == {28, 29, 30, 31}  # the word delimiter, 27, stands for a space


def test_collapsed_ids_are_not_grouped_again(tokenizer):
    frames = [7, 7, 29, 4, 11, 29, 11, 11, 14, 29, 27, 27, 29, 0, 29]
    assert tokenizer.decode(frames, collapsed=False) == "hello a"
    assert tokenizer.decode(np.array([7, 4, 11, 11, 14], np.int32), collapsed=True) == "hello"
    assert tokenizer.decode([7, 4, 11, 11, 14], collapsed=False) == "helo"
    assert tokenizer.decode([], collapsed=False) == ""


@settings(max_examples=100, deadline=None)
@given(
    frames=st.lists(st.integers(0, 31), max_size=30),
    text=st.text(string.ascii_lowercase + "' é<>", max_size=20),
)
def test_encode_and_decode_equal_transformers(tmp_path_factory, tokenizer, frames, text):
    theirs = getattr(test_encode_and_decode_equal_transformers, "theirs", None)
    if theirs is None:
        folder = tmp_path_factory.mktemp("theirs")
        theirs = reference(VOCAB, folder, unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|")
        test_encode_and_decode_equal_transformers.theirs = theirs
    assert tokenizer.decode(frames, collapsed=False) == theirs.decode(frames)
    assert tokenizer.encode(text) == theirs(text).input_ids


@given(st.text(string.ascii_lowercase + "' "))
@settings(max_examples=50, deadline=None)
def test_labels_decode_to_their_text(tokenizer, text):
    text = normalise(text)
    assert tokenizer.decode(tokenizer.encode(text), collapsed=True) == text


def test_unknown_characters_are_named_and_become_the_unknown_token(tokenizer):
    assert tokenizer.unknown_characters("naïve 4 o'clock") == {"ï", "4"}
    assert tokenizer.encode("é") == [28]
    assert tokenizer.unknown_characters("all known") == set()


def test_a_text_that_spells_the_blank_is_refused(tokenizer):
    with refused(r"'a \[PAD\]' spells the pad token"):
        tokenizer.encode("a [PAD]")


UPPER = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "L": 6, "H": 7, "O": 8}


@pytest.mark.parametrize("do_lower_case", [False, True])
def test_upper_case_vocabularies(tmp_path, do_lower_case):
    theirs = reference(UPPER, tmp_path / "made", do_lower_case=do_lower_case)
    theirs.save_pretrained(tmp_path / "saved")
    tokenizer = CTCTokenizer.from_pretrained(tmp_path / "saved")
    text = tokenizer.normalise("Hello, ho!")
    assert text == ("hello ho" if do_lower_case else "HELLO HO")
    assert tokenizer.encode(text) == [7, 5, 6, 6, 8, 4, 7, 8]
    assert tokenizer.decode([7, 0, 5, 6, 0, 6, 8, 4, 7, 8, 8], collapsed=False) == text
    assert tokenizer.unknown_characters(tokenizer.normalise("hex")) == {"x" if do_lower_case else "X"}
    assert (tokenizer.size, tokenizer.blank_id, tokenizer.special_ids) == (9, 0, {0, 1, 2, 3})


def test_case_that_the_vocabulary_has_is_kept(tmp_path):
    reference({"a": 0, "A": 1, "|": 2, "<pad>": 3, "<unk>": 4}, tmp_path)
    assert CTCTokenizer.from_pretrained(tmp_path).normalise("Aa") == "Aa"
    for rule in (TextRule("timit"), TextRule("before-0.2")):
        assert CTCTokenizer.from_pretrained(tmp_path, rule=rule).normalise("A.a") == "aa"


def test_unknown_token_outside_the_vocabulary(tmp_path):
    reference({"a": 0, "|": 1, "<pad>": 2}, tmp_path)
    tokenizer = CTCTokenizer.from_pretrained(tmp_path)
    assert tokenizer.size == 6  # <unk>, <s> and </s> are added
    assert tokenizer.token(tokenizer.encode("b")[0]) == "<unk>"  # transformers gives None here
    assert tokenizer.unknown_characters("b") == {"b"}


# Saved folders


@pytest.fixture
def export(tmp_path, tokenizer) -> Path:
    folder = tmp_path / "new" / "export"
    tokenizer.save(folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(folder)
    return folder


def test_saved_folder_reads_back_the_same(export, tokenizer, tmp_path):
    again = CTCTokenizer.from_pretrained(export)
    assert (again.size, again.blank_id, again.special_ids) == (32, 29, tokenizer.special_ids)
    assert [again.token(id) for id in range(32)] == [tokenizer.token(id) for id in range(32)]
    again.save(tmp_path / "twice")
    for name in ("vocab.json", "added_tokens.json", "tokenizer_config.json"):
        first, second = (json.loads((folder / name).read_text()) for folder in (export, tmp_path / "twice"))
        # A loaded tokenizer also writes where it came from.
        assert {field: second[field] for field in first} == first
    assert Preprocessor.from_pretrained(export) == Preprocessor(True, True, 16_000)


@pytest.mark.parametrize("with_config", [False, True])
def test_transformers_loads_the_saved_folder(export, tokenizer, with_config):
    if with_config:
        (export / "config.json").write_text(json.dumps({"model_type": "wavlm", "vocab_size": 32}))
    text = "don't stop"
    for theirs in (AutoTokenizer.from_pretrained(export), Wav2Vec2CTCTokenizer.from_pretrained(export)):
        assert type(theirs) is Wav2Vec2CTCTokenizer
        assert theirs(text).input_ids == tokenizer.encode(text)
        assert (len(theirs), theirs.pad_token_id) == (32, 29)
    extractor = AutoFeatureExtractor.from_pretrained(export)
    assert type(extractor) is Wav2Vec2FeatureExtractor
    assert (extractor.do_normalize, extractor.return_attention_mask, extractor.sampling_rate) == (
        True,
        True,
        16_000,
    )
    assert (extractor.feature_size, extractor.padding_value, extractor.padding_side) == (1, 0.0, "right")
    for processor in (Wav2Vec2Processor.from_pretrained(export), AutoProcessor.from_pretrained(export)):
        assert type(processor) is Wav2Vec2Processor
        assert processor(text=text).input_ids == tokenizer.encode(text)


def test_files_written_by_transformers_processor(export, tmp_path):
    Wav2Vec2Processor.from_pretrained(export).save_pretrained(tmp_path / "theirs")
    assert CTCTokenizer.from_pretrained(tmp_path / "theirs").size == 32
    assert Preprocessor.from_pretrained(tmp_path / "theirs") == Preprocessor(True, True)


@pytest.mark.parametrize(
    ("vocab", "parts"),
    [
        (None, Parts(r"cannot be read \(No such file", where=r"vocab\.json$")),
        ("{'a': 0", Parts("not JSON", where=r"vocab\.json$")),
        ("[1]", Parts("holds a list", where=r"vocab\.json$", expected="an object")),
        ('{"a": "0"}', Parts("token 'a' has the id 0", expected="a whole number")),
        ('{"a": true, "|": 0, "<pad>": 2}', Parts("token 'a' has the id True")),
        ('{"eng": {"a": 0}}', Parts("token 'eng'", do="nested by language")),
        ('{"a": 0, "b": 0, "|": 1, "<pad>": 2, "<unk>": 3}', Parts("repeated", found=[0, 4])),
        ('{"a": 0, "|": 2, "<pad>": 3, "<unk>": 4, "<s>": 5, "</s>": 6}', Parts("missing", found=[1, 6])),
        ('{"a": 0, "|": 1}', Parts(r"pad token '<pad>' is not in vocab", do=r"tokenizer_config\.json")),
    ],
)
def test_unusable_vocabularies(tmp_path, vocab, parts):
    if vocab is not None:
        (tmp_path / "vocab.json").write_text(vocab)
    with pytest.raises(UserError) as error:
        CTCTokenizer.from_pretrained(tmp_path)
    parts.check(error.value)
    assert str(tmp_path) in error.value.where


def test_broken_tokenizer_config(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(UPPER))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with refused("not JSON", where=r"tokenizer_config\.json$"):
        CTCTokenizer.from_pretrained(tmp_path)


def test_neither_folder_nor_hub_id(tmp_path):
    with refused("no such file or folder", where="nowhere$", expected="microsoft/wavlm-large"):
        CTCTokenizer.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "model.bin").write_bytes(b"")
    with refused("is not a folder", where=r"model\.bin$"):
        Preprocessor.from_pretrained(tmp_path / "model.bin")


NO_JAX = """
import sys
import flax_wavlm.data.corpora.load
import flax_wavlm.data.tokenizer
assert "jax" not in sys.modules
"""


def test_texts_are_read_without_jax():
    """In a process of its own, as jax is imported here."""
    subprocess.run([sys.executable, "-c", NO_JAX], check=True)


OFFLINE = """
import sys
sys.modules["torch"] = None  # as where torch is not installed
from flax_wavlm.errors import UserError
from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
heavy = [m for m in ("transformers", "datasets") if m in sys.modules]
assert not heavy, heavy
tokenizer = CTCTokenizer.from_texts(["abc"])
tokenizer.save(sys.argv[1])
assert CTCTokenizer.from_pretrained(sys.argv[1]).encode("cab") == [2, 0, 1]
for load in (CTCTokenizer.from_pretrained, Preprocessor.from_pretrained):
    try:
        load("nobody/no-such-checkpoint")
    except UserError as error:
        assert "nobody/no-such-checkpoint" in str(error) and "HF_HUB_OFFLINE" in str(error), error
    else:
        raise AssertionError("loaded")
"""


def test_without_torch_and_offline(tmp_path):
    """In a process of its own: HF_HUB_OFFLINE is read when huggingface_hub is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", OFFLINE, str(tmp_path / "saved")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

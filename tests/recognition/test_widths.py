"""CTC heads and tokenizers of unequal width: transformers' text, or an error that says what has no output."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import transformers
from helpers.errors import refused
from helpers.reference import Reference, tiny_reference

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError
from flax_wavlm.porting.verify import speech_like
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.training.config import DataSettings, LoopSettings, ModelSettings, OptimSettings, TrainConfig
from flax_wavlm.training.train import train

pytestmark = pytest.mark.usefixtures("one_device")

LETTERS = "abcdefghijklmnopqrstuvwxyz'"  # 32 tokens: with |, [UNK], [PAD], and <s>, </s> added behind
CLIP = speech_like(2.0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A model of 40 outputs, which the others are cut from."""
    return tiny_reference(
        "large",
        tmp_path_factory.mktemp("wide"),
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        conv_dim=(8,) * 7,
    )


def with_width(wide: Reference, outputs: int, folder: Path, tokens: str = LETTERS) -> Path:
    folder.mkdir(exist_ok=True)
    values = json.loads((wide.folder / "config.json").read_text()) | {"vocab_size": outputs}
    (folder / "config.json").write_text(json.dumps(values))
    state = {name: tensor.contiguous() for name, tensor in wide.model.state_dict().items()}
    for name in ("lm_head.weight", "lm_head.bias"):
        state[name] = state[name][:outputs].contiguous()
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    CTCTokenizer.from_texts([tokens]).save(folder)
    Preprocessor(do_normalize=True, return_attention_mask=True).save(folder)
    return folder


def theirs(folder: Path, clips: Sequence[np.ndarray]) -> list[str]:
    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    return [pipeline(clip)["text"] for clip in clips]


@pytest.mark.parametrize("outputs", [30, 40])
def test_text_equals_the_pipelines(
    outputs: int, wide: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """30: without <s> and </s>. 40: padded to a multiple of 8; what lies beyond is the unknown token."""
    folder = with_width(wide, outputs, tmp_path)
    clips = [CLIP, CLIP[5000:19_000]]
    with caplog.at_level(logging.WARNING, "flax_wavlm"):
        recogniser = Recogniser.from_pretrained(folder)
    assert [t.text for t in recogniser.transcribe(clips)] == theirs(folder, clips)
    assert recogniser.config.vocab_size == recogniser.tokenizer.size == outputs
    assert ("has 40 outputs, and the tokenizer 32 tokens" in caplog.text) == (outputs == 40)


def test_a_padded_head_gives_the_unknown_token() -> None:
    tokenizer = CTCTokenizer.from_texts([LETTERS]).for_head(40, head="m", do="")
    assert tokenizer.decode([0, 35, 29, 1], collapsed=False) == "a[UNK]b"
    assert set(range(32, 40)) < tokenizer.special_ids


@pytest.mark.parametrize(
    ("outputs", "missing"), [(31, "'</s>'"), (29, r"'\[PAD\]', '<s>', '</s>'"), (27, r"'\|', '\[UNK\]'")]
)
def test_a_head_of_another_vocabulary(outputs: int, missing: str) -> None:
    with refused(
        "32 tokens", expected=f"the {outputs} of the CTC head .*none of them is for {missing}", do="x"
    ):
        CTCTokenizer.from_texts([LETTERS]).for_head(outputs, head="m", do="x")


def test_an_added_letter_beyond_the_head(tmp_path: Path) -> None:
    """added_tokens.json with a line that is no special token."""
    CTCTokenizer.from_texts([LETTERS]).save(tmp_path)
    theirs = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["é"])
    theirs.save_pretrained(tmp_path)
    tokenizer = CTCTokenizer.from_pretrained(tmp_path)
    assert tokenizer.size == 33
    with refused("33 tokens", expected="the 32 of .*none of them is for 'é'"):
        tokenizer.for_head(32, head="m", do="x")
    assert tokenizer.for_head(33, head="m", do="x").encode("é") == [32]


def test_no_label_beyond_the_head(tmp_path: Path) -> None:
    """Neither a special token spelled in a text, nor the unknown token where it is an added one."""
    tokenizer = CTCTokenizer.from_texts([LETTERS]).for_head(30, head="m", do="")
    assert tokenizer.encode("ab") == [0, 1]
    with pytest.raises(UserError, match="'a<s>' needs <s>, for which the CTC head has no output"):
        tokenizer.encode("a<s>")
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "|": 1, "a": 2}')
    bare = CTCTokenizer.from_pretrained(tmp_path).for_head(3, head="m", do="")
    assert bare.encode("a a") == [2, 1, 2]
    with pytest.raises(UserError, match="needs <unk>, for which the CTC head has no output"):
        bare.encode("ab")


def test_a_language_model_in_the_folder_is_used(
    wide: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_width(wide, 32, tmp_path)
    (folder / "language_model").mkdir()
    (folder / "language_model" / "a.arpa").write_text(
        "\\data\\\nngram 1=4\n\n\\1-grams:\n-99 <s>\n-1 </s>\n-4 <unk>\n-0.5 she\n\n\\end\\\n"
    )
    with caplog.at_level(logging.INFO, "flax_wavlm"):
        found = Recogniser.from_pretrained(folder, beam=10)
    assert caplog.text.count("a.arpa: the model's own language model is used") == 1
    assert found.decoder.describe() == "beam 10, a.arpa, alpha 0.5, beta 1.5"
    assert Recogniser.from_pretrained(folder, lm="none").decoder.describe() == "greedy"


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [30, 40])
def test_training_keeps_width_and_tokenizer(outputs: int, wide: Reference, tmp_path: Path) -> None:
    """And transformers loads what is exported, and gives our text."""
    folder = with_width(wide, outputs, tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", CLIP, 16_000, "FLOAT")
    for split in ("train", "test"):
        row = {"audio_filepath": "a.wav", "text": "she had"}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    result = train(
        TrainConfig(
            workdir=str(tmp_path / "run"),
            model=ModelSettings(checkpoint=str(folder)),
            data=DataSettings(corpus="manifest", path=str(tmp_path), buckets=1),
            train=LoopSettings(batch_size=1, eval_batch_size=1, steps=1, aligner=False),
            optim=OptimSettings(warmup_steps=0, learning_rate=1e-9),
        )
    )
    before, after = (safetensors.torch.load_file(f / "model.safetensors") for f in (folder, result.export))
    assert after["lm_head.weight"].shape == (outputs, 32)
    torch.testing.assert_close(after["lm_head.weight"], before["lm_head.weight"], atol=1e-6, rtol=0)
    for name in ("vocab.json", "added_tokens.json"):
        assert json.loads((result.export / name).read_text()) == json.loads((folder / name).read_text())
    [transcript] = Recogniser.from_pretrained(result.export).transcribe([CLIP])
    assert [transcript.text] == theirs(result.export, [CLIP])

"""The text rule of a run: saved with the model, and read again by whatever takes that model up."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from helpers.killed import killed_at
from helpers.reference import tiny_reference
from helpers.small_run import lines, small_run
from transformers import AutoTokenizer

from flax_wavlm import Recogniser
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.text import BEFORE, TextRule
from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.extras import EXTRAS_FILE, Extras, TrainingSeconds, read_extras
from flax_wavlm.training.config import ModelSettings, TextSettings
from flax_wavlm.training.start import StartingPoint, open_starting_point
from flax_wavlm.training.train import train

TEXTS = ("Iğdır'ın İLİ, değil mi?", "ÇOK | şey", "a")


def begin(folder: Path | str, texts: tuple[str, ...] = TEXTS, **text: Any) -> StartingPoint:
    """What a run on these texts starts from; "": random weights."""
    return open_starting_point(
        ModelSettings(checkpoint=str(folder)) if folder else tiny_model(),
        {"train": [Utterance(f"clip {n}", Path("x.wav"), one) for n, one in enumerate(texts)]},
        text=TextSettings(**text),
        overrides={},
        tokenizer="",
        reduction="mean",
        corpus="",
    )


def tiny_model() -> ModelSettings:
    return ModelSettings(config=WavLMConfig(feat_extract_norm="layer", do_stable_layer_norm=True))


def fine_tuned(folder: Path, **text: Any) -> tuple[Path, StartingPoint]:
    """A folder as a run exports it, and what the run began with."""
    begun = begin("", **text)
    tiny_reference("large", folder, vocab_size=begun.tokenizer.size, pad_token_id=begun.tokenizer.blank_id)
    config = (folder / "config.json").read_text()
    begun.save_processor(folder, TrainingSeconds(1.0, 2.0))
    (folder / "config.json").write_text(config)
    return folder, begun


def test_the_next_fine_tuning_reads_the_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, begun = fine_tuned(tmp_path, language="tr")
    assert begun.fresh_head
    assert begun.tokenizer.normalise(TEXTS[0]) == "ığdır'ın ili değil mi"
    assert read_extras(folder) == Extras(TextRule(language="tr"), False, TrainingSeconds(1.0, 2.0))
    with caplog.at_level("WARNING"):
        again = begin(folder)
    assert not again.fresh_head
    assert again.tokenizer.normalise(TEXTS[0]) == "ığdır'ın ili değil mi"
    assert again.tokenizer.encode("ığdır") == begun.tokenizer.encode("ığdır")
    assert "text rule" not in caplog.text


def test_a_rule_that_is_set_takes_the_saved_ones_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is the default: what is written in a recipe is never passed over."""
    folder, _ = fine_tuned(tmp_path, preset="written", keep="|")
    assert begin(folder).tokenizer.normalise("Çok, şey") == "Çok, şey"
    with caplog.at_level("WARNING"):
        again = begin(folder, preset="auto", remove=",")
    assert again.tokenizer.rule == TextRule("auto", remove=",")
    assert "takes the place of the one in" in caplog.text
    assert EXTRAS_FILE in caplog.text


def test_evaluation_reads_the_rule_and_can_change_it(tmp_path: Path) -> None:
    folder, _ = fine_tuned(tmp_path, language="tr")
    assert Recogniser.from_pretrained(folder).tokenizer.normalise("ILI") == "ılı"
    other = Recogniser.from_pretrained(folder, text={"language": "", "case": None})
    assert other.tokenizer.normalise("ILI") == "ili"
    with pytest.raises(UserError, match=r"text\.case is 'loud', expected one of"):
        Recogniser.from_pretrained(folder, text={"case": "loud"})


def test_what_the_tokenizer_uses_for_itself_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        begin("", (*TEXTS, "b [UNK] c"), preset="written")
    said = caplog.text
    assert "the text has 1 times '|', the word delimiter, which cannot be a label: read as a blank" in said
    assert "the text spells '[UNK]' 1 times, which the tokenizer uses for itself (clip clip 3)" in said
    assert "rare symbols, fewer than 10 times, each with a clip:" in said
    assert "İ 2x (clip 0)" in said


def test_the_alphabet_has_every_symbol(tmp_path: Path) -> None:
    folder, _ = fine_tuned(tmp_path, language="tr")
    head, *rows = (folder / "alphabet.tsv").read_text(encoding="utf-8").splitlines()
    assert head.split("\t") == ["symbol", "count", "in train", "label", "example"]
    assert "ı\t3\t3\tlabel\tclip 0" in rows
    assert "?\t1\t\tremoved\tclip 0" in rows


@pytest.mark.slow
def test_a_run_by_symbols(tmp_path: Path) -> None:
    """Phonemes of several letters: one label each, scored one by one, loaded by transformers."""
    config = small_run(tmp_path, "run")
    for file in Path(config.data.path).rglob("*.TXT"):
        file.write_text("0 100 sil hh ix-h t͡ʃ sil\n")
    config.text = TextSettings(preset="tokens")
    config.train.steps, config.train.eval_every, config.optim.warmup_steps = 2, 2, 0
    result = train(config)
    [row] = lines(tmp_path / "run", "test")
    assert row["wer"] >= 0
    theirs = AutoTokenizer.from_pretrained(result.export)
    assert [theirs.encoder[symbol] for symbol in ("hh", "sil", "ix-h", "t͡ʃ")] == [0, 1, 2, 3]
    assert theirs.decode([2, 2, 0, 5, 0, 3]) == "ix-h hh hh t͡ʃ"
    predictions = (tmp_path / "run" / "predictions").glob("*.jsonl")
    references = {json.loads(line)["reference"] for file in predictions for line in file.open()}
    assert references == {"sil hh ix-h t͡ʃ sil"}
    recogniser = Recogniser.from_pretrained(result.export)
    assert recogniser.tokenizer.by_token
    assert recogniser.tokenizer.encode("sil t͡ʃ") == [1, 3]


@pytest.mark.slow
def test_a_run_begun_before_the_rule_goes_on_with_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_run(tmp_path, "run")
    config.text = TextSettings(preset=BEFORE)
    with killed_at(batch=4):
        train(config)
    saved_file = tmp_path / "run" / "config.json"
    saved = json.loads(saved_file.read_text())
    del saved["text"], saved["data"]["dev"], saved["data"]["channel"], saved["train"]["best_by"]
    saved_file.write_text(json.dumps(saved))

    with caplog.at_level("INFO"):
        result = train(small_run(tmp_path, "run"))  # a recipe of today says preset timit
    assert "text.preset = 'before-0.2'" in caplog.text
    assert read_extras(result.export).text == TextRule(BEFORE)
    assert [row["step"] for row in lines(tmp_path / "run", "train")] == [2, 4, 6]

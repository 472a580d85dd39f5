"""The text rule: right values in many languages, one Unicode form, and how it follows a vocabulary."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from flax_wavlm.data.alphabet import describe_alphabet
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.text import SEED_DELETES, TextRule, before_0_2
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError

VALUES = [
    ("“Don’t,” she said — ‘not yet’ … well–known", "don't she said not yet well known"),
    ("¿Qué? ¡Hola!", "qué hola"),
    ("« C’est l’été » : oui", "c'est l'été oui"),
    ("Tiếng Việt, đẹp lắm!", "tiếng việt đẹp lắm"),
    ("Straße, ÄRGER", "straße ärger"),
    ("你好，世界。（谢谢）", "你好世界谢谢"),
    ("สวัสดี ๆ ฯ", "สวัสดี ๆ ฯ"),
    ("น\u0e4d\u0e49\u0e32", "น้ำ"),
    ("नमस्ते। कैसे हैं॥ घर | पेड़", "नमस्ते कैसे हैं घर पेड़"),
    ("مرحبا، كيف حالك؟", "مرحبا كيف حالك"),
    ("العـــربية \ufefb\ufe8d", "العربية لاا"),
    ("می\u200cروم\u200c a\u200cb", "می\u200cروم ab"),
    ("צה\"ל ג'ירפה צה״ל", "צה״ל ג׳ירפה צה״ל"),
    ("ինչո՞ւ և", "ինչու եւ"),
    ("한국어! ㅋㅋ", "한국어 ㅋㅋ"),
    ("ΟΔΟΣ. ΑΣ", "οδος ας"),
    ("col·legi coŀlegi", "col·legi col·legi"),
    ("м’ята, мʼята", "м'ята м'ята"),
    ("İstanbul", "istanbul"),
    ("ﬁne ｈｅｌｌｏ\u00a0trans\u00adcript", "fine hello transcript"),
    ("x² ½ ①", "x² ½ ①"),
]


@pytest.mark.parametrize(("written", "expected"), VALUES)
def test_own_data(written: str, expected: str) -> None:
    assert TextRule()(written) == expected
    for form in ("NFC", "NFD"):
        assert TextRule()(unicodedata.normalize(form, written)) == expected


@pytest.mark.parametrize(
    ("rule", "written", "expected"),
    [
        (TextRule(language="tr"), "İstanbul IĞDIR", "istanbul ığdır"),
        (TextRule(language="az", case="upper"), "istanbul ığdır", "İSTANBUL IĞDIR"),
        (TextRule(language="de-CH"), "Straße", "strasse"),
        (TextRule(case="upper"), "Straße", "STRASSE"),
        (TextRule(case="keep"), "Hallo, Welt", "Hallo Welt"),
        (TextRule(keep="-"), "well-known, yes", "well-known yes"),
        (TextRule(remove="-"), "well-known, yes", "wellknown yes"),
        (TextRule("written"), "Don’t  go, ﬁne.", "Don’t go, fine."),
        (TextRule("tokens"), " AA1  t͡ʃ ˈiː | S ", "AA1 t͡ʃ ˈiː | S"),
        (TextRule("timit"), "Semi-heights (kept) I", "semiheights (kept) i"),
    ],
)
def test_settings(rule: TextRule, written: str, expected: str) -> None:
    assert rule(written) == expected


LETTERS = st.text(st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S", "Z")), max_size=12)


@settings(max_examples=200, deadline=None)
@given(LETTERS, st.sampled_from(["auto", "timit", "written", "tokens"]))
def test_a_text_equals_itself_in_another_form(text: str, preset: str) -> None:
    rule = TextRule(preset)
    assert rule(unicodedata.normalize("NFD", text)) == rule(text) == rule(unicodedata.normalize("NFC", text))
    assert rule(rule(text)) == rule(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_timit_is_on_ascii_what_it_was(text: str) -> None:
    assert TextRule("timit")(text) == before_0_2(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "timi"}, "text.preset is 'timi'.*timit"),
        ({"case": "Lower"}, "text.case"),
        ({"language": "turkish language"}, "text.language"),
        ({"remove": "a", "keep": "a"}, "also in text.remove"),
        ({"preset": "before-0.2", "case": "keep"}, "takes no other setting"),
    ],
)
def test_wrong_settings(fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TextRule(**fields)


def existing(folder: Path, tokens: list[str], rule: TextRule | None = None) -> CTCTokenizer:
    vocab = {token: id for id, token in enumerate([*tokens, "<unk>", "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return CTCTokenizer.from_pretrained(folder, rule=rule or TextRule())


@pytest.mark.parametrize(
    ("tokens", "written", "expected"),
    [
        ("|abcHW.,!'", "Hab, Wa! (c)", "Hab, Wa! c"),
        ("|ABC'", "ab “c’a”", "AB C'A"),
        ("|SAß", "saß", "SAß"),
        ("|SA\u1e9e", "saß", "SA\u1e9e"),
        ("|SA", "saß", "SASS"),
        ("|e\u0301\u0302", "ế", "e\u0302\u0301"),
        ("|abc’", "a'b", "a’b"),
        ("|ab.", "a…b", "a...b"),
        ("你好", "你 好，", "你好"),
        ("|եւ\u0587", "եւ \u0587", "\u0587 \u0587"),
    ],
)
def test_the_rule_follows_a_vocabulary(tmp_path: Path, tokens: str, written: str, expected: str) -> None:
    tokenizer = existing(tmp_path, list(tokens))
    text = tokenizer.normalise(written)
    assert text == expected
    assert tokenizer.normalise(text) == text
    assert tokenizer.decode(tokenizer.encode(text), collapsed=True) == text


def test_tokens_of_several_letters(tmp_path: Path) -> None:
    tokenizer = existing(tmp_path, ["|", "<noise>", "sch", "a", "b", "u"])
    text = tokenizer.normalise("Ab <noise> Schub!")
    assert text == "ab <noise> schub"
    assert tokenizer.encode(text) == [3, 4, 0, 1, 0, 2, 5, 4]
    assert tokenizer.decode(tokenizer.encode(text), collapsed=True) == text


def test_special_tokens_in_a_hypothesis_stay(tmp_path: Path) -> None:
    assert existing(tmp_path, list("|ab")).normalise_hypothesis("A<unk>b<pad>.") == "a<unk>b<pad>"


def test_the_word_delimiter_is_no_label() -> None:
    tokenizer = CTCTokenizer.from_texts(["a b"], TextRule("written"))
    assert tokenizer.normalise("a|b") == "a b"
    clips = [Utterance("c", Path(), "a|b")]
    assert "'|', the word delimiter" in describe_alphabet(tokenizer, {"train": clips}).announced[0]


def test_symbols_as_labels(tmp_path: Path) -> None:
    rule = TextRule("tokens")
    tokenizer = CTCTokenizer.from_texts([rule("ʃ iː t"), rule("AA1 t")], rule)
    text = tokenizer.normalise("ʃ  iː t t")
    ids = tokenizer.encode(text)
    assert len(ids) == 4
    assert tokenizer.decode(ids, collapsed=True) == text
    assert tokenizer.decode([ids[0], ids[0], tokenizer.blank_id, ids[1]], collapsed=False) == "ʃ iː"
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.decode([ids[0], ids[0], tokenizer.blank_id, ids[1]]) == "ʃ iː"
    assert CTCTokenizer.from_pretrained(tmp_path, rule=rule, follows=False).encode(text) == ids


def test_the_alphabet_of_a_corpus() -> None:
    rule = TextRule()
    train = [Utterance(f"t{i}", Path(), "İl; don’t") for i in range(12)]
    other = [Utterance("x", Path(), "zed")]
    texts = [rule(clip.text) for clip in train + other]
    alphabet = describe_alphabet(CTCTokenizer.from_texts(texts, rule), {"train": train, "test": other})
    assert "removes them: ; 12" in alphabet.summary
    assert "z 1x (x)" in alphabet.summary
    assert any("text.language is not set" in line for line in alphabet.announced)
    assert any("no training text has" in line and "z (x)" in line for line in alphabet.announced)
    assert alphabet.table.splitlines()[0].startswith("symbol\tcount")
    assert set(SEED_DELETES) & set(alphabet.summary)

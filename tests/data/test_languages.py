"""The synthetic corpus in other languages: what is said, in which characters, and what train never has."""

import ctypes
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused

from flax_wavlm.data.corpora.espeak import Espeak, open_espeak
from flax_wavlm.data.corpora.grammar import Grammar, count, draw
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.sentences import ENGLISH, GERMAN, GRAMMARS, MANDARIN
from flax_wavlm.data.corpora.synthetic import MANIFEST, make_corpus

CLIPS = {"train_clips": 40, "test_clips": 12, "dev_clips": 6}


@pytest.fixture(scope="module", params=["de", "cmn"])
def language(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def corpus(language: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("spoken") / language, language=language, **CLIPS)


def sentences(corpus: Path, split: str) -> list[str]:
    return [clip.text for clip in load_corpus("synthetic", corpus, split)[0]]


def words(grammar: Grammar, *, unseen: bool = False) -> set[str]:
    templates = grammar.unseen if unseen else grammar.templates
    return {word for slots in templates for slot in slots for phrase in slot for word in phrase.split()}


def test_a_grammar_says_each_sentence_once() -> None:
    for grammar in GRAMMARS.values():
        every = [grammar.spell(grammar.templates, one) for one in range(count(grammar.templates))]
        assert len(set(every)) == len(every)
        assert set(every).isdisjoint(
            grammar.spell(grammar.unseen, one) for one in range(count(grammar.unseen))
        )


def test_sentences_by_number() -> None:
    assert ENGLISH.spell(ENGLISH.templates, 0) == "Bin blue at zero zero again."
    assert ENGLISH.spell(ENGLISH.templates, 25_599) == "Set white with nine nine soon."
    assert GERMAN.spell(GERMAN.templates, 0) == "Der Bäcker sieht oft den grünen Apfel."
    assert GERMAN.spell(GERMAN.templates, 16 * 14 * 3 * 18) == "Heute steht hinter dem Haus ein müder Hund."
    assert MANDARIN.spell(MANDARIN.templates, 1) == "我买了两张纸。"


def test_drawn_numbers_are_new() -> None:
    drawn = draw(np.random.default_rng(0), 60, 100, range(0, 80, 2))
    assert len(set(drawn)) == 60
    assert set(drawn) == set(range(100)) - set(range(0, 80, 2))


def test_vocabularies_are_as_large_as_promised() -> None:
    assert len(words(GERMAN)) >= 150
    assert set("äöüß") < set("".join(words(GERMAN)))
    assert len(set("".join(words(MANDARIN)))) >= 150
    # Each part of an unseen compound is in a compound that train has.
    new = words(GERMAN, unseen=True) - words(GERMAN)
    assert len(new) == 24
    for word in new:
        ways = [(word[:cut], word[cut:]) for cut in range(3, len(word) - 3)]
        assert any(
            any(known.startswith(first) for known in words(GERMAN))
            and any(known.endswith(second) and known[0].isupper() for known in words(GERMAN))
            for first, second in ways
        )


def test_splits_share_no_sentence_and_no_voice(language: str, corpus: Path) -> None:
    speakers = json.loads((corpus / MANIFEST).read_text())["speakers"]
    texts, voices = {}, {}
    for split in ("train", "dev", "test"):
        clips, skipped = load_corpus("synthetic", corpus, split)
        assert (len(clips), skipped) == (CLIPS[f"{split}_clips"], [])
        texts[split] = {clip.text for clip in clips}
        voices[split] = {speakers[clip.speaker.upper()]["voice"] for clip in clips}
        assert all(voice.startswith(f"{language}+") for voice in voices[split])
    assert len(set.union(*texts.values())) == sum(CLIPS.values())
    assert len(set.union(*voices.values())) == sum(map(len, voices.values()))


def test_texts_are_composed_and_of_the_grammar(language: str, corpus: Path) -> None:
    grammar = GRAMMARS[language]
    allowed = set("".join(words(grammar))) | {" ", grammar.end}
    for split in ("train", "dev", "test"):
        for text in sentences(corpus, split):
            assert unicodedata.is_normalized("NFC", text)
            assert set(text) - {text[0]} <= allowed
            assert text.endswith(grammar.end)
            assert (" " in text) == (grammar.blank == " ")


def test_one_test_clip_in_three_has_an_unseen_word(language: str, corpus: Path) -> None:
    new = words(GRAMMARS[language], unseen=True) - words(GRAMMARS[language])
    having = {
        split: sum(not new.isdisjoint(text.strip(".").split()) for text in sentences(corpus, split))
        for split in ("train", "dev", "test")
    }
    assert having == {"train": 0, "dev": 2 if new else 0, "test": 4 if new else 0}


def test_word_times_where_the_language_has_words(language: str, corpus: Path) -> None:
    assert len(list(corpus.rglob("*.WRD"))) == (58 if language == "de" else 0)
    for path in corpus.rglob("*.WRD"):
        spoken = [line.split()[2] for line in path.read_text(encoding="utf-8").splitlines()]
        sentence = path.with_suffix(".TXT").read_text(encoding="utf-8").split(" ", 2)[2]
        assert spoken == sentence.lower().rstrip(".\n").split()


def test_a_language_is_a_setting_of_the_corpus(language: str, corpus: Path) -> None:
    assert json.loads((corpus / MANIFEST).read_text())["settings"]["language"] == language
    with refused(f"language is {language} there, en asked", where=str(corpus)):
        make_corpus(corpus, **CLIPS)


@pytest.fixture(scope="module")
def espeak() -> Iterator[Espeak]:
    with open_espeak() as opened:
        yield opened


@pytest.mark.parametrize(
    ("voice", "sentence"),
    [
        ("de+f1", "Die große Ärztin läuft über die Straße."),
        ("vi+m3", "Tôi muốn uống nước."),
        ("vi", unicodedata.normalize("NFD", "Tôi muốn uống nước.")),
        ("tr", "Küçük kız çiçek aldı."),
        ("ru", "Мама мыла раму."),
    ],
)
def test_word_events_count_characters(espeak: Espeak, voice: str, sentence: str) -> None:
    samples, spoken = espeak.speak(sentence, voice=voice, rate=200, pitch=50)
    assert [word for _, word in spoken] == sentence.rstrip(".").split()
    begins = [begin for begin, _ in spoken]
    assert begins == sorted(begins)
    assert begins[-1] < len(samples) / espeak.rate


def phonemes(espeak: Espeak, text: str, voice: str) -> str:
    """espeak-ng's phonemes; "(en)" among them says that it goes on in English."""
    library = espeak._library
    library.espeak_SetVoiceByName(voice.encode())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = (ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int)
    left = ctypes.c_char_p(text.encode())
    return library.espeak_TextToPhonemes(ctypes.byref(left), 1, 0).decode()


def test_nothing_is_said_in_english(espeak: Espeak) -> None:
    assert "(en)" in phonemes(espeak, "我 computer", "cmn")
    for grammar in (GERMAN, MANDARIN):
        for word in words(grammar) | words(grammar, unseen=True):
            assert "(" not in phonemes(espeak, word, grammar.voice)


def test_every_mandarin_character_is_one_syllable_with_a_tone(espeak: Espeak) -> None:
    assert phonemes(espeak, "妈", "cmn").startswith("m'A55")
    assert phonemes(espeak, "马", "cmn").startswith("m'A214")
    for word in words(MANDARIN):
        said = phonemes(espeak, word, "cmn")
        assert len(re.findall(r"11|35|51|55|214", said)) == len(word), (word, said)


def test_no_two_choices_of_a_slot_sound_alike(espeak: Espeak) -> None:
    """So that the sentence can be written down from its sound."""
    for grammar in (GERMAN, MANDARIN):
        for slot in {slot for template in grammar.templates for slot in template}:
            assert len({phonemes(espeak, choice, grammar.voice) for choice in slot}) == len(slot)

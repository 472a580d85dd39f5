"""A synthetic corpus in TIMIT's layout: sentences of a small grammar, spoken by espeak-ng.

It is small, free and made in seconds, so that the demo can take the same road as TIMIT: files on a disk,
unseen test speakers, word times. `sentences` has the grammars: English commands, and other languages.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from flax_wavlm.data.corpora.espeak import Espeak, open_espeak
from flax_wavlm.data.corpora.grammar import Grammar, count, draw
from flax_wavlm.data.corpora.sentences import GRAMMARS
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, cannot_write, did_you_mean, some
from flax_wavlm.files import folder_beside, move_folder
from flax_wavlm.progress import tracked

log = logging.getLogger(__name__)

MANIFEST = "corpus.json"  # written last: a folder without it is not a whole corpus
VERSION = 1  # the recipe's: another version makes other files from the same settings

# A voice is a variant (`voices/!v` in espeak-ng's data: pitch, formants, timbre) of one accent. Three kinds
# are left out: the Klatt variants, which are robotic and, drawing on libc's random numbers, not repeatable;
# whispers; and variants near to one of another split's.
VOICES = {
    "TRAIN": {
        "F": ("f1", "f2", "f3", "f5", "Annie", "steph"),
        "M": ("m1", "m3", "m5", "m6", "m7", "m8", "Alex", "Michael", "michel", "pablo"),
    },
    "TEST": {"F": ("f4", "linda"), "M": ("m2", "m4", "victor")},
    "DEV": {"F": ("Andrea", "shelby"), "M": ("Gene", "antonio", "robert")},
}
_CLIPS_PER_SPEAKER = 10  # as in TIMIT
_UNSEEN = 3  # in dev and test, one clip in three has a word that train lacks, where the grammar has such


class _Settings(NamedTuple):
    """What a corpus depends on. A field at its default is not written, as it was added later."""

    seed: int
    train_clips: int
    test_clips: int
    dev_clips: int = 0
    language: str = "en"

    def saved(self) -> dict[str, Any]:
        later = {k: v for k, v in self._asdict().items() if v != self._field_defaults.get(k)}
        return {"version": VERSION, **later}


class Speaker(NamedTuple):
    """Who speaks, and how."""

    name: str  # TIMIT's form: the sex, three initials, a digit
    voice: str
    rate: int  # words per minute
    pitch: int  # 0 to 100, 50 being the voice's own


class _Clip(NamedTuple):
    path: str  # without suffix, relative to the corpus
    number: int  # from 0, over all splits
    speaker: Speaker
    sentence: str


_Plan = dict[str, list[_Clip]]  # by split


def make_corpus(
    folder: Path,
    *,
    seed: int = 0,
    train_clips: int = 600,
    test_clips: int = 100,
    dev_clips: int = 0,
    language: str = "en",
) -> Path:
    """Makes the corpus in `folder`, or reuses it if it is already there.

    Files are in TIMIT's layout, `{TRAIN,TEST,DEV}/DR1/<speaker>/<sentence>.{WAV,TXT,WRD}`: NIST SPHERE
    (16-bit PCM, 16 kHz, mono), the text in UTF-8, and the word times in samples, which a language without
    blanks has not. No sentence occurs twice, and no espeak-ng variant speaks in two splits. The same
    arguments give the same bytes, with the same versions of espeak-ng, soxr and NumPy. TRAIN and TEST do not
    depend on `dev_clips`. `corpus.json` holds the settings and the speakers' voices.

    The corpus is made in a temporary folder beside `folder` and moved there when it is whole. A folder that
    holds only part of the same corpus is completed, also one that was made without DEV. Nothing is ever
    deleted from `folder`, and several processes may make the same corpus at once.

    Args:
        folder: where the corpus lies or shall lie; it and its parents need not exist.
        seed: for sentences, voices, rates, pitches, levels and noise.
        train_clips, test_clips, dev_clips: how many clips each split has; together at most as many as the
            grammar has sentences, which is 25,600 in English. Without dev clips there is no DEV.
        language: one of `sentences.GRAMMARS`.

    Returns:
        `folder`.

    Raises:
        UserError: espeakng-loader is missing or does not work; `folder` holds a corpus with other settings,
            or files that are not this corpus's; it cannot be written; an argument is out of range.
    """
    folder = Path(folder)
    settings = _Settings(seed, train_clips, test_clips, dev_clips, language)
    _check(settings)
    plan = _plan(settings)
    try:
        if not (missing := _missing(folder, settings, plan)):
            return folder
        count = sum(len(plan[split]) for split in missing)
        log.info("%s: not yet there, so %d clips of synthetic speech are made", folder, count)
        with folder_beside(folder) as made:
            _write(made, settings, plan, missing)
            # Where it cannot be moved, files are there by now: an interrupted making's, or another process's.
            if not move_folder(made, folder) and _missing(folder, settings, plan):
                _complete(folder, made, [clip for split in missing for clip in plan[split]], settings)
    except (OSError, soundfile.LibsndfileError) as error:
        raise cannot_write(folder, error) from error
    return folder


def _check(settings: _Settings) -> None:
    if settings.seed < 0:
        raise UserError(field="data.synthetic.seed", found=settings.seed, expected="0 or more")
    for name, least in (("train_clips", 1), ("test_clips", 1), ("dev_clips", 0)):
        if (number := getattr(settings, name)) < least:
            raise UserError(field=f"data.synthetic.{name}", found=number, expected=f"{least} or more")
    if settings.language not in GRAMMARS:
        raise UserError(
            field="data.synthetic.language",
            found=settings.language,
            expected=f"one of {', '.join(GRAMMARS)}",
            do=did_you_mean(settings.language, GRAMMARS),
        )
    possible = count(GRAMMARS[settings.language].templates)
    others = settings.test_clips + settings.dev_clips
    if settings.train_clips + others > possible:
        beside = f"{settings.test_clips} test clips"
        if settings.dev_clips:
            beside += f" and {settings.dev_clips} dev clips"
        raise UserError(
            field="data.synthetic.train_clips",
            found=settings.train_clips,
            expected=f"at most {max(0, possible - others)} beside {beside}, as the grammar has {possible} "
            "sentences",
        )


def _plan(settings: _Settings) -> _Plan:
    """Who says what: sentences without replacement, speakers with rate and pitch."""
    grammar = GRAMMARS[settings.language]
    numbers = itertools.count()  # of clips
    names = itertools.count()  # of speakers
    rng = np.random.default_rng(settings.seed)
    total = settings.train_clips + settings.test_clips
    seen = draw(rng, total, count(grammar.templates))
    unseen = draw(rng, settings.test_clips // _UNSEEN, count(grammar.unseen)) if grammar.unseen else seen[:0]
    train = [grammar.spell(grammar.templates, one) for one in seen[: settings.train_clips]]
    test = _mixed(grammar, seen[settings.train_clips :], unseen)
    plan = {
        split: _cast(split, sentences, grammar.voice, rng, names, numbers)
        for split, sentences in (("TRAIN", train), ("TEST", test))
    }
    if settings.dev_clips:
        rng = np.random.default_rng([settings.seed, 0, 1])  # its own: DEV changes nothing in TRAIN and TEST
        others = draw(rng, settings.dev_clips, count(grammar.templates), seen)
        if grammar.unseen:
            unseen = draw(rng, settings.dev_clips // _UNSEEN, count(grammar.unseen), unseen)
        plan["DEV"] = _cast("DEV", _mixed(grammar, others, unseen), grammar.voice, rng, names, numbers)
    return plan


def _mixed(grammar: Grammar, seen: np.ndarray, unseen: np.ndarray) -> list[str]:
    """The sentences of `seen`; every third one makes room for one of `unseen`, as long as there are any."""
    sentences = [grammar.spell(grammar.templates, one) for one in seen]
    for place, one in enumerate(unseen):
        sentences[(place + 1) * _UNSEEN - 1] = grammar.spell(grammar.unseen, one)
    return sentences


def _cast(
    split: str,
    sentences: list[str],
    accent: str,
    rng: np.random.Generator,
    names: Iterator[int],
    numbers: Iterator[int],
) -> list[_Clip]:
    """Gives ten sentences each to speakers, whose voices are the split's in a random order."""
    voices = [(sex, variant) for sex, variants in VOICES[split].items() for variant in variants]
    rng.shuffle(voices)
    clips: list[_Clip] = []
    for first in range(0, len(sentences), _CLIPS_PER_SPEAKER):
        sex, variant = voices[first // _CLIPS_PER_SPEAKER % len(voices)]
        name = next(names)
        initials = "".join(chr(ord("A") + name // 26**place % 26) for place in (2, 1, 0))
        speaker = Speaker(
            name=f"{sex}{initials}0",
            voice=f"{accent}+{variant}",
            rate=int(rng.integers(170, 231)),
            pitch=int(rng.integers(35, 66)),
        )
        for sentence in sentences[first : first + _CLIPS_PER_SPEAKER]:
            number = next(numbers)
            # SI are the sentences that TIMIT has only once.
            path = f"{split}/DR1/{speaker.name}/SI{number + 1}"
            clips.append(_Clip(path, number, speaker, sentence))
    return clips


def _suffixes(settings: _Settings) -> tuple[str, ...]:
    return (".WAV", ".TXT", ".WRD") if GRAMMARS[settings.language].word_times else (".WAV", ".TXT")


def _files(clips: list[_Clip], settings: _Settings) -> list[str]:
    return [clip.path + suffix for clip in clips for suffix in _suffixes(settings)]


def _missing(folder: Path, settings: _Settings, plan: _Plan) -> list[str]:
    """The splits that are not whole; UserError where making them would mix them with something else."""
    if not folder.exists():
        return list(plan)
    if not folder.is_dir():
        raise UserError(
            "is a file", where=folder, expected="the synthetic corpus's folder", do="choose another"
        )
    expected = {split: set(_files(clips, settings)) for split, clips in plan.items()}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if MANIFEST in found:
        without_dev = _check_settings(folder, settings)
        return [split for split in plan if not expected[split] <= found or (split == "DEV" and without_dev)]
    if foreign := sorted(found.difference(*expected.values())):
        raise UserError(
            f"holds {len(foreign)} files that are not of the synthetic corpus asked for: {some(foreign)}",
            where=folder,
            do="choose another folder, or an empty one",
        )
    return list(plan)


def _check_settings(folder: Path, settings: _Settings) -> bool:
    """Whether the corpus in the folder only lacks DEV; UserError where other settings differ."""
    try:
        theirs = _Settings._field_defaults | json.loads((folder / MANIFEST).read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "is not a synthetic corpus's", where=folder / MANIFEST, do="choose another folder"
        ) from error
    asked = {"version": VERSION, **settings._asdict()}
    without_dev = theirs["dev_clips"] == 0 < settings.dev_clips
    differences = [
        f"{name} is {theirs.get(name)} there, {value} asked"
        for name, value in asked.items()
        if theirs.get(name) != value and not (name == "dev_clips" and without_dev)
    ]
    if differences:
        raise UserError(
            f"holds a synthetic corpus with other settings ({'; '.join(differences)})",
            where=folder,
            do="choose another folder, or delete this one",
        )
    return without_dev


def _complete(folder: Path, made: Path, clips: list[_Clip], settings: _Settings) -> None:
    """Moves the files one by one: each move is atomic, and any other process moves the same bytes."""
    for name in (*_files(clips, settings), MANIFEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / name, folder / name)


def _write(folder: Path, settings: _Settings, plan: _Plan, splits: list[str]) -> None:
    """Writes the splits that are asked for, and the manifest of the whole corpus.

    What espeak-ng says depends on what it said before. DEV is spoken by a fresh one, so that it has the same
    bytes whether it is made with the others or later.
    """
    for part in (("TRAIN", "TEST"), ("DEV",)):
        if any(split in splits for split in part):
            clips = [clip for split in part for clip in plan[split]]
            with open_espeak() as espeak:
                for clip in tracked(clips, f"speaking {' and '.join(part).lower()}", len(clips)):
                    _write_clip(folder, settings, clip, espeak)
    speakers = {clip.speaker.name: clip.speaker._asdict() for clips in plan.values() for clip in clips}
    manifest = {"settings": settings.saved(), "speakers": speakers}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _write_clip(folder: Path, settings: _Settings, clip: _Clip, espeak: Espeak) -> None:
    grammar = GRAMMARS[settings.language]
    rng = np.random.default_rng([settings.seed, clip.number])
    write_recording(folder / clip.path, clip.sentence, clip.speaker, grammar, rng, espeak)


def write_recording(
    path: Path,
    sentence: str,
    speaker: Speaker,
    grammar: Grammar,
    rng: np.random.Generator,
    espeak: Espeak,
) -> None:
    """Speaks a sentence and writes it in TIMIT's layout, as `make_corpus` describes it.

    Args:
        path: without suffix; its folder is made if need be.
        sentence: with the mark at its end.
        speaker: their voice, rate and pitch.
        grammar: the sentence's, for its mark and whether there are word times.
        rng: of the silence around the speech, its level and noise.
        espeak: speaks. What it says depends on what it said before.
    """
    samples, words = _record(espeak, sentence, speaker, grammar, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    # TIMIT's samples are little-endian.
    soundfile.write(f"{path}.WAV", samples, SAMPLE_RATE, subtype="PCM_16", endian="LITTLE", format="NIST")
    lines = {".TXT": f"0 {len(samples)} {sentence}\n"}
    if grammar.word_times:
        lines[".WRD"] = "".join(f"{begin} {end} {word}\n" for begin, end, word in words)
    for suffix, text in lines.items():
        Path(f"{path}{suffix}").write_text(text, encoding="utf-8")


def _record(
    espeak: Espeak, sentence: str, speaker: Speaker, grammar: Grammar, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """Speaks one clip: int16 samples [N] at 16 kHz, and each word's begin, end (samples) and text."""
    speech, events = espeak.speak(sentence, voice=speaker.voice, rate=speaker.rate, pitch=speaker.pitch)
    words = sentence.lower().rstrip(grammar.end).split() if grammar.word_times else []
    if not grammar.word_times:
        events = []
    if [word.lower() for _, word in events] != words:
        raise RuntimeError(f"espeak-ng's word events {events} do not match {sentence!r}")

    # espeak-ng's own silence is cut off, and 50 to 150 ms of silence are put at either end.
    magnitude = np.abs(speech)
    sounding = np.flatnonzero(magnitude > 0.01 * magnitude.max())
    begin, end = sounding[0], sounding[-1] + 1
    before, after = (round(seconds * espeak.rate) for seconds in rng.uniform(0.05, 0.15, size=2))
    speech = np.pad(speech[begin:end], (before, after))

    boundaries = np.array([start * espeak.rate for start, _ in events] + [end]).clip(begin, end)
    boundaries = np.rint((boundaries - begin + before) * SAMPLE_RATE / espeak.rate).astype(int).tolist()

    samples = soxr.resample(speech, espeak.rate, SAMPLE_RATE)
    # A recording's level and noise floor. With a peak of at most 0.8, noise 25 dB down cannot clip.
    samples *= rng.uniform(0.2, 0.8) / np.abs(samples).max()
    noise = rng.standard_normal(len(samples)) * np.sqrt(np.mean(samples**2))
    samples += noise * 10 ** (-rng.uniform(25, 40) / 20)
    spoken = list(zip(boundaries[:-1], boundaries[1:], words, strict=True))
    return np.rint(samples * 32768).astype(np.int16), spoken

"""A synthetic corpus in TIMIT's layout: command sentences with the grammar of GRID, spoken by espeak-ng.

It is small, free and made in seconds, so that the demo can take the same road as TIMIT: files on a disk,
unseen test speakers, word times.

Source: the grammar is that of the GRID corpus (Cooke, Barker, Cunningham and Shao, "An audio-visual corpus
for speech perception and automatic speech recognition", JASA 120(5), 2006), with a second digit in the place
of its letter.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from flax_wavlm.data.corpora.espeak import Espeak, open_espeak
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, cannot_write, some
from flax_wavlm.files import folder_beside, move_folder

MANIFEST = "corpus.json"  # written last: a folder without it is not a whole corpus
VERSION = 1  # the recipe's: another version makes other files from the same settings

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GRAMMAR = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    _DIGITS,
    _DIGITS,
    ("again", "now", "please", "soon"),
)

# A voice is a variant (`voices/!v` in espeak-ng's data: pitch, formants, timbre) of one accent. Three kinds
# are left out: the Klatt variants, which are robotic and, drawing on libc's random numbers, not repeatable;
# whispers; and variants near to one of the other split's.
ACCENT = "en-us"
VOICES = {
    "TRAIN": {
        "F": ("f1", "f2", "f3", "f5", "Annie", "steph"),
        "M": ("m1", "m3", "m5", "m6", "m7", "m8", "Alex", "Michael", "michel", "pablo"),
    },
    "TEST": {"F": ("f4", "linda"), "M": ("m2", "m4", "victor")},
}
_CLIPS_PER_SPEAKER = 10  # as in TIMIT


class _Speaker(NamedTuple):
    name: str  # TIMIT's form: the sex, three initials, a digit
    voice: str
    rate: int  # words per minute
    pitch: int  # 0 to 100, 50 being the voice's own


class _Clip(NamedTuple):
    path: str  # without suffix, relative to the corpus
    speaker: _Speaker
    sentence: str


def make_corpus(folder: Path, *, seed: int = 0, train_clips: int = 600, test_clips: int = 100) -> Path:
    """Makes the corpus in `folder`, or reuses it if it is already there.

    Files are in TIMIT's layout, `{TRAIN,TEST}/DR1/<speaker>/<sentence>.{WAV,TXT,WRD}`: NIST SPHERE (16-bit
    PCM, 16 kHz, mono, 1 to 2 s), the text, and the word times in samples. No sentence occurs twice, and none
    of the test speakers' espeak-ng variants is in the training set. The same arguments give the same bytes,
    with the same versions of espeak-ng, soxr and NumPy. `corpus.json` holds the settings and the speakers'
    voices.

    The corpus is made in a temporary folder beside `folder` and moved there when it is whole. A folder that
    holds only part of the same corpus is completed. Nothing is ever deleted from `folder`, and several
    processes may make the same corpus at once.

    Args:
        folder: where the corpus lies or shall lie; it and its parents need not exist.
        seed: for sentences, voices, rates, pitches, levels and noise.
        train_clips, test_clips: how many clips each split has, at most 25,600 (all sentences) together.

    Returns:
        `folder`.

    Raises:
        UserError: espeakng-loader is missing or does not work; `folder` holds a corpus with other settings,
            or files that are not this corpus's; it cannot be written; an argument is out of range.
    """
    folder = Path(folder)
    settings = {"version": VERSION, "seed": seed, "train_clips": train_clips, "test_clips": test_clips}
    clips = _plan(seed, train_clips, test_clips)
    try:
        if _is_complete(folder, settings, clips):
            return folder
        with folder_beside(folder) as made:
            _write(made, settings, clips)
            # Where it cannot be moved, files are there by now: an interrupted making's, or another process's.
            if not move_folder(made, folder) and not _is_complete(folder, settings, clips):
                _complete(folder, made, clips)
    except (OSError, soundfile.LibsndfileError) as error:
        raise cannot_write(folder, error) from error
    return folder


def _plan(seed: int, train_clips: int, test_clips: int) -> list[_Clip]:
    """Who says what: sentences without replacement, speakers with rate and pitch."""
    if seed < 0:
        raise UserError(field="data.synthetic.seed", found=seed, expected="0 or more")
    for name, number in (("train_clips", train_clips), ("test_clips", test_clips)):
        if number < 1:
            raise UserError(field=f"data.synthetic.{name}", found=number, expected="1 or more")
    shape = tuple(len(words) for words in GRAMMAR)
    total, possible = train_clips + test_clips, math.prod(shape)
    if total > possible:
        raise UserError(
            field="data.synthetic.train_clips",
            found=train_clips,
            expected=f"at most {possible - test_clips} beside {test_clips} test clips, as the grammar has "
            f"{possible} sentences",
        )
    rng = np.random.default_rng(seed)
    sentences = []
    for choices in zip(*np.unravel_index(rng.choice(possible, total, replace=False), shape), strict=True):
        words = (alternatives[i] for alternatives, i in zip(GRAMMAR, choices, strict=True))
        sentences.append(" ".join(words).capitalize() + ".")

    clips: list[_Clip] = []
    speakers = 0
    for split, number in (("TRAIN", train_clips), ("TEST", test_clips)):
        voices = [(sex, variant) for sex, variants in VOICES[split].items() for variant in variants]
        rng.shuffle(voices)
        for first in range(0, number, _CLIPS_PER_SPEAKER):
            sex, variant = voices[first // _CLIPS_PER_SPEAKER % len(voices)]
            initials = "".join(chr(ord("A") + speakers // 26**place % 26) for place in (2, 1, 0))
            speaker = _Speaker(
                name=f"{sex}{initials}0",
                voice=f"{ACCENT}+{variant}",
                rate=int(rng.integers(170, 231)),
                pitch=int(rng.integers(35, 66)),
            )
            speakers += 1
            for _ in range(min(_CLIPS_PER_SPEAKER, number - first)):
                # SI are the sentences that TIMIT has only once.
                path = f"{split}/DR1/{speaker.name}/SI{len(clips) + 1}"
                clips.append(_Clip(path, speaker, sentences[len(clips)]))
    return clips


def _files(clips: list[_Clip]) -> list[str]:
    return [clip.path + suffix for clip in clips for suffix in (".WAV", ".TXT", ".WRD")]


def _is_complete(folder: Path, settings: dict[str, int], clips: list[_Clip]) -> bool:
    """Whether the whole corpus is there; UserError where making it would mix it with something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(
            "is a file", where=folder, expected="the synthetic corpus's folder", do="choose another"
        )
    expected = set(_files(clips))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if MANIFEST in found:
        _check_settings(folder, settings)
        return expected <= found
    if foreign := sorted(found - expected):
        raise UserError(
            f"holds {len(foreign)} files that are not of the synthetic corpus asked for: {some(foreign)}",
            where=folder,
            do="choose another folder, or an empty one",
        )
    return False


def _check_settings(folder: Path, settings: dict[str, int]) -> None:
    """UserError where the corpus in the folder was made with other settings."""
    try:
        theirs = dict(json.loads((folder / MANIFEST).read_text())["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "is not a synthetic corpus's", where=folder / MANIFEST, do="choose another folder"
        ) from error
    differences = [
        f"{name} is {theirs.get(name)} there, {value} asked"
        for name, value in settings.items()
        if theirs.get(name) != value
    ]
    if differences:
        raise UserError(
            f"holds a synthetic corpus with other settings ({'; '.join(differences)})",
            where=folder,
            do="choose another folder, or delete this one",
        )


def _complete(folder: Path, made: Path, clips: list[_Clip]) -> None:
    """Moves the files one by one: each move is atomic, and any other process moves the same bytes."""
    for name in (*_files(clips), MANIFEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / name, folder / name)


def _write(folder: Path, settings: dict[str, int], clips: list[_Clip]) -> None:
    with open_espeak() as espeak:
        for number, clip in enumerate(clips):
            samples, words = _record(espeak, clip, np.random.default_rng([settings["seed"], number]))
            path = folder / clip.path
            path.parent.mkdir(parents=True, exist_ok=True)
            # TIMIT's samples are little-endian.
            soundfile.write(
                f"{path}.WAV", samples, SAMPLE_RATE, subtype="PCM_16", endian="LITTLE", format="NIST"
            )
            Path(f"{path}.TXT").write_text(f"0 {len(samples)} {clip.sentence}\n")
            Path(f"{path}.WRD").write_text("".join(f"{begin} {end} {word}\n" for begin, end, word in words))
    speakers = {clip.speaker.name: clip.speaker._asdict() for clip in clips}
    (folder / MANIFEST).write_text(json.dumps({"settings": settings, "speakers": speakers}, indent=1) + "\n")


def _record(
    espeak: Espeak, clip: _Clip, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """Speaks one clip: int16 samples [N] at 16 kHz, and each word's begin, end (samples) and text."""
    speaker = clip.speaker
    speech, events = espeak.speak(clip.sentence, voice=speaker.voice, rate=speaker.rate, pitch=speaker.pitch)
    words = clip.sentence.lower().rstrip(".").split()
    if [word.lower() for _, word in events] != words:
        raise RuntimeError(f"espeak-ng's word events {events} do not match {clip.sentence!r}")

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

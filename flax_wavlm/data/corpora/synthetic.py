"""A synthetic corpus in TIMIT's layout: command sentences with the grammar of GRID, spoken by espeak-ng.

It is small, free and made in seconds, so that the demo can take the same road as TIMIT: files on a disk,
unseen test speakers, word times.

Sources: the grammar is that of the GRID corpus (Cooke, Barker, Cunningham and Shao, "An audio-visual corpus
for speech perception and automatic speech recognition", JASA 120(5), 2006), with a second digit in the place
of its letter. The C interface is espeak-ng's `speak_lib.h`.
"""

import contextlib
import ctypes
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from flax_wavlm.errors import UserError

SAMPLE_RATE = 16_000
MANIFEST = "corpus.json"  # written last: a folder without it is not a whole corpus
VERSION = 1  # of the recipe below: another version makes other files from the same settings

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GRAMMAR = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    _DIGITS,
    _DIGITS,
    ("again", "now", "please", "soon"),
)

# A voice is a variant (`voices/!v` in espeak-ng's data: pitch, formants, timbre) of one accent. Left out: the
# Klatt variants, which are robotic and, drawing on libc's random numbers, not repeatable; whispers; and
# variants near to one of the other split's.
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
    """Make the corpus in `folder`, or reuse it if it is already there.

    Files are in TIMIT's layout, `{TRAIN,TEST}/DR1/<speaker>/<sentence>.{WAV,TXT,WRD}`: NIST SPHERE (16-bit
    PCM, 16 kHz, mono, 1 to 2 s), the text, and the word times in samples. No sentence occurs twice, and none
    of the test speakers' espeak-ng variants is in the training set. The same arguments give the same bytes,
    with the same versions of espeak-ng, soxr and NumPy. `corpus.json` holds the settings and the speakers'
    voices.

    The corpus is made in a temporary folder beside `folder` and moved there when whole; a folder that holds
    only part of the same corpus is completed. Nothing is ever deleted from `folder`, and several processes
    may make the same corpus at once.

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
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, and not in /tmp, because a rename is atomic only within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            made = Path(temporary) / "corpus"
            _write(made, settings, clips)
            try:
                made.rename(folder)
            except OSError:  # it has files by now: an interrupted making's, or another process was first
                if not _is_complete(folder, settings, clips):
                    _complete(folder, made, clips)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot write the synthetic corpus to {folder}: {error}") from error
    return folder


def _plan(seed: int, train_clips: int, test_clips: int) -> list[_Clip]:
    """Who says what: sentences without replacement, speakers with rate and pitch."""
    if seed < 0:
        raise UserError(f"the synthetic corpus's seed is {seed}; it must be 0 or more")
    if train_clips < 1 or test_clips < 1:
        raise UserError(
            f"train_clips is {train_clips} and test_clips is {test_clips}; each must be at least 1"
        )
    shape = tuple(len(words) for words in GRAMMAR)
    total, possible = train_clips + test_clips, math.prod(shape)
    if total > possible:
        raise UserError(f"train_clips + test_clips is {total}; the grammar has only {possible} sentences")
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
        raise UserError(f"the synthetic corpus's folder, {folder}, is a file; choose another")
    expected = set(_files(clips))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if MANIFEST in found:
        try:
            theirs = dict(json.loads((folder / MANIFEST).read_text())["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / MANIFEST} is not a synthetic corpus's: choose another folder"
            ) from error
        differences = [
            f"{name} is {theirs.get(name)} there, {value} asked"
            for name, value in settings.items()
            if theirs.get(name) != value
        ]
        if differences:
            raise UserError(
                f"{folder} holds a synthetic corpus with other settings ({'; '.join(differences)}): "
                "choose another folder, or delete this one"
            )
        return expected <= found
    foreign = sorted(found - expected)
    if foreign:
        raise UserError(
            f"{folder} holds {len(foreign)} files that are not of the synthetic corpus asked for, such as "
            f"{foreign[0]}: choose another folder, or an empty one"
        )
    return False


def _complete(folder: Path, made: Path, clips: list[_Clip]) -> None:
    """Move the files one by one: each move is atomic, and any other process moves the same bytes."""
    for name in (*_files(clips), MANIFEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / name, folder / name)


def _write(folder: Path, settings: dict[str, int], clips: list[_Clip]) -> None:
    with _espeak() as espeak:
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
    espeak: "_Espeak", clip: _Clip, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """Speak one clip: int16 samples [N] at 16 kHz, and each word's begin, end (samples) and text."""
    speech, events = espeak.speak(clip.sentence, clip.speaker)
    words = clip.sentence.lower().rstrip(".").split()
    if [word.lower() for _, word in events] != words:
        raise RuntimeError(f"espeak-ng's word events {events} do not match {clip.sentence!r}")

    # espeak-ng's own silence goes, and 50 to 150 ms of the clip's own are put at either end.
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


# espeak-ng through ctypes. Names and values are those of speak_lib.h.

_AUDIO_OUTPUT_SYNCHRONOUS = 2  # espeak_Synth returns when the callback has had all the samples
_INITIALIZE_DONT_EXIT = 0x8000  # else missing data ends the whole process
_EE_OK = 0
_EVENT_LIST_TERMINATED, _EVENT_WORD = 0, 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_POS_CHARACTER = 1
_CHARS_UTF8 = 1


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),  # characters
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@contextlib.contextmanager
def _espeak() -> Iterator["_Espeak"]:
    """A copy of espeak-ng of one's own, library and data, as long as the context lasts.

    A copy, because the library's state is global and part of it (the phase of the pitch flutter, the gain
    control) outlives even espeak_Terminate: only a library that has never spoken gives the same bytes again.
    The data as well, because espeak-ng cuts their path at 160 characters, which virtual environments reach.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "the synthetic corpus is spoken by espeak-ng, and the package espeakng-loader is not installed: "
            "pip install -e '.[demo]'"
        ) from error
    # Windows does not delete a library that is loaded.
    with tempfile.TemporaryDirectory(prefix="espeak-ng-", ignore_cleanup_errors=True) as temporary:
        library = shutil.copy(espeakng_loader.get_library_path(), temporary)
        data = shutil.copytree(espeakng_loader.get_data_path(), Path(temporary) / "espeak-ng-data")
        espeak = _Espeak(library, data)
        try:
            yield espeak
        finally:
            espeak.close()


class _Espeak:
    """espeak-ng, loaded from `library` with the voices in `data`. `rate` is its sample rate in Hz."""

    def __init__(self, library: str, data: Path):
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise UserError(f"espeakng-loader's library does not load on this machine: {error}") from error
        self._library.espeak_SetSynthCallback.restype = None
        self._library.espeak_SetSynthCallback.argtypes = (_SynthCallback,)
        self._library.espeak_Synth.argtypes = (
            ctypes.c_char_p,  # text
            ctypes.c_size_t,  # size
            ctypes.c_uint,  # position
            ctypes.c_int,  # position_type
            ctypes.c_uint,  # end_position
            ctypes.c_uint,  # flags
            ctypes.POINTER(ctypes.c_uint),  # unique_identifier
            ctypes.c_void_p,  # user_data
        )
        self.rate = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _INITIALIZE_DONT_EXIT
        )
        if self.rate <= 0:  # the header says -1, version 1.52 returns 0
            raise UserError(f"espeak-ng cannot read its data in {data} (a path of more than 150 characters?)")
        # Breathy variants are noisy, and the noise is seeded by the time of day.
        self._check("ng_SetRandSeed", ctypes.c_long(0))
        self._samples: list[np.ndarray] = []
        self._words: list[tuple[float, int, int]] = []  # begin in seconds, text position, length
        self._callback = _SynthCallback(self._collect)  # ctypes does not keep it alive
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, sentence: str, speaker: _Speaker) -> tuple[np.ndarray, list[tuple[float, str]]]:
        """Speak ASCII text: float64 samples [N] in -1..1, and each word with its begin in seconds."""
        self._samples.clear()
        self._words.clear()
        text = sentence.encode("ascii")
        # First the voice, which resets the parameters. Loud variants clip at the normal volume of 100.
        self._check("SetVoiceByName", speaker.voice.encode())
        self._check("SetParameter", _RATE, speaker.rate, 0)
        self._check("SetParameter", _PITCH, speaker.pitch, 0)
        self._check("SetParameter", _VOLUME, 60, 0)
        self._check("Synth", text, len(text) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        words = [(begin, sentence[at - 1 : at - 1 + length]) for begin, at, length in self._words]
        return np.concatenate(self._samples) / 32768, words

    def close(self) -> None:
        self._check("Terminate")

    def _check(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, f"espeak_{function}")(*arguments)
        if status != _EE_OK:
            raise RuntimeError(f"espeak_{function}{arguments} failed with status {status}")

    def _collect(self, samples, count: int, events) -> int:
        """The callback. Its arrays are espeak-ng's, so they are copied; the events end with type 0."""
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type == _EVENT_WORD:
                self._words.append((event.audio_position / 1000, event.text_position, event.length))
            index += 1
        return 0  # continue

"""espeak-ng through ctypes: a sentence to samples and the begin of each word.

Names and values are those of espeak-ng's `speak_lib.h`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flax_wavlm.errors import UserError, reason

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
def open_espeak() -> Iterator[Espeak]:
    """A private copy of espeak-ng, library and data, as long as the context lasts.

    The library is copied because its state is global, and part of it (the phase of the pitch flutter, the
    gain control) outlives even espeak_Terminate: only a library that has never spoken gives the same bytes
    again. The data is copied because espeak-ng cuts its path at 160 characters, which virtual environments
    reach.

    Raises UserError where espeakng-loader is missing, or its library does not work.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "the synthetic corpus is spoken by espeak-ng, and the package espeakng-loader is not installed",
            do="pip install -e '.[demo]'",
        ) from error
    # Windows does not delete a library that is loaded.
    with tempfile.TemporaryDirectory(prefix="espeak-ng-", ignore_cleanup_errors=True) as temporary:
        library = shutil.copy(espeakng_loader.get_library_path(), temporary)
        data = shutil.copytree(espeakng_loader.get_data_path(), Path(temporary) / "espeak-ng-data")
        espeak = Espeak(library, data)
        try:
            yield espeak
        finally:
            espeak.close()


class Espeak:
    """espeak-ng, loaded from `library` with the voices in `data`. `rate` is its sample rate in Hz."""

    def __init__(self, library: str, data: Path):
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise UserError(
                f"espeakng-loader's library does not load on this machine ({reason(error)})", where=library
            ) from error
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
            raise UserError(
                "espeak-ng cannot read its data", where=data, expected="a path of at most 150 characters"
            )
        # Breathy variants are noisy, and the noise is seeded by the time of day.
        self._check("ng_SetRandSeed", ctypes.c_long(0))
        self._samples: list[np.ndarray] = []
        self._words: list[tuple[float, int, int]] = []  # begin in seconds, text position, length
        self._callback = _SynthCallback(self._collect)  # ctypes does not keep it alive
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(
        self, sentence: str, *, voice: str, rate: int, pitch: int
    ) -> tuple[np.ndarray, list[tuple[float, str]]]:
        """Speaks a sentence, in any script that the voice's language is written in.

        Args:
            voice: a language or accent, with or without a variant: "en-us+f1", "de", "cmn+m3".
            rate: words a minute.
            pitch: 0 to 100, 50 being the voice's own.
        Returns:
            float64 samples [N] in -1..1 at `self.rate`, and each word with its begin in seconds. Words
            are what espeak-ng takes for words: in Mandarin it passes over characters.
        """
        self._samples.clear()
        self._words.clear()
        text = sentence.encode()
        # First the voice, which resets the parameters. Loud variants clip at the normal volume of 100.
        self._check("SetVoiceByName", voice.encode())
        self._check("SetParameter", _RATE, rate, 0)
        self._check("SetParameter", _PITCH, pitch, 0)
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
        """The callback. Its arrays belong to espeak-ng, so they are copied; the events end with type 0."""
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type == _EVENT_WORD:
                self._words.append((event.audio_position / 1000, event.text_position, event.length))
            index += 1
        return 0  # continue

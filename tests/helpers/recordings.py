"""Recordings in memory: a speech-like signal, and files of it by libsndfile and PyAV."""

import io
from fractions import Fraction

import numpy as np
import soundfile


def sweep(rate: int, seconds: float = 2.0, low: float = 200.0) -> np.ndarray:
    """A rising tone that is there and not there in turn: float32 [N], another at every time."""
    times = np.arange(round(rate * seconds)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (low + 200 * times) * times) * (np.sin(2 * np.pi * 3 * times) > -0.3)
    return tone.astype(np.float32)


def by_libsndfile(samples: np.ndarray, rate: int, format: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=format, subtype=subtype)
    return stream.getvalue()


def by_pyav(samples: np.ndarray, rate: int, container: str, codec: str) -> bytes:
    """One channel, float32 [N]."""
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        audio = output.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(
            audio.codec_context.format, "mono", rate, frame_size=audio.codec_context.frame_size or 1024
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(audio.encode(piece))
        output.mux(audio.encode(None))
    return stream.getvalue()


def delay(found: np.ndarray, expected: np.ndarray) -> tuple[int, float]:
    """By how many samples `found` is late, and the correlation at that delay."""
    size = 2 * max(len(found), len(expected))
    product = np.fft.irfft(np.fft.rfft(expected, size).conj() * np.fft.rfft(found, size))
    late = int(product.argmax())
    scale = np.sqrt(np.square(found).sum() * np.square(expected).sum())
    return (late if late < size // 2 else late - size), float(product.max() / scale)

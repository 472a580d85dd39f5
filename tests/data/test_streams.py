"""Recordings read piece by piece: the samples of the whole, whatever the pieces."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused
from helpers.recordings import by_libsndfile, by_pyav, sweep

from flax_wavlm.data import recording, streams
from flax_wavlm.data.audio import read_audio
from flax_wavlm.data.channels import Statistics, to_mono
from flax_wavlm.data.streams import open_stream, spooled

X = sweep(16_000, 3.0)
FILES = {
    "16-bit": by_libsndfile(X, 16_000),
    "float": by_libsndfile(X, 16_000, subtype="FLOAT"),
    "44.1 kHz": by_libsndfile(sweep(44_100, 3.0), 44_100, "FLAC"),
    "8 kHz MP3": by_libsndfile(sweep(8_000, 3.0, low=100.0), 8_000, "MP3"),
    "two channels": by_libsndfile(np.stack([X, -X], 1), 16_000),
    "m4a": by_pyav(sweep(48_000, 3.0), 48_000, "ipod", "aac"),
}


def read_in_pieces(source: bytes, size: int, **settings: object) -> np.ndarray:
    with open_stream(source, "clip", **settings) as stream:  # type: ignore[arg-type]
        pieces = []
        while len(piece := stream.read(size)):
            pieces.append(piece)
        assert {len(piece) for piece in pieces[:-1]} <= {size}
        return np.concatenate(pieces)


@pytest.mark.parametrize("kind", FILES)
def test_pieces_are_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_audio(FILES[kind])
    for module in (recording, streams):
        monkeypatch.setattr(module, "BLOCK", 5_000)
    found = read_in_pieces(FILES[kind], 7_001)
    assert found.dtype == whole.dtype
    np.testing.assert_allclose(found, whole, atol=1e-5)
    if kind in ("16-bit", "float"):
        np.testing.assert_array_equal(found, whole)


def test_a_recording_that_is_cut_short_is_an_error_at_its_end() -> None:
    data = FILES["16-bit"][:-20_000]
    with open_stream(data, "clip") as stream:
        assert len(stream.read(30_000)) == 30_000
        with refused("cut short", where="^clip$"):
            stream.read(60_000)


def test_channels_are_judged_by_all_of_a_recording() -> None:
    """A call in which the second voice comes late, in pieces of any size: as to_mono decides."""
    x, y = sweep(16_000, 2.0), sweep(16_000, 2.0, low=900.0)
    call = np.stack([np.r_[x, 0 * x], np.r_[0 * y, y]], 1)
    whole = to_mono(call, 16_000, "auto", "call")
    assert whole.note.startswith("channels that differ")
    for size in (37, 4_999):
        seen = Statistics(2, 16_000)
        for begin in range(0, len(call), size):
            seen.add(call[begin : begin + size])
        mix = seen.mix()
        assert mix.note == whole.note
        np.testing.assert_array_equal(mix(call), whole.samples)


def test_standard_input_is_kept_on_the_disk() -> None:
    with spooled(io.BytesIO(FILES["float"]), "standard input") as file:
        np.testing.assert_array_equal(read_audio(file), X)
    assert not Path(file).exists()

"""Containers of phones and browsers: the right sound at the right time, and nothing else opened."""

import builtins
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.errors import refused
from helpers.recordings import by_libsndfile, by_pyav, delay, sweep

from flax_wavlm.data import audio as audio_module
from flax_wavlm.data.audio import read_audio

MOV = by_pyav(sweep(16_000), 16_000, "mov", "pcm_s16le")


@pytest.mark.parametrize(
    ("container", "codec", "rate", "late"),
    [
        ("ipod", "aac", 44_100, 0),  # an edit list says what the encoder put before
        ("mp4", "aac", 16_000, 0),
        ("mp4", "alac", 16_000, 0),
        ("mov", "pcm_s16le", 16_000, 0),
        ("3gp", "aac", 16_000, 0),
        ("webm", "libopus", 48_000, 0),
        ("matroska", "aac", 16_000, 0),
        ("adts", "aac", 44_100, 1024 / 44_100),  # has no place to say it
        ("amr", "libopencore_amrnb", 8_000, 0.005),
    ],
)
def test_sound_and_time(container, codec, rate, late, tmp_path):
    file = tmp_path / "voice.wav"  # the name does not matter
    data = by_pyav(sweep(rate), rate, container, codec)
    file.write_bytes(data)
    found, expected = read_audio(file), sweep(16_000)
    np.testing.assert_array_equal(found, read_audio(data))
    assert (found.dtype, abs(len(found) - len(expected)) < 1_000) == (np.float32, True)
    samples, correlation = delay(found, expected)
    assert abs(samples / 16_000 - late) < 0.002
    assert correlation > (0.85 if codec == "libopencore_amrnb" else 0.97)
    part = read_audio(file, start=0.5, end=1.25)
    np.testing.assert_allclose(part, found[8_000:20_000], atol=2e-6)


def test_without_pyav_the_error_says_what_to_do(monkeypatch):
    webm = by_pyav(sweep(48_000), 48_000, "webm", "libopus")
    monkeypatch.setitem(sys.modules, "av", None)
    for data, title in ((MOV, "MP4, M4A"), (webm, "WebM")):
        with refused(
            f"^{title}.*PyAV, which is not installed", where="^a$", do=r"flax-wavlm\[av\].*ffmpeg -i"
        ):
            read_audio(data, "a")


def test_damage_is_one_line(capfd):
    for container, codec, rate in (("mp4", "aac", 16_000), ("webm", "libopus", 48_000)):
        whole = by_pyav(sweep(rate), rate, container, codec)
        with refused("FFmpeg cannot decode it|without audio|0 samples"):
            read_audio(whole[:40])
        with refused("FFmpeg cannot decode it|without audio"):
            read_audio(whole[:12] + bytes(5000))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("container", "codec"), [("matroska", "aac"), ("webm", "libopus")])
def test_half_a_recording_is_cut_short(container, codec):
    whole = by_pyav(sweep(48_000, 3.0), 48_000, container, codec)
    with refused("the audio is cut short", do="download the file again"):
        read_audio(whole[: len(whole) // 2])
    assert len(read_audio(whole[: len(whole) // 2], end=0.5)) == 8_000


def test_half_an_m4a_that_begins_with_its_index(tmp_path):
    import av

    whole = io.BytesIO(by_pyav(sweep(44_100, 3.0), 44_100, "ipod", "aac"))
    first = {"movflags": "faststart"}
    with av.open(str(tmp_path / "a.m4a"), "w", "ipod", options=first) as output, av.open(whole) as given:
        stream = output.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    data = (tmp_path / "a.m4a").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert len(read_audio(data)) > 47_000
    with refused("the audio is cut short|FFmpeg cannot decode it"):
        read_audio(data[: len(data) // 2])


def test_a_stream_of_a_browser_states_no_length():
    """As MediaRecorder writes it: what is there is taken."""
    webm = by_pyav(sweep(48_000, 3.0), 48_000, "webm", "libopus")
    at = webm.index(b"\x44\x89\x88")
    without = webm[:at] + b"\xec\x89" + webm[at + 2 :]  # the length's element is void
    np.testing.assert_array_equal(read_audio(without), read_audio(webm))
    assert len(read_audio(without[: len(without) // 2])) > 16_000


def test_an_unknown_codec():
    avi = by_pyav(sweep(16_000), 16_000, "avi", "pcm_s16le")
    at = avi.index(b"strf", avi.index(b"auds")) + 8
    with refused("AVI with audio of an unknown codec"):
        read_audio(avi[:at] + b"\x77\x77" + avi[at + 2 :])


def test_hours_are_not_decoded_at_once(monkeypatch):
    monkeypatch.setattr(audio_module, "MOST_SAMPLES", 16_000)
    with refused("more than 0.0 hours"):
        read_audio(MOV)


# --- Files that name others ---------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What FFmpeg is asked to open by name, and all that Python opens or connects to."""
    import av

    found: list[str] = []
    real = av.open

    def guarded(file, *arguments, **settings):
        assert not isinstance(file, str | Path)
        assert settings["format"] in ("mov", "matroska", "asf", "amr", "aac", "avi", "flv", "mpegts")
        return real(file, *arguments, **settings)

    monkeypatch.setattr(av, "open", guarded)
    monkeypatch.setattr("socket.socket.connect", lambda self, address: found.append(str(address)))
    plain = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *a, **k: found.append(str(file)) or plain(file, *a, **k)
    )
    return found


LISTS = (
    "ffconcat version 1.0\nfile '{0}'\n",
    "# a comment\nffconcat version 1.0\nfile {0}\n",
    "file '{0}'\n",
    "#EXTM3U\n#EXTINF:3,\n{0}\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nhttp://127.0.0.1:9/a.ts\n",
    '<?xml version="1.0"?>\n<!-- a -->\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\n",
    "[playlist]\nFile1={0}\n",
    'FILE "{0}" WAVE\n  TRACK 01 AUDIO\n',
    'REM a\nPERFORMER "b"\nFILE "{0}" WAVE\n',
    '<asx version="3.0"><entry><ref href="{0}"/></entry></asx>',
    "[Reference]\nRef1=http://127.0.0.1:9/a\n",
    "http://127.0.0.1:9/a.mp3\n",
    "concat:{0}|{0}",
)


@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize("name", ["list.m4a", "list.wav", "list.m3u8", "list.webm"])
def test_lists_are_refused_and_nothing_else_is_opened(text, name, opened, tmp_path):
    other = tmp_path / "other.wav"
    other.write_bytes(by_libsndfile(sweep(16_000), 16_000))
    for data in (text.format(other).encode(), text.format(other).encode("utf-16")):
        (tmp_path / name).write_bytes(data)
        opened.clear()
        with refused("a list that names other files", where=name, do="give the recordings"):
            read_audio(tmp_path / name)
        assert [file for file in opened if "list." not in file] == []


def test_lists_behind_the_first_bytes_of_containers(opened, tmp_path):
    """The content is decoded by the one container of its first bytes, or not at all."""
    other = tmp_path / "other.wav"
    other.write_bytes(by_libsndfile(sweep(16_000), 16_000))
    for magic in (
        b"\0\0\0\x18ftypM4A ",
        b"\x1a\x45\xdf\xa3",
        b"#!AMR\n",
        b"\xff\xf1",
        bytes.fromhex("3026b2758e66cf11"),
    ):
        for text in LISTS[:5]:
            opened.clear()
            with refused():
                read_audio(magic + text.format(other).encode())
            assert opened == []


def with_reference(kind: bytes, other: Path) -> bytes:
    """A MOV file whose sound is said to be in another file: data reference `kind`, "alis" or "url "."""
    if kind == b"url ":
        body = bytes(4) + f"file://{other}".encode() + b"\0"
    else:
        name = str(other).encode()
        record = bytes(10) + b"\1v" + bytes(26) + bytes(12) + b"\1f" + bytes(62) + bytes(16)
        record += struct.pack(">HH", 1, 1) + bytes(16)
        record += struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">hH", -1, 0)
        body = bytes(4) + record
    entry = struct.pack(">I", 8 + len(body)) + kind + body
    own = MOV.index(b"dref") + 12  # after size, name, version and the number of entries
    size = struct.unpack(">I", MOV[own : own + 4])[0]
    data = bytearray(MOV[:own] + entry + MOV[own + size :])
    more = len(entry) - size
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = data.rindex(box, 0, own) - 4
        data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + more)
    return bytes(data)


@pytest.mark.parametrize("kind", [b"alis", b"url "])
def test_external_references_of_mp4_are_not_followed(kind, opened, tmp_path):
    """The other file has another sound, so that its samples would be heard."""
    other = tmp_path / "other"
    noise = np.random.default_rng(0).standard_normal(64_000).astype(np.float32)
    other.write_bytes(noise.tobytes())
    assert MOV.index(b"mdat") < MOV.index(b"moov")  # or offsets would have to be changed too
    if kind == b"alis":
        with refused():
            read_audio(with_reference(kind, other))
    else:  # FFmpeg knows no such reference, and takes the file's own sound
        np.testing.assert_array_equal(read_audio(with_reference(kind, other)), read_audio(MOV))
    assert opened == []


def test_a_path_is_opened_once_and_by_content(tmp_path):
    file = tmp_path / "concat:a|b.m4a"
    file.write_bytes(MOV)
    assert len(read_audio(file)) == 32_000
    assert io.BytesIO(MOV).read(8)[4:] == b"ftyp"

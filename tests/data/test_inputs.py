"""Files, folders and standard input, as a command line names them."""

from pathlib import Path

from helpers.errors import refused

from flax_wavlm.data.inputs import named_recordings


def test_a_folder_stands_for_the_audio_files_below_it(tmp_path: Path) -> None:
    for name in ("b/2.WAV", "b/1.mp3", "a.flac", "notes.txt", ".hidden/x.wav", "b/._2.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "back").symlink_to(tmp_path)  # a link that leads back
    folder = str(tmp_path)
    below = [f"{folder}/{name}" for name in ("a.flac", "b/1.mp3", "b/2.WAV")]
    assert named_recordings([folder]) == below
    named = [f"{folder}/b/2.WAV", "missing.bin", "-", folder, "-"]
    assert named_recordings(named) == [named[0], "missing.bin", "-", *below[:2]]


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with refused("holds no audio file", where=f"^{tmp_path}$", found="notes.txt", do="name the files"):
        named_recordings([str(tmp_path)])

"""Whole writes: a file or a folder is there as a whole or not at all."""

import os
import time
from pathlib import Path

import pytest
from helpers.errors import refused

from flax_wavlm import files
from flax_wavlm.files import folder_beside, move_folder, replaced, write_atomically, writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with replaced(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.json"]


def interrupted_write(path: Path) -> None:
    with replaced(path) as scratch:
        scratch.write_text("ne")
        raise KeyboardInterrupt


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_the_first_folder_that_is_whole_wins(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "folder"
    with folder_beside(path) as one, folder_beside(path) as other:
        (one / "name").write_text("one")
        (other / "name").write_text("other")
        assert move_folder(one, path)
        assert not move_folder(other, path)
    assert (path / "name").read_text() == "one"
    assert names(path.parent) == ["folder"]


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path: Path) -> None:
    left = [tmp_path / f".file.writing-{age}" for age in ("old", "new")]
    for path in left:
        path.write_text("half")
    day_before = time.time() - files.ABANDONED - 60
    os.utime(left[0], (day_before, day_before))
    write_atomically(tmp_path / "file", "whole")
    assert names(tmp_path) == [".file.writing-new", "file"]


def test_a_failure_to_write_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "no" / "folder"
    with refused(r"cannot be written \(No such file", where=str(path), do="resumes"), writing(path):
        write_atomically(path, "text")

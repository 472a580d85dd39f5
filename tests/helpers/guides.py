"""The blocks of guides in docs/, run as they are written where their files are."""

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.commands import run
from helpers.pages import Block, blocks

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ("transcribe.md", "align.md", "language-models.md")
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in GUIDES}
RUN = [block for page in PAGES.values() for block in blocks(page)]


def lay_out(folder: Path, clips: Sequence[np.ndarray], texts: Sequence[str]) -> str:
    """Makes the files that the pages name, of clips of speech at 16 kHz; returns the text of `interview.wav`.

    The interview, the talk and the lecture are clips joined with pauses.
    """
    pause = np.zeros(6_400, np.int16)
    for name, number in (("interview.wav", 5), ("talk.mp3", 3), ("lecture.flac", len(clips))):
        joined = np.concatenate([part for clip in clips[:number] for part in (clip, pause)])
        soundfile.write(folder / name, joined, 16_000)
    said = " ".join(texts[:5])
    (folder / "interview.txt").write_text(said, encoding="utf-8")
    (folder / "letters.txt").write_text("\n".join(texts[3:]), encoding="utf-8")
    (folder / "minutes.txt").write_text("\n".join(texts[4:]), encoding="utf-8")
    (folder / "names.txt").write_text(texts[0].split()[0], encoding="utf-8")
    for number, (clip, text) in enumerate(zip(clips, texts, strict=True)):
        split = "test" if number < 3 else "train"
        for place in ("my-speech", *(["recordings"] if split == "test" else [])):
            file = folder / place / (split if place == "my-speech" else "") / "anna" / f"{number}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, clip, 16_000)
            file.with_suffix(".txt").write_text(text, encoding="utf-8")
    return said


def outputs_of(page: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each command and each block of Python of a page prints to standard output."""
    return [printed for block in blocks(PAGES[page]) for printed in _outputs(block, monkeypatch)]


def _outputs(block: Block, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if block.language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, "block", "exec"), {})
        yield printed.getvalue()
        return
    for words in map(shlex.split, block.code.splitlines()):
        if words[0] == "cat":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(words[1]).read_bytes())))
            words = words[words.index("|") + 1 :]
        _, command, *given = words
        ended = run(command, *given)
        assert ended.status == 0, (words, ended.stderr)
        yield ended.stdout

"""What is printed: a line a file, no control character, and no traceback whatever the console's encoding."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flax_wavlm.cli import app
from flax_wavlm.cli.transcribe import TRANSCRIBE
from flax_wavlm.data.clips import describe_skipped
from flax_wavlm.data.corpora.utterance import Skipped
from flax_wavlm.errors import UserError, printable
from flax_wavlm.recognition.evaluate import Prediction, write_predictions
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.recognition.transcript import Transcript

BAD = "a\tb\nc\r\x1b[31m\x07\x9b\u2028\u202e\u2066\udcfc\ud800\x7f"
ESCAPED = r"a\tb\nc\r\x1b[31m\x07\x9b\u2028\u202e\u2066\xfc\ud800\x7f"


def test_printable() -> None:
    assert printable(BAD) == ESCAPED
    kept = "Größe, 语音, \u0628\u200c\u0647, \U0001f600 C:\\new"  # a joiner that Persian needs
    assert printable(kept) == kept


def test_transcripts_are_a_line_and_a_tab_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fixed:
        def transcripts(self, sources, **settings):
            logging.getLogger("flax_wavlm.x").warning("%s: heard", BAD)
            yield Transcript(BAD, BAD)
            yield Transcript("b", error=UserError("is bad", where=BAD))

    monkeypatch.setattr(Recogniser, "from_pretrained", lambda *arguments, **settings: Fixed())
    assert app.run(TRANSCRIBE, ["--model=x", "a", "b"]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{ESCAPED}\t{ESCAPED}\n"
    assert f"error: {ESCAPED}: is bad\n" in printed.err
    for character in printed.err:
        assert character == "\n" or printable(character) == character


def test_messages_escape_what_they_quote() -> None:
    assert str(UserError("is bad", where=BAD)) == f"{ESCAPED}: is bad"
    assert (
        describe_skipped([Skipped(BAD, f"bad: {BAD}")])
        == f"skipped 1 - bad: {ESCAPED} (the first: {ESCAPED})"
    )


PRINTS = """
import sys
from flax_wavlm.cli import app
sys.argv = ["flax-wavlm", "--help"]
app.main()
print("\\u8bed \\u00e9 \\U0001f600", flush=True)
print("\\u8bed \\udcfc", file=sys.stderr)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_consoles_of_other_encodings(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    ended = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, env=environment, timeout=60)
    assert ended.returncode == 0, ended.stderr
    accent = {"ascii": b"\\xe9"}.get(encoding, "é".encode(encoding) if encoding != "ascii" else b"")
    assert ended.stdout.splitlines()[-1] == b"\\u8bed " + accent + b" \\U0001f600"
    assert ended.stderr.splitlines()[-1] == b"\\u8bed \\udcfc"


def test_predictions_with_half_a_surrogate_pair(tmp_path: Path) -> None:
    prediction = Prediction("gr\udcfc\udcdfe", "語\ud800", "a\tb")
    write_predictions(tmp_path / "a.jsonl", [prediction])
    [line] = io.StringIO((tmp_path / "a.jsonl").read_text(encoding="utf-8"))
    assert json.loads(line) == prediction._asdict()

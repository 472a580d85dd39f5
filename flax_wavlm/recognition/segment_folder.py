"""The folder of a recording's clips: train.jsonl, which `data.corpus=manifest` reads, and rejected.jsonl.

Clips are parts of the recording, by start and end: nothing is written twice, and nothing is encoded again.
segment.json says what the folder was made of. It is written last but train.jsonl, which is there when all is.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flax_wavlm.data.audio import FEW
from flax_wavlm.data.clips import describe_skipped
from flax_wavlm.data.corpora.utterance import Skipped
from flax_wavlm.data.streams import open_stream
from flax_wavlm.errors import UserError, cannot_read, cannot_write
from flax_wavlm.files import exists, read_json_object, write_atomically
from flax_wavlm.recognition.align import align_recording, report
from flax_wavlm.recognition.outputs import make_folder
from flax_wavlm.recognition.pauses import all_levels
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.recognition.segments import Segment, segments
from flax_wavlm.recognition.transcript import Transcript

log = logging.getLogger(__name__)

MANIFEST, REJECTED, MADE_OF = "train.jsonl", "rejected.jsonl", "segment.json"
MAX_SECONDS = 15.0  # of a clip, where nothing is known of the model's training clips


@dataclass(frozen=True)
class Cutting:
    """What a folder of clips is made of.

    Attributes:
        audio, text: the recording, and what is said in it.
        model: as the user names it.
        max_seconds: of a clip; None: the model's longest training clip where that is known, else 15.
        min_confidence: of a clip.
        speaker: in the manifest.
        channel: of recordings with several, see `read_audio`.
        dtype: of matrix products.
    """

    audio: Path
    text: str
    model: str
    max_seconds: float | None = None
    min_confidence: float = 0.5
    speaker: str = ""
    channel: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not 0 < self.max_seconds < float("inf"):
            raise UserError(field="max_seconds", found=self.max_seconds, expected="seconds above 0")
        if not 0 <= self.min_confidence <= 1:
            raise UserError(field="min_confidence", found=self.min_confidence, expected="0 to 1")

    def identity(self) -> dict[str, Any]:
        """What changes where the clips would."""
        try:
            audio = self.audio.resolve()
            stat = audio.stat()
            str(audio).encode()
        except UnicodeEncodeError as error:
            do = "rename the file or its folder"
            raise cannot_read(
                self.audio, error, expected="a name in UTF-8, as manifests are", do=do
            ) from None
        except (OSError, ValueError) as error:
            raise cannot_read(self.audio, error, expected="an audio file") from None
        return {
            "audio": str(audio),
            "bytes": stat.st_size,
            "changed": stat.st_mtime,
            "text": hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest(),
            "model": self.model,
            "max_seconds": self.max_seconds,
            "min_confidence": self.min_confidence,
            "speaker": self.speaker,
            "channel": self.channel,
            "dtype": self.dtype,
        }


def announce_finished(folder: Path, cutting: Cutting) -> bool:
    """Whether the folder holds this recording's clips already; the log then says what is there.

    Raises UserError where it holds a manifest of anything else, or the recording cannot be found.
    """
    identity = cutting.identity()
    if not exists(folder / MANIFEST):
        return False
    made = (
        read_json_object(folder / MADE_OF, "what the clips were cut from") if exists(folder / MADE_OF) else {}
    )
    different = [name for name in identity if made.get(name) != identity[name]]
    if different:
        raise UserError(
            f"holds {MANIFEST} already, which was made otherwise ({', '.join(different)})",
            where=folder,
            expected="a folder without one",
            do="give another folder, or remove the file",
        )
    log.info("%s: all is there: %s", folder, made.get("found", MANIFEST))
    return True


def cut_into(folder: Path, recogniser: Recogniser, cutting: Cutting) -> None:
    """Aligns the recording with its text, and writes the clips' manifest.

    Raises UserError where the recording and the text cannot be aligned, no clip is left, or the folder cannot
    be written.
    """
    make_folder(folder)
    aligned = align_recording(recogniser, cutting.audio, cutting.text, channel=cutting.channel)
    report(aligned)
    with open_stream(cutting.audio, missing_ok=FEW, channel=cutting.channel) as stream:
        level = all_levels(stream.read)
    known = recogniser.training_seconds
    max_seconds = cutting.max_seconds or (MAX_SECONDS if known is None else known.longest)
    log.info("%s: clips of at most %g s", cutting.audio, max_seconds)
    found = segments(aligned, level, max_seconds=max_seconds, min_confidence=cutting.min_confidence)
    write_segments(folder, cutting, found, aligned.transcript)


def write_segments(folder: Path, cutting: Cutting, found: Sequence[Segment], whole: Transcript) -> None:
    """Writes the manifest, and what is rejected. Each file is whole or absent.

    Raises UserError where no clip is left, or the folder cannot be written.
    """
    identity = cutting.identity()
    rows = [
        _row(number, segment, cutting, identity["audio"]) for number, segment in enumerate(found, start=1)
    ]
    used = [row for row in rows if "reason" not in row]
    rejected = [row for row in rows if "reason" in row]
    said = _summary(found, whole.duration)
    make_folder(folder)
    try:
        _write(folder / REJECTED, rejected)
        if used:
            write_atomically(folder / MADE_OF, json.dumps({**identity, "found": said}, indent=2) + "\n")
            _write(folder / MANIFEST, used)
    except (OSError, ValueError) as error:
        raise cannot_write(folder, error) from None
    if rejected:
        reasons = [Skipped(row["id"], row["reason"]) for row in rejected]
        log.warning("%s", describe_skipped(reasons, verb="rejected"))
    if not used:
        raise UserError(
            f"none of {len(found)} clips can be used",
            where=cutting.audio,
            do=f"see {folder / REJECTED}: is it the recording's text, and the model's language?",
        )
    log.info("%s: %s", folder, said)


def _row(number: int, segment: Segment, cutting: Cutting, audio: str) -> dict[str, Any]:
    """A line of the manifest, or of what is rejected."""
    start, end = round(segment.start, 3), round(segment.end, 3)
    return {
        "id": f"{cutting.audio.stem}-{number:05d}",
        "audio_filepath": audio,
        "start": start,
        "end": end,
        "duration": round(end - start, 3),
        "text": segment.text,
        **({"speaker": cutting.speaker} if cutting.speaker else {}),
        "confidence": round(segment.confidence, 4),
        **({"reason": segment.reason} if segment.reason else {}),
    }


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _summary(found: Sequence[Segment], seconds: float) -> str:
    used = [segment for segment in found if not segment.reason]
    minutes = sum(segment.end - segment.start for segment in used) / 60
    middle = np.median([segment.confidence for segment in used]) if used else 0.0
    return (
        f"{len(used):,} clips, {minutes:.1f} of {seconds / 60:.1f} minutes, median "
        f"confidence {middle:.2f}; {len(found) - len(used):,} rejected, see {REJECTED}"
    )

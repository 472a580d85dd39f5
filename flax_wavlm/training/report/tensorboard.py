"""The lines of metrics.jsonl once more, as events that TensorBoard shows, with a few transcripts beside them.

tensorboardX writes them; it is the extra `tensorboard`: `pip install 'flax-wavlm[tensorboard]'`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, writing
from flax_wavlm.recognition.evaluate import read_predictions
from flax_wavlm.recognition.marked import samples
from flax_wavlm.recognition.task import TEST, Row, Scoring

FOLDER = "tensorboard"  # in the workdir
EVENT_FILES = "events.out.tfevents.*"


def require_tensorboard() -> None:
    """UserError where tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "tensorboardX is not installed",
            field="train.tensorboard",
            found=True,
            expected="the package that writes TensorBoard's events",
            do="`pip install 'flax-wavlm[tensorboard]'`, or set it to False",
        )


class Events:
    """The events of a run, in one file: what metrics.jsonl and predictions/ say, each step's once.

    The file is written anew when a run resumes, from the lines that metrics.jsonl has kept: so it cannot have
    steps that were taken back. All events before that have the time of that moment; their steps are right.

    Args:
        workdir: the run's folder.
        scoring: the scores that are shown.
        chooser: the split that predictions/STEP.jsonl is of.
    """

    def __init__(self, workdir: Path, scoring: Scoring, chooser: str):
        self.workdir, self.scoring, self.chooser = workdir, scoring, chooser
        self._file: Any = None

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Begins the file anew, with these rows."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self.workdir / FOLDER
        self.close()
        with writing(folder):
            folder.mkdir(exist_ok=True)
            for former in folder.glob(EVENT_FILES):
                former.unlink()
            self._file = EventsWriter(str(folder / "events"))
            # At a start, a TensorBoard that is looking on forgets what it has read.
            begun = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), session_log=begun))
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        """Adds what a line of metrics.jsonl says. Its predictions are in their file by then."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar, text

        split = row.get("split", "unknown")
        summaries = [scalar(f"{split}/{name}", value) for name, value in self._numbers(row).items()]
        if said := self._transcripts(row):
            summaries.append(text(f"{split}/transcripts", said))
        with writing(self.workdir / FOLDER):
            for summary in summaries:
                self._file.write_event(Event(wall_time=time.time(), step=row["step"], summary=summary))
            self._file.flush()

    def close(self) -> None:
        """Closes the file; `rewrite` opens another."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _numbers(self, row: Row) -> dict[str, float]:
        """The numbers of a train line; loss and scores that are shown of an evaluation."""
        shown = row.keys() - {"step"} if row.get("split") == "train" else {"loss", *self.scoring.titles}
        return {name: float(row[name]) for name in sorted(shown) if type(row.get(name)) in (int, float)}

    def _transcripts(self, row: Row) -> str:
        """A few transcripts with their errors marked, as Markdown; "" where no predictions are kept."""
        if row.get("split") == "train":
            return ""
        name = TEST if row.get("split") == TEST != self.chooser else row["step"]
        path = self.workdir / "predictions" / f"{name}.jsonl"
        if not exists(path):
            return ""
        lines = [line for sample in samples(read_predictions(path)) for line in str(sample).splitlines()]
        return "\n".join(f"    {line}" for line in lines)  # indented by four, Markdown leaves it as it is

"""TensorBoard's events: what metrics.jsonl says, each step once, also after a kill."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.errors import refused
from helpers.killed import killed_at
from helpers.runs import TIMES
from helpers.small_run import tiny_run

from flax_wavlm.recognition.ctc_task import ctc_scoring
from flax_wavlm.recognition.evaluate import Prediction, write_predictions
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.journal import Journal
from flax_wavlm.training.report.metrics import read_metrics
from flax_wavlm.training.report.tensorboard import Events, require_tensorboard
from flax_wavlm.training.train import train
from flax_wavlm.training.workdir import FREE_TO_CHANGE, check_same_run

pytest.importorskip("tensorboardX")


def read_events(workdir: Path) -> list[tuple[str, int, Any]]:
    """Tag, step and value of each event, in the order of the file: records with a length and checksums."""
    from tensorboardX.proto.event_pb2 import Event

    [file] = (workdir / "tensorboard").iterdir()
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4
        for value in event.summary.value:
            said = value.tensor.string_val[0].decode() if value.tensor.string_val else value.simple_value
            found.append((value.tag, event.step, said))
    return found


def journal(workdir: Path) -> Journal:
    return Journal(
        workdir, lambda step: step / 10, ctc_scoring(), events=Events(workdir, ctc_scoring(), "dev")
    )


def write_steps(workdir: Path, written: Journal, *steps: int) -> None:
    for step in steps:
        written.write(step, "train", {"loss": 2.0, "learning_rate": 0.25, "grad_norm": None, "clips": 8})
        write_predictions(workdir / f"predictions/{step}.jsonl", [Prediction("a", "go on", f"go {step}")])
        written.write(step, "dev", {"loss": 1.0, "wer": 0.5, "wer_hf_padded": 0.75, "best_by": "wer"})


def test_events_are_the_lines_of_metrics(tmp_path: Path) -> None:
    written = journal(tmp_path)
    write_steps(tmp_path, written, 2)
    assert read_events(tmp_path) == [
        ("train/clips", 2, 8.0),
        ("train/epoch", 2, pytest.approx(0.2)),
        ("train/learning_rate", 2, 0.25),
        ("train/loss", 2, 2.0),
        ("dev/loss", 2, 1.0),
        ("dev/wer", 2, 0.5),
        ("dev/transcripts/text_summary", 2, "    a\n      reference   go [on]\n      hypothesis  go [2]"),
    ]
    write_predictions(tmp_path / "predictions/test.jsonl", [Prediction("b", "yes", "yes")])
    written.write(2, "test", {"loss": 1.0})
    assert read_events(tmp_path)[-1] == (
        "test/transcripts/text_summary",
        2,
        "    b\n      reference   yes\n      hypothesis  yes",
    )


def test_no_step_is_there_twice_after_a_kill(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for workdir in (killed, whole):
        workdir.mkdir()
    write_steps(killed, journal(killed), 2, 4, 6)
    [file] = (killed / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # in the middle of an event
    resumed = journal(killed)
    resumed.go_back_to(4)  # its checkpoint
    assert {step for _, step, _ in read_events(killed)} == {2, 4}
    write_steps(killed, resumed, 6, 8)
    write_steps(whole, journal(whole), 2, 4, 6, 8)
    assert read_events(killed) == read_events(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_killed_twice_has_the_events_of_a_whole_one(tmp_path: Path) -> None:
    """Killed after a line that is behind the last checkpoint, and in the middle of an evaluation."""

    def run(workdir: str) -> TrainConfig:
        config = tiny_run(tmp_path, workdir)
        config.train.tensorboard, config.train.save_every = True, 2
        return config

    for batch, last_step in ((6, 3), (4, 4)):  # the batches of evaluations count too
        with killed_at(batch):
            train(run("parts"))
        assert max(step for _, step, _ in read_events(tmp_path / "parts")) == last_step
    parts, whole = train(run("parts")), train(run("whole"))
    found, expected = (
        [(tag, step, value) for tag, step, value in read_events(result.workdir) if not tag.endswith(TIMES)]
        for result in (parts, whole)
    )
    assert found == expected
    steps = {tag: [step for name, step, _ in found if name == tag] for tag, _, _ in found}
    assert steps["train/loss"] == [1, 2, 3, 4, 5, 6]
    for tag in ("test/loss", "test/wer", "test/transcripts/text_summary"):
        assert steps[tag] == [2, 4, 6]


def test_a_run_may_get_its_events_later(tmp_path: Path) -> None:
    """The field is free to change: the events are all there, whenever it is set."""
    assert "train.tensorboard" in FREE_TO_CHANGE
    config = TrainConfig(workdir=str(tmp_path))
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    config.train.tensorboard = True
    check_same_run(tmp_path, config)
    write_steps(tmp_path, Journal(tmp_path, lambda step: step / 10, ctc_scoring()), 2)
    assert not (tmp_path / "tensorboard").exists()
    journal(tmp_path)
    assert len(read_events(tmp_path)) == 7
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_damaged_predictions_are_named(tmp_path: Path) -> None:
    write_steps(tmp_path, Journal(tmp_path, lambda step: step / 10, ctc_scoring()), 2)
    (tmp_path / "predictions/2.jsonl").write_text('{"id": "a"}\n')
    with refused("holds no predictions", where=str(tmp_path / "predictions/2.jsonl"), do="restore or remove"):
        journal(tmp_path)
    (tmp_path / "predictions/2.jsonl").unlink()
    journal(tmp_path)
    assert "dev/transcripts/text_summary" not in [tag for tag, _, _ in read_events(tmp_path)]


def test_the_package_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tensorboard()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with refused("tensorboardX is not installed", field="train.tensorboard", do=r"flax-wavlm\[tensorboard\]"):
        require_tensorboard()

"""What is promised of a run when machines fail: processes are really killed, several are really started."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import (
    TEST_CLIPS,
    TRAIN_CLIPS,
    Trainer,
    assert_same_run,
    free_port,
    metrics,
    start_processes,
    without_root_rights,
    write_noise_corpus,
)

pytestmark = pytest.mark.chaos

Say = Callable[[str], None]
TRY_AGAIN = 75
STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise_corpus(tmp_path_factory.mktemp("corpus") / "noise")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workdirs lie: runs that compile the same program compile it once."""
    return tmp_path_factory.mktemp("runs")


def finish(trainer: Trainer) -> None:
    status = trainer.finish()
    assert status == 0, trainer.output


@pytest.fixture(scope="module")
def whole(data: Path, runs: Path) -> Path:
    """A run of one process that nothing happens to."""
    finish(Trainer(data, runs / "whole"))
    return runs / "whole"


def saved_steps(workdir: Path) -> list[int]:
    """Of the checkpoints that are whole, or claim to be."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def at_step(workdir: Path, data: Path, step: int, stop: signal.Signals, **kwargs) -> Trainer:
    """A run that gets a signal when it has logged a step."""
    trainer = Trainer(data, workdir, **kwargs)
    assert trainer.wait_for(f"step {step}/{STEPS}"), trainer.output
    trainer.process.send_signal(stop)
    return trainer


# --- Nothing lost, nothing doubled --------------------------------------------------------------------------

KILLS, LONG = 20, 150


def test_killed_at_twenty_moments(data: Path, runs: Path, measured: Say) -> None:
    """Starting, training, writing a checkpoint: whenever it is killed, it ends as if it had not been."""
    flags = (f"--config.train.steps={LONG}", "--config.train.eval_every=25")
    finish(Trainer(data, runs / "quiet", *flags))
    workdir = runs / "killed"
    chance = random.Random(1)
    kinds: Counter[str] = Counter()
    while sum(kinds.values()) < KILLS:
        kind = ("saving", "training", "saving", "starting")[sum(kinds.values()) % 4]
        trainer = Trainer(data, workdir, *flags)
        if kind == "starting":
            time.sleep(chance.uniform(0.5, 8))
        else:
            assert trainer.wait_for("  loss "), trainer.output
            time.sleep(chance.uniform(0, 1))
        if kind == "saving":
            while trainer.process.poll() is None and not list(workdir.glob("checkpoints/*tmp*")):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.02))
        assert trainer.process.poll() is None, "the run is over: nothing left to kill"
        trainer.kill()
        kinds[kind] += 1
    finish(Trainer(data, workdir, *flags))
    assert_same_run(workdir, runs / "quiet", LONG)
    rows = Counter((row["step"], row["split"]) for row in metrics(workdir))
    assert rows == Counter({(n, "train"): 1 for n in range(1, LONG + 1)}) + Counter(
        {(n, "test"): 1 for n in range(25, LONG + 1, 25)}
    )
    assert not list(workdir.glob("checkpoints/*tmp*"))
    measured(f"{KILLS} kills ({dict(kinds)}): metrics, parameters, optimizer, export identical bit for bit")


def test_killed_with_all_controls_on(data: Path, runs: Path, measured: Say) -> None:
    """Augmentation, batches of so many seconds, the head first, tri-stage, and the mean at the end."""
    flags = (
        "--config.train.batch_seconds=7",
        "--config.train.head_first_steps=3",
        "--config.train.average_last=3",
        "--config.train.eval_every=3",
        "--config.data.augment.speeds=0.9,1,1.1",
        "--config.data.augment.noise=white",
        "--config.optim.schedule=tri_stage",
        "--config.optim.hold_steps=4",
        "--config.optim.layer_decay=0.8",
    )
    finish(Trainer(data, runs / "controlled", *flags))
    workdir = runs / "controlled-killed"
    for step in (1, 3, 6, 9, STEPS):
        trainer = Trainer(data, workdir, *flags)
        assert trainer.wait_for(f"step {step}/{STEPS}"), trainer.output
        assert trainer.process.poll() is None
        trainer.kill()
    finish(Trainer(data, workdir, *flags))
    assert_same_run(workdir, runs / "controlled", STEPS)
    [mean] = [row for row in metrics(workdir) if row.get("averaged")]
    assert (mean["step"], mean["averaged"], mean["split"]) == (STEPS, 3, "test")
    measured("5 kills with all controls on: metrics, parameters, optimizer, export identical bit for bit")


@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
def test_sigterm_saves_and_the_same_command_resumes(
    signals: int, data: Path, whole: Path, runs: Path
) -> None:
    workdir = runs / f"terminated-{signals}"
    trainer = at_step(workdir, data, 4, signal.SIGTERM)
    for _ in range(signals - 1):
        trainer.process.send_signal(signal.SIGTERM)
    assert trainer.finish() == TRY_AGAIN, trainer.output
    assert "asked to stop: saved at step" in trainer.output
    assert "Traceback" not in trainer.output
    saved = saved_steps(workdir)[-1]
    again = Trainer(data, workdir)
    finish(again)
    assert f"resumed from step {saved}" in again.output
    assert_same_run(workdir, whole, STEPS)


def test_two_runs_in_one_workdir(data: Path, runs: Path) -> None:
    workdir = runs / "contended"
    first = Trainer(data, workdir)
    assert first.wait_for("compiling"), first.output
    second = Trainer(data, workdir)
    assert second.finish() == 2
    assert f"process {first.process.pid} of" in second.output
    assert "is training here" in second.output
    first.kill()


# --- One result on any topology -----------------------------------------------------------------------------

FIRST = 6  # steps whose losses must agree to SAME


def assert_equal_figures(ours: Path, expected: Path, *, first: int = STEPS) -> float:
    """The largest relative difference of the losses; error rates and counts must be equal."""
    largest = 0.0
    rows, wanted = metrics(ours), metrics(expected)
    assert [(row["step"], row["split"]) for row in rows] == [(row["step"], row["split"]) for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        for name, value in other.items():
            if name in ("loss", "grad_norm"):
                largest = max(largest, abs(row[name] / value - 1)) if row["step"] <= first else largest
            else:
                assert row[name] == value, (row, other)
    return largest


SAME = 1e-5


def assert_each_clip_once(workdir: Path) -> None:
    epoch = [row["clips"] for row in metrics(workdir) if row["split"] == "train" and row["step"] <= 3]
    assert sum(epoch) == TRAIN_CLIPS
    ids = [json.loads(line)["id"] for line in (workdir / f"predictions/{STEPS}.jsonl").open()]
    assert len(ids) == len(set(ids)) == TEST_CLIPS


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_eight_devices(fsdp: int, data: Path, whole: Path, runs: Path, measured: Say) -> None:
    workdir = runs / f"fsdp-{fsdp}"
    finish(Trainer(data, workdir, f"--config.mesh.fsdp={fsdp}", devices=8))
    difference = assert_equal_figures(workdir, whole, first=FIRST)
    measured(f"8 devices, fsdp {fsdp}, against 1 device: losses and gradients differ by {difference:.1e}")
    assert difference <= SAME
    assert_each_clip_once(workdir)


WATCHER = """
import os, sys
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)) and arguments[1]:
        path = os.path.abspath(os.fspath(arguments[0]))
        if set("wax+") & set(arguments[1]) and path.startswith(os.environ["WATCHED"]):
            os.write(log, (path + "\\n").encode())
log = os.open(os.environ["WATCH_LOG"] + os.environ["JAX_PROCESS_ID"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(watch)
"""


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (4, 8)])
def test_two_processes(
    devices: int, fsdp: int, data: Path, whole: Path, runs: Path, tmp_path: Path, measured: Say
) -> None:
    workdir = runs / f"processes-{devices}-{fsdp}"
    (tmp_path / "sitecustomize.py").write_text(WATCHER)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    both = start_processes(
        data,
        workdir,
        f"--config.mesh.fsdp={fsdp}",
        "--config.train.aligner=true",
        devices=devices,
        environment={"PYTHONPATH": path, "WATCHED": str(workdir), "WATCH_LOG": str(tmp_path / "written.")},
    )
    for trainer in both:
        finish(trainer)
    difference = assert_equal_figures(workdir, whole, first=FIRST)
    measured(f"2 processes x {devices} devices, fsdp {fsdp}, against 1 device: differ by {difference:.1e}")
    assert difference <= SAME
    assert_each_clip_once(workdir)
    written = [set((tmp_path / f"written.{i}").read_text().split()) for i in range(2)]
    checkpoints = str(workdir / "checkpoints")
    assert {path for path in written[0] if not path.startswith(checkpoints)}
    assert not {path for path in written[1] if not path.startswith(checkpoints)}
    assert (workdir / "export" / "aligner.safetensors").exists()  # the first process fitted it alone


def test_saved_on_one_topology_resumed_on_others(data: Path, whole: Path, runs: Path, measured: Say) -> None:
    """One device, then two processes of four, then eight devices with everything split."""
    workdir = runs / "moving"
    assert at_step(workdir, data, 3, signal.SIGTERM).finish() == TRY_AGAIN
    both = start_processes(data, workdir, "--config.mesh.fsdp=2")
    assert both[1].wait_for("step 7/"), both[1].output
    for _ in range(2):  # not to the first process: the notice must reach both; and a second one is no harm
        both[1].process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    for trainer in both:
        assert trainer.finish() == TRY_AGAIN, trainer.output
    last = Trainer(data, workdir, "--config.mesh.fsdp=8", devices=8)
    finish(last)
    assert "resumed from step" in last.output
    difference = assert_equal_figures(workdir, whole, first=FIRST)
    measured(f"1 device, then 2 x 4, then 8: differ by {difference:.1e}")
    assert difference <= SAME
    assert_each_clip_once(workdir)


@pytest.mark.parametrize("dying", [0, 1])
def test_a_process_that_dies_takes_the_others_along(
    dying: int, data: Path, runs: Path, measured: Say
) -> None:
    both = start_processes(data, runs / f"dying-{dying}", "--config.train.steps=100000")
    assert both[dying].wait_for("step 2/"), both[dying].output
    both[dying].kill()
    died = time.monotonic()
    assert both[1 - dying].finish(60) != 0
    seconds = time.monotonic() - died
    measured(f"process {dying} killed: the other ended after {seconds:.0f} s")
    assert seconds < 60
    # Ours where a computation failed first, jax's where its service heard of the death first.
    said = ("another process of this run has ended", "another task died")
    assert any(text in both[1 - dying].output for text in said), both[1 - dying].output


def test_an_error_in_one_process_ends_all(data: Path, runs: Path, tmp_path: Path) -> None:
    port = free_port()
    workdir = runs / "one-error"
    elsewhere = tmp_path / "nothing-here"
    good = Trainer(data, workdir, devices=4, process=(0, 2, port))
    bad = Trainer(elsewhere, workdir, devices=4, process=(1, 2, port))
    assert bad.finish() == 2
    assert str(elsewhere) in bad.output
    assert good.finish(60) != 0


def test_incomplete_description_of_the_processes(data: Path, tmp_path: Path) -> None:
    alone = Trainer(data, tmp_path / "run", environment={"JAX_PROCESS_ID": "0"})
    assert alone.finish() == 2
    assert "JAX_PROCESS_ID set without JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES" in alone.output


# --- Damage -------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def stopped(data: Path, runs: Path) -> Path:
    """A workdir with checkpoints of two steps or more, and the run not at its end."""
    workdir = runs / "stopped"
    assert at_step(workdir, data, 8, signal.SIGTERM).finish() == TRY_AGAIN
    assert len(saved_steps(workdir)) >= 2
    return workdir


@pytest.fixture
def interrupted(stopped: Path, runs: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(stopped, runs / request.node.name))


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """Names of the files that are new, gone or other than they were."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def newest(workdir: Path) -> Path:
    return workdir / "checkpoints" / str(saved_steps(workdir)[-1])


def largest_file(checkpoint: Path) -> Path:
    return max(
        (path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_damaged_newest_checkpoint(interrupted: Path, data: Path, whole: Path) -> None:
    step = int(newest(interrupted).name)
    flip_a_bit(largest_file(newest(interrupted)))
    again = Trainer(data, interrupted)
    finish(again)
    assert f"checkpoints/{step}: damaged" in again.output
    assert f"resumed from step {step - 1}" in again.output
    assert (interrupted / f"damaged/{step}.1").is_dir()
    assert_same_run(interrupted, whole, STEPS)


def test_no_checkpoint_is_good(interrupted: Path, data: Path) -> None:
    for step in saved_steps(interrupted):
        file = largest_file(interrupted / "checkpoints" / str(step))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = tree(interrupted)
    again = Trainer(data, interrupted)
    assert again.finish() == 2
    assert "none of its checkpoints can be used" in again.output
    assert "Traceback" not in again.output
    assert changed(before, tree(interrupted)) == {".lock", "config.json"}  # the latter says where it is


def test_read_only_workdir(interrupted: Path, data: Path) -> None:
    before = tree(interrupted)
    folders = [interrupted, *(path for path in interrupted.rglob("*") if path.is_dir())]
    files = [path for path in interrupted.rglob("*") if path.is_file()]
    for path in [*folders, *files]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        again = Trainer(data, interrupted, preexec_fn=without_root_rights)
        assert again.finish() == 2
    finally:
        for path in [*folders, *files]:
            path.chmod(path.stat().st_mode | 0o200)
    assert str(interrupted) in again.output
    assert "cannot be written" in again.output
    assert "Permission denied" in again.output
    assert "Traceback" not in again.output
    assert tree(interrupted) == before


def test_full_disk(interrupted: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    """The workdir on a disk of its own, which has room for less than one more checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(len(content) for content in tree(interrupted).values())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size + 2**20}", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a disk here: {mounted.stderr.strip()}")
    try:
        workdir = disk / "run"
        shutil.copytree(interrupted, workdir)
        steps = saved_steps(workdir)
        full = Trainer(data, workdir, environment={"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")})
        assert full.finish() == 2, full.output
        assert "Traceback" not in full.output
        assert "No space left" in full.output or "space" in full.output
        kept = saved_steps(workdir)
        assert set(kept) & set(steps)
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        finish(Trainer(data, workdir, environment={"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}))
        assert_same_run(workdir, whole, STEPS)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_another_configuration(interrupted: Path, data: Path) -> None:
    before = tree(interrupted)
    other = Trainer(data, interrupted, "--config.optim.learning_rate=0.5", "--config.seed=7")
    assert other.finish() == 2
    assert "optim.learning_rate was 0.001, is 0.5; seed was 42, is 7" in other.output
    assert changed(before, tree(interrupted)) == {".lock"}


def test_other_data_under_the_same_path(interrupted: Path, data: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(data, changed)
    lines = (changed / "train.jsonl").read_text().splitlines(keepends=True)
    (changed / "train.jsonl").write_text("".join(lines[1:]))
    other = Trainer(changed, interrupted)
    assert other.finish() == 2
    assert f"{changed}: not the clips that" in other.output
    assert f"{TRAIN_CLIPS - 1} clips" in other.output

"""The benchmarks run, count right, and need no more than they say."""

import argparse
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jobs
import numpy as np
import pairs
import pytest
import workload
from helpers import xla

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def run(script: str = "", *arguments: str, code: str = "") -> str:
    """What a script prints; `code` runs before it in the same interpreter."""
    start = [sys.executable, "-c", code] if code else [sys.executable, str(BENCHMARKS / script)]
    settings = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)]),
        # Hundreds of steps take longer, compiled quickly, than compiling them well.
        "XLA_FLAGS": "" if script.startswith("languages") else xla.flags(devices=1),
    }
    done = subprocess.run(
        [*start, *arguments], env=os.environ | settings, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_step_flops_of_wavlm_large():
    """The totals, in TFLOP, of the estimate that the MFU is told by, and its parts at 4 s."""
    chosen = workload.settings("large")
    four = {name: flops / 1e12 for name, flops in workload.step_flops(chosen, 32, 4.0).items()}
    assert {name: round(flops, 2) for name, flops in four.items()} == {
        "feature encoder": 0.63,
        "positional convolution": 0.32,
        "q, k, v, out": 3.85,
        "scores and their product with V": 0.37,
        "feed-forward": 7.69,
        "rest": 0.03,
        "total": 12.89,
    }
    assert round(workload.step_flops(chosen, 32, 8.0)["total"] / 1e12, 1) == 26.6


def test_ratio_is_of_neighbouring_blocks():
    ours, theirs = iter([9, 1, 2, 3]), iter([9, 2, 8, 3])
    measured = pairs.alternate(lambda: next(ours), lambda: next(theirs), 3)  # the first of each warms up
    assert measured.ratio == (0.5, 0.25, 1.0)
    assert measured.ours == (2, 1, 3)


def test_target_is_on_the_ratio_where_there_is_one():
    ratio = pairs.Spread(0.7, 0.6, 0.8)
    assert pairs.row("a", "s", 9.0, ratio=ratio, at_most=0.7)["met"] is True
    assert pairs.row("a", "s", 9.0, ratio=ratio, at_most=0.6)["met"] is False
    assert pairs.row("a", "s", 9.0, at_most=8)["met"] is False
    assert pairs.row("a", "s", 9.0, at_least=8)["met"] is True


def test_results_are_replaced_by_command_and_by_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    options = argparse.Namespace(results=tmp_path, rehearse=False)

    def write(ran: str, **rows: float) -> dict[str, float]:
        pairs.write(options, ran, "cpu", [pairs.row(job, "s", ours) for job, ours in rows.items()])
        found = json.loads((tmp_path / "script-cpu.json").read_text())["rows"]
        return {row["job"]: row["ours"] for row in found}

    assert write("first", a=1.0, b=2.0) == {"a": 1.0, "b": 2.0}
    assert write("second", b=3.0, c=4.0) == {"a": 1.0, "b": 3.0, "c": 4.0}
    assert write("second", c=5.0) == {"a": 1.0, "c": 5.0}


def test_table_is_what_the_results_say():
    run("table.py", "--check")


def test_every_job_is_a_command_that_parses():
    for device, listed in jobs.JOBS.items():
        for job in listed:
            script, *arguments = job.split()
            module = importlib.import_module(script.removesuffix(".py"))
            assert module.command_line().parse_args(arguments).device == device


def test_a_text_is_as_probable_as_all_paths_that_read_as_it_are_together():
    beam_search = importlib.import_module("beam_search")
    letters, blank, delimiter = "ab", 2, 3
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=6)
    expected: dict[str, float] = {}
    for path in itertools.product(range(4), repeat=6):
        labels = [label for label, _ in itertools.groupby(path) if label != blank]
        text = " ".join("".join("ab |"[label] for label in labels).replace("|", " ").split())
        expected[text] = expected.get(text, 0) + math.prod(probs[range(6), path])
    for text, prob in expected.items():
        spelt = [[letters.index(letter) for letter in word] for word in text.split()]
        found = beam_search.text_log_prob(np.log(probs), spelt, blank, delimiter)
        assert math.exp(found) == pytest.approx(prob, rel=1e-9)


NEEDED_ELSEWHERE = ("grain", "datasets", "jiwer", "soundfile", "soxr", "ml_collections")


def test_model_and_step_need_no_package_for_data():
    blocked = f"import sys; sys.modules.update(dict.fromkeys({NEEDED_ELSEWHERE}))\n"  # import of None fails
    names = (
        "models.heads",
        "training.step",
        "porting.load",
        "training.optimizer",
        "ops.ctc.api",
        "parallel.sharding",
    )
    modules = [f"flax_wavlm.{name}" for name in names]
    modules += [
        "flax_side",
        "torch_side",
        "parity",
        "train_step",
        "profile_step",
        "scaling",
        "startup",
        "workload",
    ]
    run(code=blocked + "\n".join(f"import {module}" for module in modules))
    assert "ok" in run(code=blocked + "try:\n    import grain.python\nexcept ImportError:\n    print('ok')")


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "train_step",
        "parity",
        "profile_step",
        "inference",
        "confidence",
        "input_pipeline",
        "batch_shapes",
        "dry_run",
        "startup",
        "scaling",
        "languages --languages de",
        "language_model",
        "alignment",
        "word_times",
        "beam_search",
    ],
)
def test_rehearsal(script: str, tmp_path: Path):
    script, *options = script.split()
    printed = run(f"{script}.py", "--rehearse", "--results", str(tmp_path), *options)
    result = json.loads((tmp_path / f"{script}-cpu.json").read_text())
    assert result["benchmark"] == script
    for row in result["rows"]:
        # The exponent of a tiny model's time is noise, of either sign.
        assert row["ours"] >= 0 or (row["unit"] == "exponent" and "time" in row["job"])
        assert row["job"] in printed


@pytest.mark.slow
def test_rehearsal_of_the_compiled_baselines():
    printed = run("train_step.py", "--rehearse", "--baseline", "B1", "B2", "B3")
    assert all(f"vs {baseline}:" in printed for baseline in ("B1", "B2", "B3"))

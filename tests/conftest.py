"""XLA's flags and devices, the compilation cache, and the references and clips that many tests share."""

import atexit
import os
import shutil
import tempfile

from helpers import xla

# All of this before jax is imported. Workers and child processes inherit what is set here.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla.flags(int(os.environ.get("FLAX_WAVLM_TEST_DEVICES", "8")))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads wait for each other where cores are few
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # One folder for a session and all its processes: the same program is compiled once.
    # `.ci/run` sets one for all its sessions.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flax-wavlm-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # single operations too

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.reference import KINDS, Reference, tiny_reference


@pytest.fixture(scope="session", params=KINDS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A tiny PyTorch WavLMForCTC of each kind, its weights scaled so that every tensor shows."""
    return tiny_reference(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def large_reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The layer-norm kind alone."""
    return tiny_reference("large", tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Meshes of the first device alone, which compile faster, for modules whose subject is not sharding.

    FLAX_WAVLM_TEST_DEVICES says otherwise: with 8, these modules too use eight devices (`.ci/run` does both).
    """
    with pytest.MonkeyPatch.context() as patch:
        if "FLAX_WAVLM_TEST_DEVICES" not in os.environ:
            patch.setattr(jax, "device_count", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def lowering_for_a_gpu() -> None:
    """From jax 0.11 on, a kernel for GPUs is not even lowered where there is none to ask: pretend an H100."""
    try:
        own = importlib.import_module("jax._src.pallas.triton.gpu_info")
    except ModuleNotFoundError:
        return
    with contextlib.suppress(AttributeError):  # of a jax that asks otherwise; the tests will tell
        own.get_gpu_info = functools.partial(own._get_gpu_info_impl, own.GpuVersion.H100)


# These files take longest, so they come first: else one worker waits for the other at the end.
LONGEST = (
    "test_recipes.py",
    "test_resuming.py",
    "test_nonfinite.py",
    "test_step_meshes.py",
    "test_features.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Keeps what a test measured for the end of the run: `pytest | grep ^measured` collects the figures."""
    return lambda figures: record_property("measured", figures)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, figures in getattr(report, "user_properties", ()):
                if name == "measured" and report.when == "call":
                    terminalreporter.write_line(f"measured: {figures}")


@pytest.fixture(scope="session")
def timit_sample() -> Path:
    """The NLTK sample of TIMIT; the test is skipped where TIMIT_SAMPLE_DIR does not say where it is."""
    folder = os.environ.get("TIMIT_SAMPLE_DIR")
    if not folder:
        pytest.skip("TIMIT_SAMPLE_DIR is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def speech(timit_sample: Path) -> list[np.ndarray]:
    """Eight real clips of unequal lengths, 1.5 to 4.5 s, float32, zero mean and unit variance."""
    from flax_wavlm.data.audio import read_audio
    from flax_wavlm.data.corpora.timit import read_timit_sample
    from flax_wavlm.data.preprocessor import Preprocessor

    utterances, _ = read_timit_sample(timit_sample, "train", held_out_speakers=("dr8-mbcg0",))
    preprocess = Preprocessor(do_normalize=True, return_attention_mask=True)
    clips = [preprocess(read_audio(u.audio)) for u in utterances if "dr1-mcpm0" in u.id][:8]
    assert len({len(clip) for clip in clips}) == 8
    return clips

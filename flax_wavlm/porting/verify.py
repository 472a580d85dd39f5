"""Proof that a conversion is right, on the user's own machine and by transformers' own PyTorch code.

A check compares two readings of the same weights that share as little code as possible: the tensors bit by
bit, and the outputs of our model and of transformers' for one clip, in float32 on the CPU.

    N  samples      T  frames      V  outputs of the CTC head      D  width of the encoder
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from flax_wavlm.data.audio import FEW, read_audio
from flax_wavlm.data.preprocessor import PREPROCESSOR_FILES, Preprocessor
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, reason, some
from flax_wavlm.models.heads import WavLMForCTC, structure
from flax_wavlm.models.parameters import Params, merge, split
from flax_wavlm.porting.convert import Conversion
from flax_wavlm.porting.pretrained import PretrainedWeights, open_weights
from flax_wavlm.porting.table import HEAD, MASK_EMBEDDING, has_mask_embedding

TOLERANCE = 1e-3  # for the largest difference; times the largest reference value where that is above 1
CLIP_SECONDS = 10  # that are used of the user's clip; attention's memory grows with the square


class Check(NamedTuple):
    """One comparison: what was compared, what was found, and whether that is right."""

    what: str
    found: str
    passed: bool

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.what}: {self.found}"


def verify(conversion: Conversion, clip: np.ndarray | None = None) -> list[Check]:
    """Checks what `convert` wrote. The conversion is right if every check passes.

    - Every tensor of the source is in the written file, bit by bit (read as float32).
    - transformers' WavLMForCTC loads the folder, and gives the logits that ours gives.
    - Where the source is a Hugging Face folder itself: transformers' WavLMModel, reading the source, gives
      the last hidden states that ours gives. This check reads nothing that we wrote.

    Args:
        clip: samples [N], mono at 16 kHz, float32 or int16; the first 10 s are used. None: `speech_like()`.
    Raises:
        UserError: PyTorch is not installed, transformers cannot load a folder, or the clip is too short.
    """
    require_torch()
    from transformers import WavLMForCTC as TorchWavLMForCTC
    from transformers import WavLMModel

    weights, model, folder = conversion
    input_values = _input(clip, model.config.min_samples, folder)
    checks = [_same_tensors(weights, folder)]
    logits, hidden = _forward(model, input_values)
    theirs = _reference(TorchWavLMForCTC, folder)
    checks.append(
        _compare(f"logits beside transformers' of {folder}", logits, theirs(input_values, "logits"))
    )
    if Path(weights.source).is_dir() and weights.prefix in ("", "wavlm."):  # transformers takes no other
        theirs = _reference(WavLMModel, Path(weights.source))
        reference = theirs(input_values, "last_hidden_state")
        checks.append(_compare(f"hidden states beside transformers' of {weights.source}", hidden, reference))
    return checks


def require_torch() -> None:
    """UserError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "verifying compares with transformers' PyTorch model, and PyTorch is not installed",
            field="verify",
            do="pip install 'flax-wavlm[torch]'",
        )


def read_clip(file: str) -> np.ndarray:
    """The user's clip as samples [N]; UserError as `read_audio` raises it."""
    return read_audio(Path(file), missing_ok=FEW)


def speech_like(seconds: float = 4.0) -> np.ndarray:
    """Always the same samples [N], float32 at 16 kHz: harmonics of a gliding pitch in syllables, and noise.

    It is not speech, but it has loud, quiet and coloured parts as speech has, which use all of the model.
    """
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)  # Hz
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 2 * time), 0, 1)  # four a second, with pauses
    # RandomState's stream is frozen: the samples are the same in every version of NumPy.
    noise = np.random.RandomState(0).standard_normal(len(time))
    return (0.1 * voice * syllables + 0.01 * noise).astype(np.float32)


def _input(clip: np.ndarray | None, min_samples: int, folder: Path) -> np.ndarray:
    """The model's input [1, N], preprocessed as the written folder says."""
    clip = speech_like() if clip is None else clip[: CLIP_SECONDS * SAMPLE_RATE]
    if len(clip) < min_samples:
        raise UserError(
            f"the clip has {len(clip)} samples at 16 kHz",
            field="clip",
            expected=f"at least {min_samples}, one frame of the model",
            do="give a longer clip",
        )
    preprocess = Preprocessor(do_normalize=True, return_attention_mask=False)
    if any((folder / name).exists() for name in PREPROCESSOR_FILES):
        preprocess = Preprocessor.from_pretrained(folder)
    return preprocess(clip)[None]


def _forward(model: WavLMForCTC, input_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Our logits [1, T, V] and last hidden states [1, T, D], on the CPU."""
    graphdef, _ = structure(model.config)
    cpu = jax.local_devices(backend="cpu")[0]
    params, values = jax.device_put((split(model)[1], input_values), cpu)
    return jax.device_get(_outputs(graphdef, params, values))


@functools.partial(jax.jit, static_argnums=0)
def _outputs(graphdef: nnx.GraphDef, params: Params, input_values: jax.Array) -> tuple[jax.Array, jax.Array]:
    model = merge(graphdef, params)
    return model(input_values)[0], model.wavlm(input_values)[0]


def _reference(model_class: Any, folder: Path) -> Any:
    """(input_values [1, N], name of an output) -> array, by transformers' model of the folder."""
    import torch

    with _quiet():
        try:
            model, loading = model_class.from_pretrained(
                folder, output_loading_info=True, dtype=torch.float32, local_files_only=True
            )
        except Exception as error:  # each file format has exceptions of its own
            raise UserError(
                f"transformers' {model_class.__name__} cannot load it ({type(error).__name__}: "
                f"{reason(error)}), so there is nothing to compare with",
                where=folder,
            ) from error
    # A mask embedding may be missing: what is compared here masks nothing.
    if missing := sorted(name for name in loading["missing_keys"] if not MASK_EMBEDDING.endswith(name)):
        raise UserError(
            f"transformers' {model_class.__name__} misses {len(missing)} tensors there: {some(missing)}",
            where=folder,
        )
    model.eval()

    def run(input_values: np.ndarray, output: str) -> np.ndarray:
        with torch.no_grad():
            return getattr(model(torch.from_numpy(input_values)), output).numpy()

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its remarks on a head that WavLMModel does not use."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _compare(what: str, ours: np.ndarray, theirs: np.ndarray) -> Check:
    if ours.shape != theirs.shape:
        return Check(what, f"shape {ours.shape}, expected {theirs.shape}", False)
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    tolerance = TOLERANCE * max(1.0, largest)
    found = (
        f"largest difference {difference:.1e}, largest value {largest:.3g}, tolerance {tolerance:.1e} "
        f"({TOLERANCE:g} times the largest value where that is above 1)"
    )
    return Check(what, found, difference <= tolerance)  # False for NaN


def _same_tensors(weights: PretrainedWeights, folder: Path) -> Check:
    """Every tensor of the source, bit by bit, and no others except those that `load_model` may initialise."""
    what = f"tensors of {folder}, bit by bit beside those of {weights.source}"
    written = open_weights(folder).tensors
    expected = dict(weights.tensors)
    if not has_mask_embedding(weights.config):
        expected.pop(MASK_EMBEDDING, None)  # transformers' model has no place for it
    allowed = {*expected, MASK_EMBEDDING, *(() if weights.has_head else HEAD)}
    wrong = [
        *(f"{name} is missing" for name in expected if name not in written),
        *(f"{name} was not there" for name in written if name not in allowed),
        *(
            f"{name} differs"
            for name in expected
            if name in written and not _same_bits(expected[name].read(), written[name].read())
        ),
    ]
    if wrong:
        return Check(what, f"{len(wrong)} of {len(expected)} are wrong: {some(wrong, 5)}", False)
    fresh = len(written.keys() - expected.keys())
    return Check(what, f"all {len(expected)} equal" + (f", {fresh} new" if fresh else ""), True)


def _same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equality of shapes and bits as float32, which holds every half-precision number."""
    a, b = (np.ascontiguousarray(array, np.float32) for array in (ours, theirs))
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))

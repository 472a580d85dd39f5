"""The aligner: when a text was said, heard in a few frames around each moment.

A fine-tuned model attends to the whole clip. It may output a word long before or after it is said, and its
outputs are peaks among blanks. The aligner is a second CTC head, which sees only 180 ms of the frozen feature
encoder's output around each frame. It is trained with label priors (Huang et al. 2024, "Less peaky and more
accurate CTC forced alignment by label priors", arXiv:2406.02560), so that labels last as long as their
sounds. It is too weak to recognise speech, and good at finding a known text in it.

    B  clips      T  frames      C  channels of the feature encoder      V  labels of the model
"""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from flax_wavlm.errors import UserError, cannot_read, cannot_write, reason
from flax_wavlm.files import exists, parse_json, replaced
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import Params, flatten, merge, split
from flax_wavlm.recognition.alignment import align_labels, frames_needed

Array = jax.Array

ALIGNER = "aligner"  # the name of an aligner's log-probabilities in the evidence of frames
ALIGNER_FILE = "aligner.safetensors"
METADATA = "flax_wavlm.aligner"  # the entry of the file that says in JSON what it is
VERSION = 1  # of the file, and of what its tensors mean
TAPS, WIDTH = 5, 128  # two convolutions of 5 taps hear 9 frames
# Seconds that are added to the begin of a word's first frame, and to the end of its last one.
# `benchmarks/word_times.py` measured them on synthetic German, and then used them in English.
START_OFFSET, END_OFFSET = -0.017, 0.006
FIT_AGAIN = "fit it again with fit_aligner.py, or remove the file"


class AlignerSize(NamedTuple):
    """What decides the shapes of an aligner's parameters."""

    channels: int  # C
    outputs: int  # V
    taps: int = TAPS  # odd
    width: int = WIDTH

    @classmethod
    def of_model(cls, config: WavLMConfig) -> AlignerSize:
        """The size of an aligner beside a model."""
        return cls(config.conv_dim[-1], config.vocab_size)

    @classmethod
    def of_params(cls, params: Params) -> AlignerSize:
        """The size of the aligner that has these parameters."""
        taps, channels, width = params["conv0"]["kernel"].shape
        return cls(channels, params["head"]["bias"].shape[0], taps, width)


class Standardise(nnx.Module):
    """Each channel less its mean over speech, times one over its standard deviation. It is not trained."""

    def __init__(self, channels: int):
        self.mean = nnx.Param(jnp.zeros(channels))
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Array) -> Array:  # [B, T, C]
        return (x - self.mean[...]) * self.scale[...]


class Aligner(nnx.Module):
    """Two convolutions over time, and a dense map to the model's labels; all in float32."""

    def __init__(self, size: AlignerSize, rngs: nnx.Rngs):
        convolution = functools.partial(
            nnx.Conv,
            kernel_size=size.taps,
            padding="SAME",
            precision="highest",
            kernel_init=nnx.initializers.he_normal(),
            rngs=rngs,
        )
        self.norm = Standardise(size.channels)
        self.conv0 = convolution(size.channels, size.width)
        self.conv1 = convolution(size.width, size.width)
        self.head = nnx.Linear(
            size.width,
            size.outputs,
            precision="highest",
            kernel_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )

    def __call__(self, features: Array, frame_lengths: Array) -> Array:
        """Logits [B, T, V] float32 of the feature encoder's output [B, T, C]; frame_lengths [B] int.

        A clip's logits do not depend on what stands behind its own frames.
        """
        own = (jnp.arange(features.shape[1]) < frame_lengths[:, None])[:, :, None]
        x = self.norm(features.astype(jnp.float32))
        x = jax.nn.gelu(self.conv0(jnp.where(own, x, 0)))
        x = jax.nn.gelu(self.conv1(jnp.where(own, x, 0)))
        return self.head(x)


@functools.lru_cache(maxsize=8)
def aligner_structure(size: AlignerSize) -> tuple[nnx.GraphDef, Params]:
    """`split` of an aligner of that size, with shapes in place of its arrays."""
    return split(nnx.eval_shape(lambda: Aligner(size, nnx.Rngs(0))))


def aligner_logits(params: Params, features: Array, frame_lengths: Array) -> Array:
    """Logits [B, T, V] float32; arguments as `aligner_log_probs`."""
    return merge(aligner_structure(AlignerSize.of_params(params))[0], params)(features, frame_lengths)


def aligner_log_probs(params: Params, features: Array, frame_lengths: Array) -> Array:
    """Log-probabilities [B, T, V] float32 of the labels in each frame.

    Args:
        params: of `load_aligner`.
        features: [B, T, C], the frozen feature encoder's output.
        frame_lengths: [B] int, the valid frames of each row; what is said of others is not to be read.
    """
    return jax.nn.log_softmax(aligner_logits(params, features, frame_lengths))


def text_to_align(labels: np.ndarray, delimiter_id: int | None) -> np.ndarray:
    """The labels [L] of a text, with a blank between words also before the first word and behind the last.

    An aligner is fitted to texts of this form, so that the silence around speech belongs to no word. In a
    vocabulary without blanks between words (None), the labels as they are.
    """
    if delimiter_id is None or not len(labels):
        return labels
    said = np.flatnonzero(labels != delimiter_id)
    edge = np.full(1, delimiter_id, labels.dtype)
    return np.concatenate([edge, labels[said[0] : said[-1] + 1], edge]) if len(said) else labels


def label_times(
    frames: np.ndarray, labels: np.ndarray, delimiter_id: int | None, frame_seconds: float
) -> np.ndarray:
    """Seconds [L, 2] from the frames [L, 2] of a text's labels [L]: begin and end of each.

    The frames are each label's first one and the one after its last, on the aligner's log-probabilities. Two
    labels of a word that are next to each other meet at one moment.

    Args:
        frames: int [L, 2], from `alignment.align_labels`.
        labels: int [L], the same text.
        delimiter_id: of the blank between words; None: there is none.
        frame_seconds: from one frame to the next.
    """
    times = frames * frame_seconds + (START_OFFSET, END_OFFSET)
    said = np.flatnonzero(labels != delimiter_id)
    before, after = said[:-1], said[1:]
    meeting = frames[before, 1] == frames[after, 0]
    times[before[meeting], 1] = times[after[meeting], 0] = (
        frames[after[meeting], 0] * frame_seconds + (START_OFFSET + END_OFFSET) / 2
    )
    return np.maximum(times, 0.0)


def aligned_times(
    labels: np.ndarray, log_probs: np.ndarray, blank_id: int, delimiter_id: int | None, frame_seconds: float
) -> np.ndarray:
    """When the labels that a model recognised were said: seconds [L, 2], from the first frame.

    Args:
        labels: int [L], without CTC blanks.
        log_probs: [T, V], the aligner's of the same frames.
        blank_id: of the CTC blank.
        delimiter_id: of the blank between words; None: there is none.
        frame_seconds: from one frame to the next.
    """
    text = text_to_align(labels, delimiter_id)
    if len(text) != len(labels) and frames_needed(text) > len(log_probs):
        text = labels
    frames = align_labels(log_probs, text, blank_id).frames
    times = label_times(frames, text, delimiter_id, frame_seconds)
    said = np.flatnonzero(labels != delimiter_id)
    found = np.zeros((len(labels), 2))
    if len(said):
        first = int(np.flatnonzero(text != delimiter_id)[0])
        inner = slice(said[0], said[-1] + 1)
        found[inner] = times[first : first + said[-1] + 1 - said[0]]
        found[: said[0]] = found[said[0], 0]  # blanks at the edges, which no word has
        found[said[-1] + 1 :] = found[said[-1], 1]
    return found


# --- The file -----------------------------------------------------------------------------------------------


class Fitting(NamedTuple):
    """How an aligner was fitted; kept in its file for people."""

    alpha: float  # the share of the label priors
    steps: int
    clips: int


def encoder_checksum(params: Params) -> str:
    """A checksum of a model's feature encoder: an aligner understands only the one it was fitted on."""
    encoder = params["wavlm"]["feature_encoder"]
    crc = 0
    for path, array in sorted(flatten(encoder)):
        values = np.ascontiguousarray(array, np.float32)
        crc = zlib.crc32(values.data, zlib.crc32("/".join(path).encode(), crc))
    return f"{crc:08x}"


def save_aligner(folder: Path, aligner: Params, fitting: Fitting, *, encoder: str) -> Path:
    """Writes the aligner into a model's folder, whole or not at all; returns the file.

    Args:
        folder: of the model. transformers does not look at the file.
        aligner: its parameters.
        fitting: how it was fitted.
        encoder: `encoder_checksum` of the model.
    Raises:
        UserError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    size = AlignerSize.of_params(aligner)
    facts = {"taps": size.taps, "width": size.width, **fitting._asdict()}
    # In one entry: safetensors writes several in an order that is another each time.
    metadata = {METADATA: json.dumps({"version": VERSION, "encoder": encoder, **facts})}
    tensors = {".".join(path): np.ascontiguousarray(array, np.float32) for path, array in flatten(aligner)}
    file = folder / ALIGNER_FILE
    try:
        with replaced(file) as scratch:
            save_file(tensors, scratch, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise cannot_write(file, error) from None
    return file


def load_aligner(folder: Path, config: WavLMConfig, *, encoder: str) -> Params | None:
    """The aligner in a model's folder, as arrays of the host; None where there is none.

    Args:
        folder: of the model.
        config: the model's.
        encoder: `encoder_checksum` of the model's parameters.
    Raises:
        UserError: the file is damaged, was written by a later version, or is another model's.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / ALIGNER_FILE
    if not exists(file):
        return None
    try:
        file.open("rb").close()  # safetensors says of every such failure that there is no file
        with safe_open(file, framework="numpy") as opened:
            metadata = (opened.metadata() or {}).get(METADATA, "")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except OSError as error:
        raise cannot_read(file, error) from None
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"not a whole safetensors file ({reason(error)})", where=file, do=FIT_AGAIN) from None
    _check_metadata(file, metadata, encoder)
    size = AlignerSize.of_model(config)
    kernel = tensors.get("conv0.kernel")
    if kernel is not None and kernel.ndim == 3 and kernel.size:
        size = size._replace(taps=kernel.shape[0], width=kernel.shape[2])
    return _checked_params(file, tensors, size)


def _check_metadata(file: Path, metadata: str, encoder: str) -> None:
    """UserError for another version, and for an aligner that was fitted on another feature encoder."""
    try:
        said = parse_json(metadata)
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    if (version := said.get("version")) != VERSION:
        expected = f"{VERSION}, that of an aligner"
        raise UserError(where=file, field="version", found=version, expected=expected, do=FIT_AGAIN)
    if (found := said.get("encoder")) != encoder:
        raise UserError(
            "was fitted on the feature encoder of another model",
            where=file,
            found=found,
            expected=f"{encoder!r}, this model's checksum",
            do=FIT_AGAIN,
        )


def _checked_params(file: Path, tensors: dict[str, np.ndarray], size: AlignerSize) -> Params:
    """The tensors as a tree; UserError where they are not those of an aligner of that size, or not finite."""
    expected = {".".join(path): leaf.shape for path, leaf in flatten(aligner_structure(size)[1])}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        differing = sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        )
        raise UserError(
            "does not fit the model, which has "
            f"{size.channels} channels and {size.outputs} outputs: {differing[0]}",
            where=file,
            found=list(found[differing[0]]) if differing[0] in found else None,
            expected=str(list(expected[differing[0]])) if differing[0] in expected else "no such tensor",
            do=FIT_AGAIN,
        )
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise UserError(
                f"{name} holds other values than finite float32", where=file, field=name, do=FIT_AGAIN
            )
    return traverse_util.unflatten_dict({tuple(name.split(".")): tensor for name, tensor in tensors.items()})

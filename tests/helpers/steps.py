"""What the tests of the training step share: batches, a small model, steps that keep their gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import WavLMForCTC, structure
from flax_wavlm.models.parameters import partition, split
from flax_wavlm.recognition.ctc_loss import loss_of_ctc
from flax_wavlm.training.state import TrainState, init_state
from flax_wavlm.training.step import make_train_step
from helpers.reference import NO_REGULARISATION, pad

DEEP = 1e-4  # relative, through a whole model
SAME = 1e-5  # relative, between two ways of computing the same
BLANK = 29


def make_batch(clips: list[np.ndarray], *, seed: int = 0, samples: int = 0) -> dict[str, np.ndarray]:
    """The clips with random labels that fit, repeats among them."""
    rng = np.random.default_rng(seed)
    rows, lengths = pad(clips, samples)
    label_lengths = rng.integers(5, 25, len(clips)).astype(np.int32)
    labels = rng.integers(0, BLANK, (len(clips), 24)).astype(np.int32)
    labels[:, 1] = labels[:, 0]
    return {
        "samples": rows,
        "mean": np.zeros(len(clips), np.float32),
        "scale": np.ones(len(clips), np.float32),
        "lengths": lengths,
        "labels": labels,
        "label_lengths": label_lengths,
        "valid": np.ones(len(clips), bool),
    }


def keep_gradient() -> optax.GradientTransformation:
    """An optimizer whose state is the last gradient, and that changes nothing."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, _, __: (jax.tree.map(jnp.zeros_like, grads), grads),
    )


@functools.cache
def gradient_step(config: WavLMConfig, **changes: Any):
    """The step with `keep_gradient` jitted for a single device, its input kept."""
    settings = {"reduction": "mean", "seed": 0} | changes
    loss = loss_of_ctc(BLANK, settings.pop("reduction"))
    step = make_train_step(structure(config)[0], keep_gradient(), loss, **settings)
    return jax.jit(step)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(a) - np.ravel(b)) / np.linalg.norm(np.ravel(b)))


def assert_trees_near(ours: Any, expected: Any, tolerance: float) -> None:
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-12, jax.tree_util.keystr(path)


SMALL = WavLMConfig(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_dim=(16, 16, 16),
    conv_kernel=(10, 4, 4),
    conv_stride=(5, 4, 4),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    num_buckets=32,
    max_bucket_distance=40,
    hidden_dropout=0.1,
    attention_dropout=0.1,
    layerdrop=0.2,
    mask_time_prob=0.2,
    mask_feature_prob=0.1,
    pad_token_id=BLANK,
)
QUIET = SMALL.replace(**NO_REGULARISATION)
ROWS, SAMPLES = 16, 4000


def small_batch(rows: int = ROWS, *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SAMPLES * 3 // 4, SAMPLES, rows)
    return make_batch([rng.normal(size=n) for n in lengths], seed=seed, samples=SAMPLES)


@functools.cache
def small_params() -> dict[str, Any]:
    """On the host: a step that takes its state's buffers takes copies of them."""
    params = jax.jit(lambda: split(WavLMForCTC(SMALL, nnx.Rngs(0)))[1])()
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (np.asarray(leaf) + 0.05 * rng.normal(size=leaf.shape)).astype(np.float32), params
    )


def small_state(optimizer: optax.GradientTransformation | None = None, *, freeze: bool = False) -> TrainState:
    trained, frozen = partition(jax.tree.map(jnp.array, small_params()), freeze_feature_encoder=freeze)
    return init_state(trained, frozen, optimizer or keep_gradient())


def assert_same_gradients(ours: Any, expected: Any) -> None:
    """1e-5 of the whole, and 1e-4 of each array: some are small differences of large sums."""
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (ours, expected)]
    assert relative(*flat) <= SAME
    assert_trees_near(ours, expected, DEEP)

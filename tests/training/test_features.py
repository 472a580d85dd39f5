"""Training on kept features is training on the audio."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.small_run import small_run_with

from flax_wavlm.data.batches import Batches, Features
from flax_wavlm.data.clips import Clip
from flax_wavlm.data.preprocessor import Preprocessor, input_values
from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import split
from flax_wavlm.models.wavlm import FeatureEncoder
from flax_wavlm.parallel import sharding
from flax_wavlm.training import features as features_module
from flax_wavlm.training.features import cached_features
from flax_wavlm.training.step import jit_encode

CONFIG = WavLMConfig(conv_dim=(16,) * 7, feat_extract_norm="layer", do_stable_layer_norm=True)
DEVICES = jax.device_count()


def tiny_batches(clips: int = 3 * DEVICES - 1) -> Batches:
    """Of two shapes, the last batch incomplete."""
    random = np.random.default_rng(0)
    made = [
        Clip(str(i), random.integers(-9000, 9000, 1500 + 100 * i, np.int16), np.ones(3, np.int32), "", "")
        for i in range(clips)
    ]
    longest = len(made[-1].samples) + 320
    return Batches(made, DEVICES, [2560, longest - longest % 320], steps=100, seed=0, do_normalize=True)


def encoder(seed: int = 0) -> dict[str, Any]:
    return split(FeatureEncoder(CONFIG, nnx.Rngs(seed)))[1]


def kept(folder: Path, batches: Batches, seed: int = 0, config: WavLMConfig = CONFIG) -> list[np.ndarray]:
    mesh = sharding.make_mesh()
    frozen = {"wavlm": {"feature_encoder": encoder(seed)}}
    return cached_features(config, jit_encode(config, mesh), frozen, batches, mesh, folder)


def test_features_are_those_of_each_clip(tmp_path: Path) -> None:
    batches = tiny_batches()
    arrays = kept(tmp_path, batches)
    graphdef, _ = nnx.split(FeatureEncoder(CONFIG, nnx.Rngs(0)))
    preprocess = Preprocessor(do_normalize=True, return_attention_mask=True)
    encode = jax.jit(lambda params, x: nnx.merge(graphdef, nnx.State(params))(x))
    samples = batches.clips[1].samples
    alone = np.asarray(encode(encoder(), preprocess(samples)[None])[0])
    np.testing.assert_allclose(arrays[1], alone, atol=1e-5, strict=True)
    assert [len(array) for array in arrays] == [CONFIG.frame_count(len(c.samples)) for c in batches.clips]


def test_batches_hold_the_features_bit_for_bit(tmp_path: Path) -> None:
    plain, batches = tiny_batches(), tiny_batches()
    batches.features = Features(kept(tmp_path, batches), CONFIG.frame_count)
    graphdef, _ = nnx.split(FeatureEncoder(CONFIG, nnx.Rngs(0)))
    mesh = sharding.make_mesh()

    @jax.jit
    def encode(params: Any, batch: Any) -> jax.Array:
        return nnx.merge(graphdef, nnx.State(params))(input_values(batch))

    for step in range(batches.steps_per_epoch):
        put = sharding.put_batch(mesh, plain[step])
        expected = np.asarray(encode(encoder(), put))
        batch = batches[step]
        assert batch.keys() == plain[step].keys() - {"samples", "mean", "scale"} | {"features"}
        assert batch["features"].shape == expected.shape
        for row in range(DEVICES):
            frames = CONFIG.frame_count(int(batch["lengths"][row])) if batch["valid"][row] else 0
            np.testing.assert_array_equal(batch["features"][row, :frames], expected[row, :frames])
            assert not batch["features"][row, frames:].any()


def test_features_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept(tmp_path, tiny_batches())

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(features_module, "eval_batches", never)
    for one, other in zip(first, kept(tmp_path, tiny_batches()), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    for change in (
        lambda: kept(tmp_path, tiny_batches(), seed=1),
        lambda: kept(tmp_path, tiny_batches(3 * DEVICES)),
        lambda: kept(tmp_path, tiny_batches(), config=CONFIG.replace(dtype="bfloat16")),
    ):
        with pytest.raises(AssertionError, match="made again"):
            change()


def test_features_that_change_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cache_features is True for a group-norm model .*[Ss]et it to False"
    ):
        kept(tmp_path, tiny_batches(), config=CONFIG.replace(feat_extract_norm="group"))
    config = small_run_with(tmp_path, "run", data_cache_features=True, model_freeze_feature_encoder=False)
    with pytest.raises(UserError, match=r"data.cache_features is True, expected False where .*freeze"):
        config.check()
    config = small_run_with(tmp_path, "run", data_cache_features=True, data_cache="none")
    with pytest.raises(UserError, match=r"data.cache is 'none', expected a folder"):
        config.check()

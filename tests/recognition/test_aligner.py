"""The aligner: what it sees, and its file beside a model."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx
from helpers.errors import refused
from helpers.reference import Reference
from safetensors.numpy import load_file, save_file

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.parameters import Params, split
from flax_wavlm.porting.load import load_model
from flax_wavlm.recognition.aligner import (
    ALIGNER_FILE,
    END_OFFSET,
    START_OFFSET,
    Aligner,
    AlignerSize,
    Fitting,
    aligner_log_probs,
    encoder_checksum,
    label_times,
    load_aligner,
    save_aligner,
    text_to_align,
)

CONFIG = WavLMConfig(conv_dim=(6,) * 7, vocab_size=9)
FITTING = Fitting(alpha=0.8, steps=10, clips=3)
ENCODER = "0badcafe"
log_probs = jax.jit(aligner_log_probs)


def new_aligner(**changes: int) -> Params:
    return split(Aligner(AlignerSize(6, 9)._replace(**changes), nnx.Rngs(0)))[1]


def features(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_log_probs_of_each_frame() -> None:
    got = log_probs(new_aligner(), features(2, 11, 6), jnp.array([11, 4]))
    assert got.shape == (2, 11, 9)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(got).sum(-1), 1, rtol=1e-6)


def test_padding_changes_nothing() -> None:
    clip = features(1, 7, 6)
    alone = log_probs(new_aligner(), clip, jnp.array([7]))
    padded = np.pad(clip, ((0, 0), (0, 4), (0, 0)), constant_values=50.0)
    np.testing.assert_allclose(
        log_probs(new_aligner(), padded, jnp.array([7]))[:, :7], alone, rtol=1e-5, atol=1e-6
    )


def test_a_frame_hears_nine() -> None:
    clip = features(1, 21, 6)
    changed = clip.copy()
    changed[0, 10] += 1
    before, after = (log_probs(new_aligner(), x, jnp.array([21])) for x in (clip, changed))
    assert np.flatnonzero(np.any(before != after, axis=-1)[0]).tolist() == list(range(6, 15))


def test_features_of_a_model_in_bfloat16_are_worked_on_in_float32() -> None:
    rounded = jnp.asarray(features(1, 5, 6), jnp.bfloat16)
    expected = log_probs(new_aligner(), rounded.astype(jnp.float32), jnp.array([5]))
    np.testing.assert_array_equal(log_probs(new_aligner(), rounded, jnp.array([5])), expected)


def test_a_text_to_align_has_blanks_around_it() -> None:
    text = np.array([3, 4, 9, 5], np.int32)
    assert text_to_align(text, 9).tolist() == [9, 3, 4, 9, 5, 9]
    assert text_to_align(text, 9).dtype == np.int32
    assert text_to_align(np.array([9, 9, 3, 9]), 9).tolist() == [9, 3, 9]
    assert text_to_align(text, None).tolist() == text.tolist()
    for nothing in ([], [9, 9]):
        assert text_to_align(np.array(nothing, int), 9).tolist() == nothing


def test_times_of_labels() -> None:
    frames = np.array([[0, 2], [2, 3], [3, 4], [4, 6], [7, 9]])
    times = label_times(frames, np.array([1, 2, 9, 3, 4]), 9, 0.02)
    middle = (START_OFFSET + END_OFFSET) / 2
    assert times[0].tolist() == [0.0, 0.04 + middle]  # not before the recording
    np.testing.assert_allclose(times[1], [0.04 + middle, 0.06 + END_OFFSET])
    np.testing.assert_allclose(times[3], [0.08 + START_OFFSET, 0.12 + END_OFFSET])
    np.testing.assert_allclose(times[4], [0.14 + START_OFFSET, 0.18 + END_OFFSET])
    assert (np.diff(times) > 0).all()
    assert label_times(frames[:0], np.zeros(0, int), 9, 0.02).shape == (0, 2)


# --- The file -----------------------------------------------------------------------------------------------


def test_of_another_size(tmp_path: Path) -> None:
    """A later version may fit other sizes."""
    save_aligner(tmp_path, new_aligner(taps=3, width=7), FITTING, encoder=ENCODER)
    loaded = load_aligner(tmp_path, CONFIG, encoder=ENCODER)
    assert loaded is not None
    assert AlignerSize.of_params(loaded) == (6, 9, 3, 7)


def test_written_and_read(tmp_path: Path) -> None:
    assert load_aligner(tmp_path, CONFIG, encoder=ENCODER) is None
    aligner = new_aligner(taps=5)
    assert save_aligner(tmp_path, aligner, FITTING, encoder=ENCODER) == tmp_path / ALIGNER_FILE
    loaded = load_aligner(tmp_path, CONFIG, encoder=ENCODER)
    assert loaded is not None
    jax.tree.map(np.testing.assert_array_equal, loaded, aligner)
    first = (tmp_path / ALIGNER_FILE).read_bytes()
    save_aligner(tmp_path, aligner, FITTING, encoder=ENCODER)
    assert (tmp_path / ALIGNER_FILE).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [ALIGNER_FILE]


def test_of_another_model(tmp_path: Path) -> None:
    save_aligner(tmp_path, new_aligner(), FITTING, encoder=ENCODER)
    with refused("feature encoder of another", where=ALIGNER_FILE, found=ENCODER, do="fit_aligner"):
        load_aligner(tmp_path, CONFIG, encoder="00000000")
    for changes in ({"vocab_size": 10}, {"conv_dim": (6, 6, 6, 6, 6, 6, 7)}):
        with refused("does not fit the model", where=ALIGNER_FILE, do="fit_aligner"):
            load_aligner(tmp_path, dataclasses.replace(CONFIG, **changes), encoder=ENCODER)


def test_damaged(tmp_path: Path) -> None:
    file = save_aligner(tmp_path, new_aligner(), FITTING, encoder=ENCODER)
    whole = file.read_bytes()
    for content in (b"", b"no such format", whole[:-9], whole[:60]):
        file.write_bytes(content)
        with refused("not a whole safetensors file", where=ALIGNER_FILE, do="fit_aligner"):
            load_aligner(tmp_path, CONFIG, encoder=ENCODER)
    file.write_bytes(whole)
    tensors = load_file(file)

    def load(changes: dict[str, np.ndarray], metadata: str = "") -> None:
        metadata = metadata or json.dumps({"version": 1, "encoder": ENCODER})
        save_file(tensors | changes, file, metadata={"flax_wavlm.aligner": metadata})
        load_aligner(tmp_path, CONFIG, encoder=ENCODER)

    load({})
    with refused(where=ALIGNER_FILE, field="version", found=2):
        load({}, '{"version": 2}')
    for metadata in ("[" * 5000, "[]", '{"a": "\\ud800"}'):
        with refused(where=ALIGNER_FILE, field="version", found=None):
            load({}, metadata)
    with refused("does not fit", where=ALIGNER_FILE, found=[1], expected="no such tensor"):
        load({"more": np.zeros(1, np.float32)})
    with refused("finite", where=ALIGNER_FILE, field="head.bias"):
        load({"head.bias": np.full(9, np.nan, np.float32)})
    with refused("finite", where=ALIGNER_FILE, field="head.bias"):
        load({"head.bias": np.zeros(9, np.int32)})


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with refused("cannot be written", where=ALIGNER_FILE):
        save_aligner(tmp_path / "nowhere", new_aligner(), FITTING, encoder=ENCODER)


def test_transformers_loads_the_folder(large_reference: Reference) -> None:
    folder, config = large_reference.folder, large_reference.config
    params = split(load_model(folder))[1]
    aligner = split(Aligner(AlignerSize.of_model(config), nnx.Rngs(0)))[1]
    encoder = encoder_checksum(params)
    file = save_aligner(folder, aligner, FITTING, encoder=encoder)
    try:
        assert load_aligner(folder, config, encoder=encoder) is not None
        _, info = transformers.WavLMForCTC.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        again = split(load_model(folder))[1]
        jax.tree.map(np.testing.assert_array_equal, again, params)
    finally:
        file.unlink()  # other tests have the same folder


def test_checksum_is_of_the_feature_encoder() -> None:
    encoder = {"conv0": {"kernel": np.ones((2, 3), np.float32)}}
    params = {"wavlm": {"feature_encoder": encoder}, "head": {"bias": np.zeros(3)}}
    same = {"wavlm": {"feature_encoder": encoder}, "head": {"bias": np.ones(3)}}
    other = {"wavlm": {"feature_encoder": {"conv0": {"kernel": np.zeros((2, 3), np.float32)}}}}
    assert encoder_checksum(params) == encoder_checksum(same) != encoder_checksum(other)

"""The preprocessor: parity with transformers' feature extractor, and files that describe another input."""

import numpy as np
import pytest
from helpers.errors import Parts
from transformers import Wav2Vec2FeatureExtractor

from flax_wavlm.data.preprocessor import Preprocessor
from flax_wavlm.errors import UserError


@pytest.mark.parametrize("do_normalize", [True, False])
def test_preprocessor_equals_transformers_on_unequal_lengths(do_normalize):
    rng = np.random.default_rng(0)
    clips = [(0.1 * rng.standard_normal(n) + 0.03).astype(np.float32) for n in (400, 16_000, 9_001, 31_999)]
    clips.append(np.zeros(500, np.float32))
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)
    theirs = extractor(clips, sampling_rate=16_000, padding=True)["input_values"]
    preprocessor = Preprocessor(do_normalize, return_attention_mask=True)
    for clip, row in zip(clips, theirs, strict=True):
        ours = preprocessor(clip)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, row[: len(clip)], atol=1e-6, rtol=0)
        assert not row[len(clip) :].any()
    assert bool(abs(preprocessor(clips[1]).std() - 1) < 1e-3) is do_normalize


def test_int16_is_taken_as_fractions_of_full_scale():
    samples = np.array([-32768, 0, 16384, 32767], np.int16)
    plain = Preprocessor(do_normalize=False, return_attention_mask=False)(samples)
    np.testing.assert_array_equal(plain, np.array([-1, 0, 0.5, 32767 / 32768], np.float32))
    normalising = Preprocessor(do_normalize=True, return_attention_mask=True)
    # A quiet clip, where the 1e-7 would show a wrong scale.
    quiet = np.array([3, -2, 5, 0, -4], np.int16)
    np.testing.assert_array_equal(normalising(quiet), normalising(quiet / np.float32(32768)))
    assert normalising(quiet).std() < 0.5


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (None, Parts("cannot be read")),
        ("{", Parts("not JSON")),
        ('{"do_normalize": "yes"}', Parts(field="do_normalize", found="yes", expected="true or false")),
        ('{"sampling_rate": 8000}', Parts(field="sampling_rate", found=8000, expected="16000")),
        (
            '{"feature_extractor_type": "WhisperFeatureExtractor"}',
            Parts(field="feature_extractor_type", expected="'Wav2Vec2FeatureExtractor'"),
        ),
        ('{"feature_size": 80}', Parts(field="feature_size", found=80, expected="1")),
    ],
)
def test_unusable_preprocessors(tmp_path, fields, parts):
    if fields is not None:
        (tmp_path / "preprocessor_config.json").write_text(fields)
    with pytest.raises(UserError) as error:
        Preprocessor.from_pretrained(tmp_path)
    parts.check(error.value)
    assert error.value.where == str(tmp_path / "preprocessor_config.json")


def test_preprocessor_defaults_are_transformers(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    theirs = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    assert Preprocessor.from_pretrained(tmp_path) == Preprocessor(
        theirs.do_normalize, theirs.return_attention_mask
    )

"""Which attention a call takes, what is refused, and what a run says of it."""

import jax
import pytest

from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.wavlm import attention_spec
from flax_wavlm.ops.attention.choice import choose, describe
from flax_wavlm.ops.switch import kernels

GPU = {"platform": "gpu", "dtype": "bfloat16"}
TPU = {"platform": "tpu", "dtype": "bfloat16", "frames": 399}


@pytest.mark.parametrize(
    ("requested", "circumstances", "expected", "because"),
    [
        ("auto", {}, "xla", "CPU"),
        ("auto", {"dropout": 0.1}, "xla", "CPU"),
        ("auto", GPU, "pallas", "linear"),
        ("auto", GPU | {"dropout": 0.1}, "pallas", "attention dropout inside"),
        ("auto", GPU | {"dtype": "float32"}, "xla", "'float32'"),
        ("auto", GPU | {"dtype": "float32", "dropout": 0.1}, "xla", "'float32'"),
        ("auto", GPU | {"head_size": 20}, "xla", "powers of 2"),
        ("auto", GPU | {"head_size": 80}, "cudnn", "bfloat16"),
        ("auto", GPU | {"head_size": 80, "dropout": 0.1}, "xla", "powers of 2"),
        ("auto", GPU | {"frames": 1500}, "pallas", "linear"),
        ("auto", GPU | {"triton": False}, "cudnn", "bfloat16"),
        ("auto", GPU | {"triton": False, "dropout": 0.1}, "xla", "no Pallas on Triton"),
        ("auto", TPU, "xla", "has not run on one"),
        ("auto", TPU | {"dtype": "float32"}, "xla", "has not run on one"),
        ("auto", TPU | {"frames": 199}, "xla", "has not run on one"),
        ("auto", TPU | {"frames": 3073}, "xla", "has not run on one"),
        ("auto", TPU | {"dropout": 0.1}, "xla", "has not run on one"),
        ("pallas", TPU, "pallas", "configured"),
        ("auto", {"platform": "other"}, "xla", "no fused kernel for other"),
        ("xla", {"dropout": 0.1}, "xla", "configured"),
        ("xla", GPU, "xla", "configured"),
        ("cudnn", GPU, "cudnn", "configured"),
        ("pallas", {}, "pallas", "slow"),
        ("pallas", GPU | {"dtype": "float32"}, "pallas", "configured"),
        ("pallas", GPU | {"dtype": "float32", "dropout": 0.1}, "pallas", "configured"),
        ("pallas", TPU | {"frames": 10}, "pallas", "configured"),
    ],
)
def test_choice(requested: str, circumstances: dict, expected: str, because: str) -> None:
    usual = {"platform": "cpu", "dtype": "float32", "frames": 199, "head_size": 64, "dropout": 0.0}
    name, reason = choose(requested, **usual | circumstances)
    assert name == expected
    assert because in reason
    assert "set " not in reason or requested == "auto"


@pytest.mark.parametrize(
    ("requested", "circumstances", "parts"),
    [
        ("cudnn", {}, ("GPU", "cpu", "'auto'")),
        ("cudnn", GPU | {"dtype": "float32"}, ("bfloat16", "model.dtype", "'float32'")),
        ("cudnn", GPU | {"head_size": 20}, ("multiples of 8", "20")),
        ("cudnn", GPU | {"dropout": 0.1}, ("0.1", "model.overrides.attention_dropout = 0")),
        ("pallas", {"dropout": 0.25}, ("0.25", "model.overrides.attention_dropout = 0")),
        ("pallas", TPU | {"dropout": 0.1}, ("0.1", "model.overrides.attention_dropout = 0")),
        ("pallas", TPU | {"frames": 4000}, ("3072", "4000")),
        ("pallas", GPU | {"head_size": 80}, ("powers of 2", "80")),
        ("pallas", GPU | {"triton": False}, ("no Pallas on Triton", "jax 0.10 to 0.12")),
        ("pallas", {"platform": "other"}, ("GPUs and TPUs", "other")),
    ],
)
def test_what_cannot_run_is_refused(requested: str, circumstances: dict, parts: tuple[str, ...]) -> None:
    usual = {"platform": "cpu", "dtype": "float32", "frames": 199, "head_size": 64, "dropout": 0.0}
    with pytest.raises(UserError) as raised:
        choose(requested, **usual | circumstances)
    for part in (f"model.attention is {requested!r}", *parts):
        assert part in str(raised.value)


def test_description() -> None:
    assert describe(attention_spec(WavLMConfig()), [99, 199]) == (
        "attention: xla in training (on a CPU the fused kernels do not run); "
        "xla in evaluation (on a CPU the fused kernels do not run)"
    )
    fused = WavLMConfig(attention="pallas", attention_dropout=0.0)
    assert "pallas in training (as configured" in describe(attention_spec(fused), [99])
    with pytest.raises(UserError, match=r"attention dropout is 0\.1"):
        describe(attention_spec(WavLMConfig(attention="pallas")), [99])
    with pytest.raises(UserError, match="cuDNN needs an NVIDIA GPU"):
        describe(attention_spec(WavLMConfig(attention="cudnn", attention_dropout=0.0)), [99])


def test_description_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    line = describe(attention_spec(WavLMConfig(dtype="bfloat16")), [1499, 99, 749])
    fused = "(fused on a GPU, attention dropout inside, memory linear in the frames)"
    assert line == f"attention: pallas in training {fused}; pallas in evaluation {fused}"
    # Heads of 80, which our kernels do not take: cuDNN has no dropout.
    line = describe(attention_spec(WavLMConfig(dtype="bfloat16", hidden_size=960)), [99])
    assert "xla in training (on a GPU the kernel's head sizes are powers of 2" in line
    assert "cudnn in evaluation (" in line


def test_description_where_it_depends_on_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for TPUs, asked for by name, has a longest clip."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    line = describe(attention_spec(WavLMConfig(dtype="bfloat16")), [1499, 99, 749])
    by_name = "(the kernel for TPUs has not run on one yet; model.attention = 'pallas' takes it)"
    assert line == f"attention: xla in training {by_name}; xla in evaluation {by_name}"
    spec = attention_spec(WavLMConfig(dtype="bfloat16", attention="pallas", attention_dropout=0.0))
    with pytest.raises(UserError, match="up to 3072 frames and these are 3073"):
        describe(spec, [99, 3073])


def test_references_take_no_other_implementation() -> None:
    spec = attention_spec(WavLMConfig(attention_dropout=0.0))
    with kernels("reference"):
        assert "reference in training (kernels are turned off)" in describe(spec, [99])
        with pytest.raises(UserError) as raised:
            describe(spec._replace(implementation="pallas"), [99])
    assert raised.value.field == "model.attention"
    assert "model.kernels = 'auto'" in raised.value.do

"""What a run is: every field that a config file in configs/ may set and the command line may override."""

# Without `from __future__ import annotations`: ml_collections reads the fields' types at run time.
import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig

CORPORA = ("timit", "timit_sample", "manifest", "hub", "synthetic")


@dataclass
class Overrides:
    """Regularisation in place of the checkpoint's; None keeps the checkpoint's."""

    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    feat_proj_dropout: float | None = None
    final_dropout: float | None = None
    layerdrop: float | None = None
    apply_spec_augment: bool | None = None
    mask_time_prob: float | None = None
    mask_time_length: int | None = None
    mask_time_min_masks: int | None = None
    mask_feature_prob: float | None = None
    mask_feature_length: int | None = None
    mask_feature_min_masks: int | None = None


@dataclass
class ModelSettings:
    """`checkpoint`: folder, file or hub id; empty: random weights of the architecture `config`."""

    checkpoint: str = ""
    config: WavLMConfig | None = None
    fresh_head: bool = False  # take neither CTC head nor tokenizer from the checkpoint
    dtype: str = "float32"  # or "bfloat16"; parameters and their updates are float32 in any case
    matmul_precision: str = "highest"  # of float32 products; "default" lets TPUs and GPUs round
    freeze_feature_encoder: bool = True
    remat: str = "none"  # "full" or "dots": less memory, more time
    unroll: int = 0  # encoder layers in a round of their loop; 0: all on a GPU, one elsewhere
    attention: str = "auto"  # or "xla", "cudnn", "pallas", which may need attention_dropout = 0 below
    overrides: Overrides = field(default_factory=Overrides)


@dataclass
class SyntheticSettings:
    """What `data.corpus = "synthetic"` speaks into `data.path`, once."""

    train_clips: int = 600
    test_clips: int = 100
    seed: int = 0


@dataclass
class DataSettings:
    """Where the speech is. `path`: a folder, or the id of a data set on the hub."""

    corpus: str = ""
    path: str = ""
    train_max_seconds: float = 0.0  # use training clips shorter than this only; 0: all
    held_out_speakers: tuple[str, ...] = ()  # timit_sample: the test split
    audio_column: str = "audio"  # hub
    text_column: str = "text"
    hub_config: str = ""
    tokenizer: str = ""  # folder or hub id; empty: the checkpoint's, else one from the corpus's text
    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)
    buckets: int = 6  # padded lengths that training batches may have; each compiles once
    threads: int = 2  # that make batches
    prefetch: int = 8  # batches made ahead
    cache: str = ""  # folder for decoded audio; empty: cache/ beside the workdir; "none": decode every time
    cache_features: bool = False  # also keep there what the frozen feature encoder makes of training clips


@dataclass
class LoopSettings:
    """The run has `steps`, or where that is 0 `epochs`. A checkpoint is saved at every evaluation."""

    batch_size: int = 32
    accumulation: int = 1  # parts that a batch is worked through in
    steps: int = 0
    epochs: int = 0
    eval_batch_size: int = 8
    eval_every: int = 500
    log_every: int = 50
    save_every: int = 0  # further checkpoints between evaluations; 0: none
    ctc_loss_reduction: str = "mean"  # "mean" or "sum", as torch.nn.functional.ctc_loss's
    skip_nonfinite: int = 0  # updates that may be left out because loss or gradient is not finite


@dataclass
class OptimSettings:
    """AdamW; the learning rate rises linearly from 0 and falls linearly to 0."""

    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    weight_decay: float = 0.005
    clip_norm: float = 1.0  # 0: no clipping
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass
class MeshSettings:
    """Devices along each axis: -1 for `data` takes what `fsdp` leaves."""

    data: int = -1
    fsdp: int = 1


@dataclass
class TrainConfig:
    """A run. `name` is for people and for the default workdir."""

    name: str = ""
    seed: int = 42
    workdir: str = ""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: LoopSettings = field(default_factory=LoopSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)

    def check(self) -> None:
        """Raises a UserError for the first field that cannot be what it is, before anything is read."""

        def require(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise UserError(f"--config.{name} is {repr(lookup(self, name))[:200]}, expected {expected}")

        _check_types(self)
        for name, value in flatten(self).items():
            if isinstance(value, float):
                require(math.isfinite(value), name, "a finite number")
            elif isinstance(value, int):
                require(abs(value) < 2**31, name, "a number below 2^31")
        near = difflib.get_close_matches(self.data.corpus, CORPORA, n=1)
        require(
            self.data.corpus in CORPORA,
            "data.corpus",
            f"one of {', '.join(CORPORA)}" + (f"; did you mean {near[0]!r}?" if near else ""),
        )
        require(bool(self.workdir), "workdir", "a folder to write to (--workdir)")
        require(self.seed >= 0, "seed", "0 or more")
        require(
            bool(self.model.checkpoint) or self.model.config is not None,
            "model.checkpoint",
            "a checkpoint, or else a model.config and no checkpoint",
        )
        for name in ("batch_size", "eval_batch_size", "accumulation", "eval_every", "log_every"):
            require(getattr(self.train, name) >= 1, f"train.{name}", "1 or more")
        require(self.train.steps >= 0, "train.steps", "0 or more")
        for name in ("save_every", "skip_nonfinite"):
            require(getattr(self.train, name) >= 0, f"train.{name}", "0 or more")
        require(
            self.train.steps > 0 or self.train.epochs > 0,
            "train.steps",
            f"above 0, or else train.epochs above 0, which is {self.train.epochs}",
        )
        require(
            self.train.ctc_loss_reduction in ("mean", "sum"), "train.ctc_loss_reduction", "'mean' or 'sum'"
        )
        for name in ("buckets", "threads", "prefetch"):
            require(getattr(self.data, name) >= 1, f"data.{name}", "1 or more")
        require(
            self.model.freeze_feature_encoder or not self.data.cache_features,
            "data.cache_features",
            "False where model.freeze_feature_encoder is: an encoder that is trained changes with every step",
        )
        require(
            self.data.cache != "none" or not self.data.cache_features,
            "data.cache",
            "a folder, or nothing for the default one, where data.cache_features is True",
        )
        require(self.data.train_max_seconds >= 0, "data.train_max_seconds", "0 (no limit) or more")
        require(self.optim.learning_rate > 0, "optim.learning_rate", "above 0")
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            require(getattr(self.optim, name) >= 0, f"optim.{name}", "0 or more")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self.optim, name) < 1, f"optim.{name}", "at least 0 and below 1")
        require(self.optim.eps > 0, "optim.eps", "above 0")

    def model_overrides(self) -> dict[str, Any]:
        """The fields of WavLMConfig that this run sets."""
        chosen = {k: v for k, v in dataclasses.asdict(self.model.overrides).items() if v is not None}
        how = ("dtype", "matmul_precision", "remat", "unroll", "attention")
        return chosen | {name: getattr(self.model, name) for name in how}

    def cache_folder(self) -> Path | None:
        """Where decoded audio is kept between runs: by default beside the workdir, for all runs there."""
        if self.data.cache == "none":
            return None
        return Path(self.data.cache) if self.data.cache else Path(self.workdir).parent / "cache"

    def to_dict(self) -> dict[str, Any]:
        """Nested, for config.json."""
        return dataclasses.asdict(self)


def _check_types(config: Any, prefix: str = "") -> None:
    """UserError for a field that there is not, or a value of another type: a config file can set anything."""
    names = [part.name for part in dataclasses.fields(config)]
    for name in vars(config):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise UserError(f"--config.{prefix}{name}: there is no such field{hint}")
    for part in dataclasses.fields(config):
        name, value, wanted = f"{prefix}{part.name}", getattr(config, part.name), part.type
        allowed = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
        classes = [get_origin(kind) or kind for kind in allowed]
        if type(value) not in classes and not (type(value) is int and float in classes):  # a bool is no int
            spelled = wanted.__name__ if isinstance(wanted, type) else wanted
            raise UserError(f"--config.{name} is {repr(value)[:200]}, expected {spelled}")
        if dataclasses.is_dataclass(value) and not isinstance(value, WavLMConfig):  # that checks itself
            _check_types(value, f"{name}.")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name to value, for a config or for what `to_dict` gave."""
    if not isinstance(config, dict):
        config = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) or dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def lookup(config: Any, name: str) -> Any:
    """The value under a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def field_names() -> list[str]:
    """Every dotted name that the command line may set."""
    return sorted(flatten(TrainConfig()))

"""The settings of a run: every field that a recipe in configs/ may set and the command line may override.

Each field stands on one line with its type, its default and a comment: `train_flax.py --help` prints these
lines. This module imports no jax, so that a wrong flag is refused at once.
"""

# No `from __future__ import annotations` here: ml_collections reads the fields' types at run time.
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from flax_wavlm.data.corpora.load import corpora_in
from flax_wavlm.data.sampling import CHANNELS
from flax_wavlm.data.text import TextRule
from flax_wavlm.errors import UserError, did_you_mean
from flax_wavlm.files import read_json_object
from flax_wavlm.models.compute import Compute
from flax_wavlm.models.config import WavLMConfig


@dataclass
class Overrides:
    """Regularisation in place of the checkpoint's. None keeps the checkpoint's own value."""

    hidden_dropout: float | None = None  # after attention, feed-forward and the encoder's input
    attention_dropout: float | None = None  # of attention weights
    activation_dropout: float | None = None  # inside the feed-forward layers
    feat_proj_dropout: float | None = None  # after the projection of the convolutional features
    final_dropout: float | None = None  # before the head
    layerdrop: float | None = None  # probability of leaving out a whole layer
    apply_spec_augment: bool | None = None  # whether SpecAugment masks anything
    mask_time_prob: float | None = None  # share of the frames that time masks cover
    mask_time_length: int | None = None  # frames in a time mask
    mask_time_min_masks: int | None = None  # time masks that a clip gets at least
    mask_feature_prob: float | None = None  # share of the features that feature masks cover
    mask_feature_length: int | None = None  # features in a feature mask
    mask_feature_min_masks: int | None = None  # feature masks that a clip gets at least


@dataclass
class ModelSettings:
    """Which model, and how it is computed."""

    checkpoint: str = ""  # pretrained weights: folder, file or hub id; empty: random weights of `config`
    config: WavLMConfig | None = None  # the architecture where there is no checkpoint; recipes set it
    fresh_head: bool = False  # take neither CTC head nor tokenizer from the checkpoint
    dtype: str = Compute.dtype  # or "bfloat16"; parameters and their updates are float32 in any case
    matmul_precision: str = Compute.matmul_precision  # of float32 products; "default" lets GPUs round
    freeze_feature_encoder: bool = True  # do not train the convolutions
    remat: str = Compute.remat  # "full" or "dots": less memory, more time
    unroll: int = Compute.unroll  # encoder layers in a round of their loop; 0: all on a GPU, one elsewhere
    attention: str = Compute.attention  # or "xla", "cudnn", "pallas", which may need attention_dropout = 0
    kernels: str = Compute.kernels  # "reference": plain jnp with automatic gradients everywhere, to debug
    overrides: Overrides = field(default_factory=Overrides)  # of the checkpoint's regularisation


@dataclass
class SyntheticSettings:
    """The corpus that `data.corpus = "synthetic"` makes in `data.path`, once."""

    train_clips: int = 600  # clips to train on
    test_clips: int = 100  # clips to evaluate on
    dev_clips: int = 0  # clips that choose the best checkpoint; 0: no dev split
    language: str = "en"  # of the sentences
    seed: int = 0  # of sentences and voices


WHITE_NOISE = "white"


@dataclass
class AugmentSettings:
    """Changes of training clips, drawn anew in each epoch. Clips of dev and test stay as they are."""

    speeds: tuple[float, ...] = ()  # each clip gets one of these an epoch: 0.9,1,1.1; empty: its own
    noise: str = ""  # what is added to clips: "white", or a folder of recordings of noise; empty: nothing
    noise_share: float = 0.5  # share of the clips that get noise
    snr_min: float = 5.0  # power of the speech over that of the noise, in dB, at least
    snr_max: float = 30.0  # the same, at most

    def changes_clips(self) -> bool:
        """Whether anything is done."""
        return bool(self.speeds or self.noise)


@dataclass
class SplitSettings:
    """What the corpus calls its splits. Empty: the usual names, those that there are."""

    train: str = ""  # the split to train on; hub: also a part of one, "train[:95%]"
    dev: str = ""  # the split that chooses the best checkpoint, where `data.dev` says nothing
    test: str = ""  # the split that is evaluated once, at the end


@dataclass
class DataSettings:
    """Where the speech is, and how batches are made of it."""

    corpus: str = ""  # which reader: `train --help` lists the corpora
    path: str = ""  # a folder, or the id of a data set on the hub; several with commas between them
    weights: tuple[float, ...] = ()  # of the corpora in `path`: how often an epoch has each; empty: once
    splits: SplitSettings = field(default_factory=SplitSettings)  # what the corpus calls its splits
    dev: str = ""  # what chooses: a split, a path, a share of train, or "test"; empty: the corpus's own
    dev_share: float = 0.1  # share of train that becomes dev where the corpus has none
    dev_seed: int = 0  # of the choice of that share
    channel: str = "auto"  # of recordings with several: auto, mean, left, right, or a number from 0
    train_max_seconds: float = 0.0  # use only training clips shorter than this; 0: all
    held_out_speakers: tuple[str, ...] = ()  # timit_sample: the speakers of the test split
    audio_column: str = ""  # hub: the column of the audio; empty: found by its kind
    text_column: str = ""  # hub: the column of the text; empty: found by the usual names
    hub_config: str = ""  # hub: the data set's configuration
    tokenizer: str = ""  # folder or hub id; empty: the checkpoint's, else one from the corpus's text
    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)  # the corpus "synthetic"
    augment: AugmentSettings = field(default_factory=AugmentSettings)  # other speeds, and noise
    buckets: int = 6  # padded lengths that training batches may have; each compiles once
    threads: int = 2  # threads that make batches
    prefetch: int = 8  # batches made ahead
    cache: str = ""  # folder for decoded audio; empty: cache/ beside the workdir; "none": decode every time
    cache_features: bool = False  # also keep there what the frozen feature encoder makes of training clips


@dataclass
class TextSettings:
    """How the corpus's text becomes the model's. None: as the model's folder says, else the preset."""

    preset: str | None = None  # auto (own data), timit (the seed's rule), written, tokens (phonemes)
    case: str | None = None  # lower, upper, keep, or auto: as the tokenizer has it, lower where it is new
    remove: str | None = None  # characters that are deleted, in place of the preset's
    keep: str | None = None  # characters that stay, though the preset would remove them
    language: str | None = None  # a code such as "tr", where upper and lower case depend on it
    unit: str | None = None  # character, or token: symbols with white space between them, such as phonemes

    def rule(self) -> TextRule:
        """The rule where no folder says another. Raises UserError for a value that cannot be."""
        return TextRule().changed(dataclasses.asdict(self))


MOST_AVERAGED = 100


@dataclass
class LoopSettings:
    """How long to train, and when to log, evaluate and save."""

    batch_size: int = 32  # clips in a step, over all devices, where `batch_seconds` is 0
    batch_seconds: float = 0.0  # padded audio in a step, at most: more clips where they are short
    accumulation: int = 1  # equal parts that a batch is worked through in
    steps: int = 0  # length of the run; 0: `epochs` says it
    epochs: int = 0  # length of the run where `steps` is 0
    eval_batch_size: int = 8  # clips at a time in an evaluation, over all devices
    eval_every: int = 500  # steps between evaluations; a checkpoint is saved at each
    log_every: int = 50  # steps between log lines
    save_every: int = 0  # steps between further checkpoints; 0: only at evaluations
    best_by: str = "auto"  # what chooses the best checkpoint: wer, cer, loss, or auto
    ctc_loss_reduction: str = "mean"  # "mean" or "sum", as torch.nn.functional.ctc_loss's
    tensorboard: bool = False  # also write events for TensorBoard, into tensorboard/ of the workdir
    skip_nonfinite: int = 0  # steps that may be skipped because loss or gradient is not finite
    head_first_steps: int = 0  # steps at the beginning that train the head alone
    early_stopping: int = 0  # evaluations in a row without a better score that end the run; 0: none do
    average_last: int = 0  # evaluated checkpoints, the last ones, whose mean is tried at the end; 0: no mean
    aligner: bool = True  # at the end, fit an aligner to the exported model, for the times of words


SCHEDULES = ("linear", "tri_stage", "cosine", "constant")


@dataclass
class OptimSettings:
    """AdamW. The learning rate rises linearly to its peak, and then goes on as `schedule` says."""

    learning_rate: float = 1e-4  # at its peak
    schedule: str = "linear"  # after the warm-up: linear (to 0), tri_stage, cosine (to 0), constant
    warmup_steps: int = 1000  # steps until the peak
    hold_steps: int = 0  # tri_stage: steps at the peak, after the warm-up
    initial_share: float = 0.01  # tri_stage: the first step's share of the peak; the others begin at 0
    final_share: float = 0.01  # tri_stage: the share of the peak to which the rate falls, exponentially
    head_learning_rate: float | None = None  # of the head at its peak; None: the same
    layer_decay: float = 1.0  # each layer's rate is this times the next one's above; 1: all alike
    weight_decay: float = 0.005  # not applied to biases and the scales of norms
    clip_norm: float = 1.0  # largest norm of a gradient; 0: no clipping
    beta1: float = 0.9  # decay of the first moment
    beta2: float = 0.999  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment


@dataclass
class MeshSettings:
    """Devices along each axis of the mesh."""

    data: int = -1  # devices that split batches; -1: all that `fsdp` leaves
    fsdp: int = 1  # devices that split parameters and optimizer state as well


@dataclass
class TrainConfig:
    """A run."""

    name: str = ""  # for people, and for the default workdir
    seed: int = 42  # of the order of clips, dropout, masks and new weights
    workdir: str = ""  # folder of the run
    model: ModelSettings = field(default_factory=ModelSettings)  # which model, and how it is computed
    data: DataSettings = field(default_factory=DataSettings)  # where the speech is
    text: TextSettings = field(default_factory=TextSettings)  # how its text becomes the model's
    train: LoopSettings = field(default_factory=LoopSettings)  # how long, and when to evaluate
    optim: OptimSettings = field(default_factory=OptimSettings)  # AdamW and its schedule
    mesh: MeshSettings = field(default_factory=MeshSettings)  # devices along each axis

    def check(self) -> None:
        """Raises a UserError for the first field that cannot be what it is, before anything is read."""
        _check_types(self)
        for name, value in flatten(self).items():
            if isinstance(value, float):
                _require(math.isfinite(value), name, value, "a finite number")
            elif isinstance(value, int):
                _require(abs(value) < 2**31, name, value, "a number below 2^31")
        _require(bool(self.workdir), "workdir", self.workdir, "a folder to write to")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _check_model(self.model)
        _check_data(self.data)
        self.text.rule()
        _check_loop(self.train)
        _check_optim(self.optim)
        _require(
            not (self.data.augment.changes_clips() and self.data.cache_features),
            "data.cache_features",
            self.data.cache_features,
            "False where data.augment changes the clips: their features are others in every epoch",
        )
        _require(
            self.model.freeze_feature_encoder or not self.data.cache_features,
            "data.cache_features",
            self.data.cache_features,
            "False where model.freeze_feature_encoder is: an encoder that is trained changes with every step",
        )

    def model_overrides(self) -> dict[str, Any]:
        """The fields of WavLMConfig that this run sets."""
        chosen = {k: v for k, v in dataclasses.asdict(self.model.overrides).items() if v is not None}
        how = [part.name for part in dataclasses.fields(Compute)]
        return chosen | {name: getattr(self.model, name) for name in how}

    def cache_folder(self) -> Path | None:
        """Where decoded audio is kept between runs: by default beside the workdir, for all runs there."""
        if self.data.cache == "none":
            return None
        return Path(self.data.cache) if self.data.cache else Path(self.workdir).parent / "cache"

    def to_dict(self) -> dict[str, Any]:
        """The nested mapping that config.json holds."""
        return dataclasses.asdict(self)


# --- Checks -------------------------------------------------------------------------------------------------


def _require(holds: bool, name: str, found: Any, expected: str, do: str = "") -> None:
    if not holds:
        raise UserError(field=name, found=found, expected=expected, do=do)


def _check_model(model: ModelSettings) -> None:
    _require(
        bool(model.checkpoint) or model.config is not None,
        "model.checkpoint",
        model.checkpoint,
        "a checkpoint, or else a model.config and no checkpoint",
    )


def _check_data(data: DataSettings) -> None:
    corpora = corpora_in(data.corpus, data.path)
    _require(
        len(data.weights) in (0, len(corpora)) and all(0 < weight <= 1000 for weight in data.weights),
        "data.weights",
        data.weights,
        f"numbers above 0, up to 1000, one for each corpus in data.path ({len(corpora)})",
    )
    for name in ("buckets", "threads", "prefetch"):
        _at_least(1, data, f"data.{name}")
    _at_least(0, data, "data.train_max_seconds", "0 (no limit) or more")
    _require(0 < data.dev_share < 1, "data.dev_share", data.dev_share, "above 0 and below 1")
    _at_least(0, data, "data.dev_seed")
    _require(
        data.channel in CHANNELS or data.channel.isdecimal(),
        "data.channel",
        data.channel,
        f"one of {', '.join(CHANNELS)}, or a number from 0",
    )
    _require(
        data.cache != "none" or not data.cache_features,
        "data.cache",
        data.cache,
        "a folder, or nothing for the default one, where data.cache_features is True",
    )
    _check_augment(data.augment)


def _check_augment(augment: AugmentSettings) -> None:
    speeds = augment.speeds
    _require(
        all(0.5 <= speed <= 2 for speed in speeds) and len(set(speeds)) == len(speeds),
        "data.augment.speeds",
        speeds,
        "numbers from 0.5 to 2, none of them twice, such as 0.9,1,1.1",
    )
    share = augment.noise_share
    _require(0 < share <= 1, "data.augment.noise_share", share, "above 0 and at most 1")
    for name in ("snr_min", "snr_max"):
        level = getattr(augment, name)
        _require(-100 <= level <= 100, f"data.augment.{name}", level, "-100 to 100 dB")
    _require(
        augment.snr_min <= augment.snr_max,
        "data.augment.snr_min",
        augment.snr_min,
        f"at most data.augment.snr_max, which is {augment.snr_max}",
    )


def _check_loop(train: LoopSettings) -> None:
    _at_least(0, train, "train.batch_seconds", "above 0, or 0 for train.batch_size clips")
    for name in ("batch_size", "eval_batch_size", "accumulation", "eval_every", "log_every"):
        _at_least(1, train, f"train.{name}")
    for name in ("steps", "save_every", "skip_nonfinite", "head_first_steps", "early_stopping"):
        _at_least(0, train, f"train.{name}")
    _require(
        train.average_last == 0 or 2 <= train.average_last <= MOST_AVERAGED,
        "train.average_last",
        train.average_last,
        f"0 for no mean, or 2 to {MOST_AVERAGED}: so many checkpoints stay on the disk",
    )
    _require(
        train.steps > 0 or train.epochs > 0,
        "train.steps",
        train.steps,
        f"above 0, or else train.epochs above 0, which is {train.epochs}",
    )
    choices = ("auto", "wer", "cer", "loss")
    hint = did_you_mean(train.best_by, choices)
    _require(train.best_by in choices, "train.best_by", train.best_by, f"one of {', '.join(choices)}", hint)
    reduction = train.ctc_loss_reduction
    _require(reduction in ("mean", "sum"), "train.ctc_loss_reduction", reduction, "'mean' or 'sum'")


def _check_optim(optim: OptimSettings) -> None:
    for name in ("learning_rate", "eps", "final_share", "layer_decay"):
        value = getattr(optim, name)
        _require(value > 0, f"optim.{name}", value, "above 0")
    for name in ("initial_share", "final_share", "layer_decay"):
        value = getattr(optim, name)
        _require(value <= 1, f"optim.{name}", value, "at most 1")
    head = optim.head_learning_rate
    _require(head is None or head > 0, "optim.head_learning_rate", head, "above 0, or none for the same")
    for name in ("warmup_steps", "hold_steps", "initial_share", "weight_decay", "clip_norm"):
        _at_least(0, optim, f"optim.{name}")
    hint = did_you_mean(optim.schedule, SCHEDULES)
    _require(
        optim.schedule in SCHEDULES, "optim.schedule", optim.schedule, f"one of {', '.join(SCHEDULES)}", hint
    )
    _require(
        optim.hold_steps == 0 or optim.schedule == "tri_stage",
        "optim.hold_steps",
        optim.hold_steps,
        f"0 where optim.schedule is {optim.schedule!r}: tri_stage alone holds the peak",
    )
    for name in ("beta1", "beta2"):
        value = getattr(optim, name)
        _require(0 <= value < 1, f"optim.{name}", value, "at least 0 and below 1")


def _at_least(least: int, group: Any, name: str, expected: str = "") -> None:
    value = getattr(group, name.rpartition(".")[2])
    _require(value >= least, name, value, expected or f"{least} or more")


def _check_types(config: Any, prefix: str = "") -> None:
    """UserError for a field that does not exist, or a value of another type: a recipe can set anything."""
    names = [part.name for part in dataclasses.fields(config)]
    for name in vars(config):
        if name not in names:
            near = did_you_mean(f"{prefix}{name}", [f"{prefix}{known}" for known in names], cutoff=0.5)
            raise UserError(f"{prefix}{name}: there is no such field", field=f"{prefix}{name}", do=near)
    for part in dataclasses.fields(config):
        name, value, wanted = f"{prefix}{part.name}", getattr(config, part.name), part.type
        allowed = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
        classes = [get_origin(kind) or kind for kind in allowed]
        fitting = type(value) in classes or (type(value) is int and float in classes)  # a bool is no int
        if type(value) is tuple and fitting:
            [item, _] = get_args(wanted)
            fitting = all(type(part) is item or (type(part) is int and item is float) for part in value)
        if not fitting:
            spelled = wanted.__name__ if isinstance(wanted, type) else str(wanted)
            raise UserError(field=name, found=value, expected=spelled)
        if dataclasses.is_dataclass(value) and not isinstance(value, WavLMConfig):  # that checks itself
            _check_types(value, f"{name}.")


# --- config.json of a run -----------------------------------------------------------------------------------

# Later versions add fields. A config.json that lacks a field was written before the field existed. The field
# then stands for what was computed at that time: the value here, by the field's dotted name, or else the
# dataclass's default. Whoever adds a field whose default changes what is computed adds the old value here.
WHEN_ABSENT: dict[str, Any] = {
    "data.audio_column": "audio",
    "data.channel": "mean",
    "data.dev": "test",
    "data.text_column": "text",
    "text.preset": "before-0.2",
    "train.aligner": False,
    "train.best_by": "wer",
}
# Defaults that have changed: a config.json with the former one was written by a recipe that did not set it.
FORMER_DEFAULTS: dict[str, Any] = {"data.audio_column": "audio", "data.text_column": "text"}


def read_saved(path: Path) -> dict[str, Any]:
    """A run's config.json, complete: fields that it lacks have the values of `WHEN_ABSENT`.

    Raises UserError where the file cannot be read, or a group of fields in it is not an object.
    """
    return _completed(TrainConfig(), read_json_object(path, "a run's configuration"), path)


def _completed(default: Any, saved: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, Any]:
    """The saved group of fields, with those that it lacks. `default` is a dataclass of the same fields."""
    complete = dict(saved)
    for part in dataclasses.fields(default):
        name, value = f"{prefix}{part.name}", getattr(default, part.name)
        group = WavLMConfig() if name == "model.config" and saved.get(part.name) is not None else value
        if dataclasses.is_dataclass(group):
            inner = saved.get(part.name, {})
            if not isinstance(inner, dict):
                raise UserError(
                    where=path,
                    field=name,
                    found=inner,
                    expected="an object",
                    do="start the run's command again to have the file restored, or restore it from a copy",
                )
            complete[part.name] = _completed(group, inner, path, f"{name}.")
        elif part.name not in saved:
            complete[part.name] = WHEN_ABSENT.get(name, json.loads(json.dumps(value)))
    return complete


# --- Fields by their dotted names ---------------------------------------------------------------------------


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

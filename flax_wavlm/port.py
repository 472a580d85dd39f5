"""Checkpoints in and out: one reversible table of names, and the readers of every format that users hold.

Read: Hugging Face folders and hub ids (safetensors or pickled, sharded or not, either weight-norm spelling,
encoder-only or CTC), Microsoft's own .pt, torchaudio's state dict. Written: a Hugging Face folder. Nothing
outside this file knows Hugging Face's, Microsoft's or torchaudio's names of tensors.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from flax_wavlm.config import WavLMConfig
from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, is_file, is_folder, local_copy, one_line, read_json_object
from flax_wavlm.model import Params, WavLMForCTC, merge, split, structure

log = logging.getLogger(__name__)

# --- The table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How an array of torch's lies in ours: axes of size 1 that we drop, then a permutation."""

    dropped: tuple[int, ...] = ()
    axes: tuple[int, ...] | None = None

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        array = np.squeeze(array, self.dropped)
        return array if self.axes is None else array.transpose(self.axes)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        array = array if self.axes is None else array.transpose(np.argsort(self.axes))
        return np.expand_dims(array, self.dropped)


SAME = Layout()
LINEAR = Layout(axes=(1, 0))  # [out, in] -> [in, out]
CONV = Layout(axes=(2, 1, 0))  # [out, in, taps] -> [taps, in, out]
TAPS = Layout(dropped=(0, 1))  # [1, 1, taps] -> [taps]
HEADS = Layout(dropped=(0, 2, 3))  # [1, H, 1, 1] -> [H]
ALL = slice(None)

# Hugging Face's name in WavLMForCTC | our path | layout | which part of a layer's array, where it is a part.
# {conv} counts the convolutions; {layer} counts the encoder layers, which we stack along a leading axis.
ROWS: tuple[tuple[Any, ...], ...] = (
    ("wavlm.masked_spec_embed", "wavlm.mask_embedding", SAME),
    *(
        (
            f"wavlm.feature_extractor.conv_layers.{{conv}}.{theirs}",
            f"wavlm.feature_encoder.conv{{conv}}.{ours}",
            layout,
        )
        for theirs, ours, layout in (
            ("conv.weight", "conv.kernel", CONV),
            ("conv.bias", "conv.bias", SAME),
            ("layer_norm.weight", "norm.scale", SAME),
            ("layer_norm.bias", "norm.bias", SAME),
        )
    ),
    ("wavlm.feature_projection.layer_norm.weight", "wavlm.feature_projection.norm.scale", SAME),
    ("wavlm.feature_projection.layer_norm.bias", "wavlm.feature_projection.norm.bias", SAME),
    ("wavlm.feature_projection.projection.weight", "wavlm.feature_projection.projection.kernel", LINEAR),
    ("wavlm.feature_projection.projection.bias", "wavlm.feature_projection.projection.bias", SAME),
    ("wavlm.encoder.pos_conv_embed.conv.bias", "wavlm.encoder.positions.bias", SAME),
    (
        "wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "wavlm.encoder.positions.magnitude",
        TAPS,
    ),
    (
        "wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "wavlm.encoder.positions.direction",
        CONV,
    ),
    ("wavlm.encoder.layer_norm.weight", "wavlm.encoder.norm.scale", SAME),
    ("wavlm.encoder.layer_norm.bias", "wavlm.encoder.norm.bias", SAME),
    ("wavlm.encoder.layers.0.attention.rel_attn_embed.weight", "wavlm.encoder.bucket_bias", SAME),
    *(
        (f"wavlm.encoder.layers.{{layer}}.{theirs}", f"wavlm.encoder.layers.{ours}", layout, *part)
        for theirs, ours, layout, *part in (
            ("attention.q_proj.weight", "attention.qkv.kernel", LINEAR, (ALL, 0)),
            ("attention.q_proj.bias", "attention.qkv.bias", SAME, (0,)),
            ("attention.k_proj.weight", "attention.qkv.kernel", LINEAR, (ALL, 1)),
            ("attention.k_proj.bias", "attention.qkv.bias", SAME, (1,)),
            ("attention.v_proj.weight", "attention.qkv.kernel", LINEAR, (ALL, 2)),
            ("attention.v_proj.bias", "attention.qkv.bias", SAME, (2,)),
            ("attention.out_proj.weight", "attention.out.kernel", LINEAR),
            ("attention.out_proj.bias", "attention.out.bias", SAME),
            ("attention.gru_rel_pos_const", "attention.gate_const", HEADS),
            ("attention.gru_rel_pos_linear.weight", "attention.gate.kernel", LINEAR),
            ("attention.gru_rel_pos_linear.bias", "attention.gate.bias", SAME),
            ("layer_norm.weight", "attention_norm.scale", SAME),
            ("layer_norm.bias", "attention_norm.bias", SAME),
            ("feed_forward.intermediate_dense.weight", "feed_forward.up.kernel", LINEAR),
            ("feed_forward.intermediate_dense.bias", "feed_forward.up.bias", SAME),
            ("feed_forward.output_dense.weight", "feed_forward.down.kernel", LINEAR),
            ("feed_forward.output_dense.bias", "feed_forward.down.bias", SAME),
            ("final_layer_norm.weight", "final_norm.scale", SAME),
            ("final_layer_norm.bias", "final_norm.bias", SAME),
        )
    ),
    ("lm_head.weight", "head.kernel", LINEAR),
    ("lm_head.bias", "head.bias", SAME),
)
HEAD = ("lm_head.weight", "lm_head.bias")
MASK_EMBEDDING = "wavlm.masked_spec_embed"


@dataclass(frozen=True)
class Entry:
    """One tensor of Hugging Face's and the part of one of our arrays that holds it."""

    name: str
    path: tuple[str, ...]
    index: tuple[int | slice, ...]
    layout: Layout
    shape: tuple[int, ...]  # Hugging Face's


def table(config: WavLMConfig) -> list[Entry]:
    """Every tensor of a checkpoint of this configuration, in Hugging Face's order of names above."""
    shapes = {path: leaf.shape for path, leaf in _flatten(structure(config)[1])}
    counts = {"{conv}": len(config.conv_dim), "{layer}": config.num_hidden_layers}
    entries = []
    for name, path, layout, *part in ROWS:
        counter = next((key for key in counts if key in name), None)
        for i in range(counts[counter] if counter else 1):
            where = tuple((path.replace(counter, str(i)) if counter else path).split("."))
            if where not in shapes:
                continue  # a bias or a norm that this kind of model does not have
            index = ((i,) if counter == "{layer}" else ()) + (part[0] if part else ())
            ours = np.broadcast_to(np.int8(0), shapes[where])[index]
            theirs = layout.to_theirs(ours).shape
            entries.append(
                Entry(name.replace(counter, str(i)) if counter else name, where, index, layout, theirs)
            )
    return entries


def has_mask_embedding(config: WavLMConfig) -> bool:
    """Whether transformers' model of this configuration has `masked_spec_embed`."""
    return config.mask_time_prob > 0 or config.mask_feature_prob > 0


def _flatten(tree: Params, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


# --- Other spellings of Hugging Face's names ----------------------------------------------------------------

# Applied in this order to names without the prefix "wavlm.". No two formats disagree on a spelling.
SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Weight norm before torch's parametrizations.
        (r"(pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
        (r"(pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
        # torchaudio (`torchaudio.models.wav2vec2.utils.import_huggingface` has the way there).
        (r"^encoder\.feature_projection\.", "feature_projection."),
        (r"^encoder\.transformer\.", "encoder."),
        (r"^aux\.", "lm_head."),
        (r"\.attention\.attention\.out_proj\.", ".attention.out_proj."),
        # Microsoft (github.com/microsoft/unilm, wavlm/WavLM.py).
        (r"^mask_emb$", "masked_spec_embed"),
        (r"^layer_norm\.", "feature_projection.layer_norm."),
        (r"^post_extract_proj\.", "feature_projection.projection."),
        (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
        (r"^(feature_extractor\.conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
        (r"^(feature_extractor\.conv_layers\.0)\.2\.", r"\1.layer_norm."),
        (
            r"^encoder\.pos_conv\.0\.weight_g$",
            "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        ),
        (
            r"^encoder\.pos_conv\.0\.weight_v$",
            "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        ),
        (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
        (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
        (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
        (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
        (r"\.self_attn\.", ".attention."),
        (r"\.self_attn_layer_norm\.", ".layer_norm."),
        (r"\.fc1\.", ".feed_forward.intermediate_dense."),
        (r"\.fc2\.", ".feed_forward.output_dense."),
    )
)
JOINT = re.compile(r"(.*\.attention)\.attention\.in_proj_(weight|bias)")  # torchaudio's q, k and v in one


def canonical_names(spelled: str) -> list[str]:
    """Hugging Face's name in WavLMForCTC for any known spelling; three names for a joint q, k, v projection.

    A name that is not known comes back recognisable, and then has no place in the table.
    """
    name = spelled.removeprefix("wavlm.")
    for pattern, replacement in SPELLINGS:
        name = pattern.sub(replacement, name)
    if not name.startswith("lm_head."):
        name = f"wavlm.{name}"
    joint = JOINT.fullmatch(name)
    return [f"{joint[1]}.{part}_proj.{joint[2]}" for part in "qkv"] if joint else [name]


# --- Reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file: its name there, its shape, and the function that reads it."""

    spelled: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk, opened but not read. `tensors` is keyed by Hugging Face's names."""

    source: str
    kind: str
    config: WavLMConfig
    do_normalize: bool | None  # what the file itself says of the input's normalisation, if anything
    tensors: Mapping[str, Tensor]

    @property
    def folder(self) -> Path:
        """Where its other files lie: tokenizer, preprocessor."""
        path = Path(self.source)
        return path if path.is_dir() else path.parent

    @property
    def has_head(self) -> bool:
        return any(name in self.tensors for name in HEAD)


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHARD_SUFFIXES = (".safetensors", ".bin")


def locate(source: str | Path) -> Path:
    """The local file or folder of a checkpoint: the path itself, or the snapshot of a hub id.

    A hub id is downloaded (or found in the cache) by huggingface_hub, which honours HF_HUB_OFFLINE.
    """
    path = local_copy(source, ["*.json", "model*.safetensors"])
    downloaded = path != Path(os.path.expanduser(source))
    if downloaded and not any((path / name).exists() for name in WEIGHT_FILES):
        path = local_copy(source, ["*.json", "pytorch_model*.bin"])
    return path


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a checkpoint of any format (see the module's docstring); weights are read later, one by one."""
    path = locate(source)
    if is_folder(path):
        weights = next((path / name for name in WEIGHT_FILES if exists(path / name)), None)
        if weights is None:
            try:
                found = ", ".join(sorted(os.listdir(path))[:10]) or "nothing"
            except OSError as error:
                raise UserError(f"{path}: cannot list it ({error.strerror}); check its permissions") from None
            raise UserError(f"{path}: has none of {', '.join(WEIGHT_FILES)}; found {found}")
        config_path = path / "config.json"
        config = WavLMConfig.from_hf(config_path)  # first: another architecture is named before its tensors
        return _checkpoint(path, "Hugging Face folder", config, None, _open_weights(weights))
    if path.suffix == ".safetensors":
        raw: Mapping[str, Tensor] = _open_weights(path)
    else:
        content = _load_pickle(path)
        if "cfg" in content and "model" in content:
            with _naming(path):
                config, do_normalize = _config_of_microsoft(path, content["cfg"])
            return _checkpoint(
                path, "Microsoft .pt", config, do_normalize, _torch_tensors(path, content["model"])
            )
        raw = _torch_tensors(path, content.get("state_dict", content))
    kind = "torchaudio state dict" if any("in_proj_weight" in name for name in raw) else "state dict"
    beside = path.parent / "config.json"
    if exists(beside):
        return _checkpoint(path, kind, WavLMConfig.from_hf(beside), None, raw)
    checkpoint = _checkpoint(path, kind, WavLMConfig(), None, raw)
    with _naming(path):
        config = _infer_config(checkpoint)
    log.warning("%s: no config.json beside it; the configuration was inferred from the tensors", path)
    return Checkpoint(checkpoint.source, kind, config, None, checkpoint.tensors)


def _checkpoint(
    path: Path, kind: str, config: WavLMConfig, do_normalize: bool | None, raw: Mapping[str, Tensor]
) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    for spelled, tensor in raw.items():
        names = canonical_names(spelled)
        for i, name in enumerate(names):
            if name in tensors:
                raise UserError(
                    f"{path}: holds {name} twice, as {tensors[name].spelled} and as {spelled}; remove one"
                )
            tensors[name] = tensor if len(names) == 1 else _third(path, tensor, i)
    return Checkpoint(str(path), kind, config, do_normalize, tensors)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """WavLMConfig's errors, with the file that its values were found in."""
    try:
        yield
    except UserError as error:
        if not str(error).startswith("config: "):
            raise
        raise UserError(
            f"{path}: no configuration of a WavLM: {str(error).removeprefix('config: ')}"
        ) from None


def _third(path: Path, tensor: Tensor, index: int) -> Tensor:
    """One of query, key and value in torchaudio's joint projection."""
    if not tensor.shape or tensor.shape[0] % 3:
        raise UserError(
            f"{path}: {tensor.spelled} is {list(tensor.shape)}, expected query, key and value joined along "
            "the first axis; download it again"
        )
    rows = tensor.shape[0] // 3
    return Tensor(
        tensor.spelled,
        (rows, *tensor.shape[1:]),
        lambda: tensor.read()[index * rows : (index + 1) * rows],
    )


def _open_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, or of all files that an index names."""
    if path.name.endswith(".index.json"):
        index = read_json_object(path, "an index of weight files").get("weight_map")
        if not isinstance(index, dict) or not index:
            raise UserError(f"{path}: has no weight_map; download the checkpoint again")
        for name in index.values():
            # No way out of the folder. What a file there links to is its owner's business: the hub's cache
            # consists of links.
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(SHARD_SUFFIXES):
                raise UserError(
                    f"{path}: names the shard {name!r}, expected a file of the same folder, "
                    f"{' or '.join(SHARD_SUFFIXES)}"
                )
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(index.values())):
            shard = path.parent / name
            if not is_file(shard):
                raise UserError(f"{shard}: no such file, but {path.name} names it; download it again")
            found = _open_weights(shard)
            if twice := sorted(found.keys() & tensors):
                raise UserError(
                    f"{shard}: holds {twice[0]}, which another shard holds too; download it again"
                )
            tensors.update(found)
        missing = sorted(set(index) - set(tensors))
        if missing:
            raise UserError(
                f"{path}: the shards lack {len(missing)} tensors that it lists: {', '.join(missing)}"
            )
        return tensors
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _torch_tensors(path, _load_pickle(path))


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    def read(name: str) -> np.ndarray:
        # Opened anew for each: while it is open, every page that was read counts as this process's memory.
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    try:
        path.open("rb").close()  # safetensors says of every such failure that there is no file
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            types = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({one_line(error)}); download or copy it again"
        ) from None
    _check_types(path, types, ("F32", "F16", "BF16", "F64"))
    return {name: Tensor(name, shape, functools.partial(read, name)) for name, shape in shapes.items()}


def _check_types(path: Path, types: Mapping[str, str], floats: tuple[str, ...]) -> None:
    """UserError for integers and the like: quantised weights say nothing without their scales."""
    if wrong := [name for name, kind in types.items() if kind not in floats]:
        raise UserError(
            f"{path}: {', '.join(wrong[:10])}: of type {types[wrong[0]]}, expected one of "
            f"{', '.join(floats)}; a quantised checkpoint cannot be used, take the one that it was made from"
        )


def _load_pickle(path: Path) -> dict[str, Any]:
    """The dict in a pickled checkpoint, by torch's weights-only loading: no code in it is run."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading a pickled checkpoint needs PyTorch: pip install 'flax-wavlm[torch]', "
            "or use its safetensors form"
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # torch raises half a dozen types for damaged or unsafe files
        raise UserError(
            f"{path}: not a checkpoint that can be loaded safely ({type(error).__name__}: "
            f"{one_line(error)}). It is damaged, or it holds more than tensors"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    return content


def _torch_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no dict of tensors")
    import torch

    wrong = [
        str(name)
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided)
    ]
    if wrong:
        raise UserError(
            f"{path}: expected named, dense tensors only, found something else under {', '.join(wrong[:10])}"
        )
    floats = ("float32", "float16", "bfloat16", "float64")
    types = {name: str(value.dtype).removeprefix("torch.") for name, value in content.items()}
    _check_types(path, types, floats)
    return {
        name: Tensor(name, tuple(value.shape), functools.partial(_torch_to_numpy, value))
        for name, value in content.items()
    }


def _torch_to_numpy(value: Any) -> np.ndarray:
    return value.detach().float().numpy()


def _config_of_microsoft(path: Path, cfg: Any) -> tuple[WavLMConfig, bool]:
    """The configuration in Microsoft's checkpoint, and whether its input is normalised.

    Architecture only: its dropouts and masks are pre-training's; those for fine-tuning are the ones that
    Hugging Face publishes with the same weights.
    """
    if not isinstance(cfg, Mapping):
        raise UserError(f"{path}: 'cfg' is a {type(cfg).__name__}, expected a dict")
    try:
        layers = str(cfg["conv_feature_layers"])
        conv = [
            tuple(int(n) for n in dims)
            for *dims, times in re.findall(r"\((\d+),\s*(\d+),\s*(\d+)\)\]?\s*(?:\*\s*(\d+))?", layers)
            for _ in range(min(int(times or 1), 100))
        ]
        large = cfg["extractor_mode"] == "layer_norm"
        config = WavLMConfig(
            hidden_size=int(cfg["encoder_embed_dim"]),
            num_hidden_layers=int(cfg["encoder_layers"]),
            num_attention_heads=int(cfg["encoder_attention_heads"]),
            intermediate_size=int(cfg["encoder_ffn_embed_dim"]),
            hidden_act=str(cfg["activation_fn"]),
            feat_extract_norm="layer" if large else "group",
            conv_dim=tuple(dim for dim, _, _ in conv),
            conv_kernel=tuple(kernel for _, kernel, _ in conv),
            conv_stride=tuple(stride for _, _, stride in conv),
            conv_bias=bool(cfg["conv_bias"]),
            num_conv_pos_embeddings=int(cfg["conv_pos"]),
            num_conv_pos_embedding_groups=int(cfg["conv_pos_groups"]),
            num_buckets=int(cfg["num_buckets"]),
            max_bucket_distance=int(cfg["max_distance"]),
            do_stable_layer_norm=bool(cfg["layer_norm_first"]),
            **_RELEASED_REGULARISATION,
            layerdrop=0.1 if large else 0.05,
            mask_time_prob=0.075 if large else 0.05,
        )
        for name in ("relative_position_embedding", "gru_rel_pos"):
            if not cfg[name]:
                raise UserError(f"{path}: cfg[{name!r}] is false; only WavLM, which has it, can be loaded")
        return config, bool(cfg["normalize"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: 'cfg' holds a value of another kind ({one_line(error)})") from None
    except KeyError as error:
        raise UserError(f"{path}: 'cfg' lacks {error}; expected the cfg of Microsoft's WavLM") from None


_RELEASED_REGULARISATION: dict[str, Any] = {
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "feat_proj_dropout": 0.1,
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
    "ctc_loss_reduction": "sum",
}


def _infer_config(checkpoint: Checkpoint) -> WavLMConfig:
    """The configuration that the tensors' shapes imply; strides and distances are the released models'."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in checkpoint.tensors:
            raise UserError(
                f"{checkpoint.source}: has no config.json beside it and no tensor {name}, so it is no state "
                "dict of a WavLM that is known here"
            )
        found = checkpoint.tensors[name].shape
        if len(found) != rank or 0 in found:
            raise UserError(
                f"{checkpoint.source}: {name} is {list(found)}, expected {rank} axes; it is no state dict of "
                "a WavLM that is known here"
            )
        return found

    def count(pattern: str) -> int:
        return len({m[1] for name in checkpoint.tensors if (m := re.match(pattern, name))})

    convs = count(r"wavlm\.feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    if convs != len(WavLMConfig.conv_stride):
        raise UserError(
            f"{checkpoint.source}: {convs} convolutions; their strides cannot be told from the tensors. "
            "Put its config.json beside it"
        )
    conv_shapes = [shape(f"wavlm.feature_extractor.conv_layers.{i}.conv.weight", 3) for i in range(convs)]
    large = "wavlm.feature_extractor.conv_layers.1.layer_norm.weight" in checkpoint.tensors
    first = "wavlm.encoder.layers.0"
    direction = shape("wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original1", 3)
    buckets, heads = shape(f"{first}.attention.rel_attn_embed.weight", 2)
    return WavLMConfig(
        vocab_size=shape(HEAD[0], 2)[0] if HEAD[0] in checkpoint.tensors else 32,
        hidden_size=direction[0],
        num_hidden_layers=count(r"wavlm\.encoder\.layers\.(\d+)\.final_layer_norm\.weight"),
        num_attention_heads=heads,
        intermediate_size=shape(f"{first}.feed_forward.intermediate_dense.weight", 2)[0],
        feat_extract_norm="layer" if large else "group",
        conv_dim=tuple(s[0] for s in conv_shapes),
        conv_kernel=tuple(s[2] for s in conv_shapes),
        conv_bias="wavlm.feature_extractor.conv_layers.0.conv.bias" in checkpoint.tensors,
        num_conv_pos_embeddings=direction[2],
        num_conv_pos_embedding_groups=direction[0] // direction[1],
        num_buckets=buckets,
        do_stable_layer_norm=large,
        **_RELEASED_REGULARISATION,
        layerdrop=0.1 if large else 0.05,
        mask_time_prob=0.075 if large else 0.05,
    )


# --- Into a model, and out of it ----------------------------------------------------------------------------

Placement = Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding]


def load(
    source: str | Path | Checkpoint,
    *,
    overrides: Mapping[str, Any] | None = None,
    fresh_head: bool = False,
    placement: Placement | None = None,
    seed: int = 0,
) -> WavLMForCTC:
    """A model with the checkpoint's weights, float32.

    Args:
        source: see `open_checkpoint`.
        overrides: fields of the WavLMConfig to replace (dropouts, dtype, vocab_size with a fresh head, ...).
        fresh_head: take no CTC head from the checkpoint but initialise one at random.
        placement: gives the sharding of the array at a path with a shape; each array is put together on
            the host and sent to its devices before the next one is. Default: the default device.
        seed: of what is initialised here.
    Raises:
        UserError: listing every tensor of the file that has no place, every one that is missing, and every
            wrong shape. The one thing that may be missing is a CTC head (and from torchaudio's files, which
            have no mask embedding, that): it is initialised at random, and that is announced.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    config = checkpoint.config.replace(**dict(overrides or {}))
    entries = table(config)
    fresh = _fresh_names(checkpoint, config, fresh_head)
    _check(checkpoint, entries, fresh)
    masks = config.apply_spec_augment and has_mask_embedding(config)
    announced = [name for name in sorted(fresh) if masks or name != MASK_EMBEDDING]
    if announced:
        log.warning("%s: initialised at random: %s", checkpoint.source, ", ".join(announced))

    graphdef, params = structure(config)
    parts: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        parts.setdefault(entry.path, []).append(entry)
    fresh_paths = {entry.path for entry in entries if entry.name in fresh}
    initial = _initialise(config, frozenset(fresh_paths), seed) if fresh_paths else {}

    def place(path: tuple[str, ...], array: np.ndarray) -> jax.Array:
        if placement is None:
            return jax.device_put(array)
        sharding = placement(path, array.shape)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    loaded: Params = {}
    for path, leaf in _flatten(params):
        if path in initial:
            array = np.asarray(initial[path])
        else:
            array = np.empty(leaf.shape, np.float32)
            for entry in parts[path]:
                values = checkpoint.tensors[entry.name].read()
                array[entry.index] = entry.layout.to_ours(values)
                if not np.isfinite(array[entry.index]).all():
                    raise UserError(
                        f"{checkpoint.source}: {entry.name} holds NaN or Inf, expected finite weights; the "
                        "file is damaged, or training went wrong before it was saved"
                    )
        node = loaded
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = place(path, array)
    return merge(graphdef, loaded)


def _fresh_names(checkpoint: Checkpoint, config: WavLMConfig, fresh_head: bool) -> set[str]:
    """The tensors that are to be initialised here, because they may be absent and are."""
    fresh = set(HEAD) if fresh_head or not checkpoint.has_head else set()
    if MASK_EMBEDDING not in checkpoint.tensors and (
        not has_mask_embedding(checkpoint.config) or checkpoint.kind == "torchaudio state dict"
    ):
        fresh.add(MASK_EMBEDDING)
    return fresh


def _check(checkpoint: Checkpoint, entries: list[Entry], fresh: set[str]) -> None:
    """Raises a UserError that lists all that does not fit."""
    expected = {entry.name: entry.shape for entry in entries}
    found = checkpoint.tensors
    unfilled = [name for name in expected if name not in found and name not in fresh]
    unused = [found[name].spelled for name in found if name not in expected]
    wrong = [
        f"{found[name].spelled} is {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and name not in fresh and found[name].shape != shape
    ]
    problems = [
        f"{len(items)} {what}: {', '.join(items)}"
        for what, items in (
            ("tensors that the model needs are missing", unfilled),
            ("tensors have no place in the model", unused),
            ("tensors have the wrong shape", wrong),
        )
        if items
    ]
    if problems:
        raise UserError(
            f"{checkpoint.source} ({checkpoint.kind}): the weights do not fit the configuration. "
            + "; ".join(problems)
            + ". Is its config.json the one it was saved with?"
        )


def _initialise(
    config: WavLMConfig, paths: frozenset[tuple[str, ...]], seed: int
) -> dict[tuple[str, ...], jax.Array]:
    """A new model's arrays at the paths alone: jit drops the making of the others."""

    def make() -> list[jax.Array]:
        params = dict(_flatten(split(WavLMForCTC(config, nnx.Rngs(seed)))[1]))
        return [params[path] for path in sorted(paths)]

    return dict(zip(sorted(paths), jax.jit(make)(), strict=True))


def hf_tensors(config: WavLMConfig, params: Params) -> dict[str, np.ndarray]:
    """The parameters (or a tree of the same form: gradients) as Hugging Face's WavLMForCTC names them."""
    host = {}
    for path, leaf in _flatten(params):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        host[path] = np.asarray(leaf)
    return {
        entry.name: np.ascontiguousarray(entry.layout.to_theirs(host[entry.path][entry.index]))
        for entry in table(config)
        if entry.name != MASK_EMBEDDING or has_mask_embedding(config)
    }


def save(model: WavLMForCTC, folder: Path) -> None:
    """Writes config.json and model.safetensors for `transformers.WavLMForCTC.from_pretrained`.

    The weights file is whole or absent: it is written beside its place and renamed. In a run of several
    processes all must call; the first one writes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = hf_tensors(model.config, split(model)[1])
    if jax.process_index() != 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            weights = Path(scratch) / "model.safetensors"
            # transformers refuses a file that does not say which framework it is for.
            save_file(tensors, weights, metadata={"format": "pt"})
            config = Path(scratch) / "config.json"
            config.write_text(json.dumps(model.config.to_hf(), indent=2) + "\n")
            for path in (config, weights):
                os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{folder}: cannot be written: {reason}; give another folder") from None


# The other files of a checkpoint's folder that say how to use it.
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SIDE_FILES = (
    *PREPROCESSOR_FILES,
    "tokenizer_config.json",
    "vocab.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def copy_side_files(source: Path, folder: Path) -> list[str]:
    """Copies tokenizer and preprocessor files that lie with a checkpoint; returns their names.

    UserError for one that is no JSON object: it is damaged, or a link to something that is not to be copied.
    """
    origin = source if source.is_dir() else source.parent
    found = [name for name in SIDE_FILES if (origin / name).exists()]
    if origin.resolve() != folder.resolve():
        for name in found:
            read_json_object(origin / name, "a file of a tokenizer or preprocessor")
            shutil.copyfile(origin / name, folder / name)
    return found


def count_parameters(params: Params) -> int:
    """Elements in all arrays."""
    return sum(math.prod(leaf.shape) for _, leaf in _flatten(params))

"""Adapters (LoRA and its kin, as PEFT saves them), which must be merged into their model first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flax_wavlm.errors import UserError
from flax_wavlm.files import exists, read_json_object

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter_folder(folder: Path) -> bool:
    """Whether PEFT wrote the folder. One with a merged model, where only the settings are left, is none."""
    return any(exists(folder / name) for name in ADAPTER_WEIGHTS)


def holds_adapter(names: Iterable[str]) -> bool:
    """Whether a tensor's name says that it is an adapter's, or of a layer that has one."""
    return any(
        part == "base_layer" or part.startswith(("lora_", "ia3_", "oft_", "hada_"))
        for name in names
        for part in name.split(".")
    )


def merge_first(path: Path) -> UserError:
    """The error for an adapter, with the lines that merge it; `path` is its folder or file."""
    folder = path if path.is_dir() else path.parent
    base = "BASE"
    do = "merge it where it was made, model.merge_and_unload().save_pretrained('merged'), and give 'merged'"
    if exists(folder / ADAPTER_CONFIG):
        named = read_json_object(folder / ADAPTER_CONFIG, "an adapter's settings").get(
            "base_model_name_or_path"
        )
        base = named if isinstance(named, str) and named else base
        do = (
            f"merge it first, and give the new folder: base = WavLMForCTC.from_pretrained({base!r}); "
            f"PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained('merged')"
        )
    return UserError(
        "holds an adapter (LoRA or another of PEFT's), not a whole model",
        where=path,
        do=do,
    )

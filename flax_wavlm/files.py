"""Reading what a user names: a JSON file, a folder on the disk, a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from flax_wavlm.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def read_json_object(file: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; `what` tells the user what it should be. UserError where it is not that."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{file}: cannot read it ({error.strerror}). Expected {what}: give a folder that has it."
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}). Expected {what}: restore the file.") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{file}: holds a {type(value).__name__}, expected an object, {what}. Restore the file."
        )
    return value


def local_copy(source: str | Path, patterns: list[str]) -> Path:
    """The file or folder itself, or the hub's repository of that id, with its files of these patterns.

    huggingface_hub downloads it, or finds it in its cache, and honours HF_HUB_OFFLINE. UserError where
    there is neither.
    """
    path, name = Path(source).expanduser(), str(source)
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(name):
        raise UserError(
            f"{name}: no such file or folder, and not a hub id such as microsoft/wavlm-large; check the path"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # HTTP, cache, validation and offline errors share no base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: no such file or folder here, and not to be had from the Hugging Face hub: {reason} "
            "Check the name, the network and HF_HUB_OFFLINE, or download it and give its folder"
        ) from error

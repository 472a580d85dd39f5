"""The settings of a run as the command line shows them: one line a field, with a comment, and no jax."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import UnionType

import pytest

from flax_wavlm.training import config as config_module

GROUPS = [
    group
    for group in vars(config_module).values()
    if dataclasses.is_dataclass(group) and group.__module__ == config_module.__name__
]
FIELDS = [(group.__name__, field) for group in GROUPS for field in dataclasses.fields(group)]
SOURCE = Path(config_module.__file__).read_text()


@pytest.mark.parametrize(("group", "field"), FIELDS, ids=[f"{g}.{f.name}" for g, f in FIELDS])
def test_every_field_is_explained_on_its_line(group: str, field: dataclasses.Field) -> None:
    body = SOURCE.split(f"class {group}:", 1)[1].split("\n\n\n", 1)[0]
    found = re.findall(rf"^    {field.name}: (.+?) = (.+?)  # (.+)$", body, re.MULTILINE)
    assert len(found) == 1
    assert len(found[0][2]) >= 10


def test_every_group_is_found() -> None:
    assert {group.__name__ for group in GROUPS} >= {
        "TrainConfig",
        "ModelSettings",
        "DataSettings",
        "Overrides",
    }
    assert all(isinstance(field.type, type | UnionType) or "tuple" in str(field.type) for _, field in FIELDS)


def test_settings_are_read_without_jax() -> None:
    code = "import sys, flax_wavlm.training.config; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0

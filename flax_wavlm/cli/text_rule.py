"""The flag that changes how texts are written: of `evaluate` and `train-lm`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from flax_wavlm.errors import UserError, did_you_mean

TEXT_FIELDS = ("preset", "case", "remove", "keep", "language", "unit")  # of data.text.TextRule
# How the library names what the flag sets.
TEXT_RULE_FIELDS = {f"text.{name}": f"--text_rule {name}" for name in TEXT_FIELDS}


def define_text_rule_flag(values: flags.FlagValues) -> None:
    """Defines --text_rule; `text_fields` takes its values."""
    flags.DEFINE_multi_string("text_rule", None, "", values)
    # absl would add a line about flags that may be repeated.
    values["text_rule"].help = f"FIELD=VALUE, of {', '.join(TEXT_FIELDS)}; repeatable."


def text_fields(settings: Sequence[str]) -> dict[str, str]:
    """Field to value, from "FIELD=VALUE"."""
    fields = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if name not in TEXT_FIELDS or not equals:
            raise UserError(
                field="--text_rule",
                found=setting,
                expected=f"FIELD=VALUE, with one of {', '.join(TEXT_FIELDS)}",
                do=did_you_mean(name, TEXT_FIELDS),
            )
        fields[name] = value
    return fields

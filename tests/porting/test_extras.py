"""flax_wavlm.json: written and read the same, and refused where it is damaged or later."""

from pathlib import Path

import pytest

from flax_wavlm.data.text import TextRule
from flax_wavlm.errors import UserError
from flax_wavlm.porting.extras import EXTRAS_FILE, Extras, TrainingSeconds, read_extras, write_extras


def test_written_and_read(tmp_path: Path) -> None:
    assert read_extras(tmp_path) == Extras(TextRule(), follows_vocabulary=True)
    seconds = TrainingSeconds.of([1.0] * 99 + [3.0])
    assert seconds == (1.0, 3.0)
    extras = Extras(TextRule(language="tr", keep="ş-"), False, seconds, temperature=1.5)
    write_extras(tmp_path, extras)
    assert read_extras(tmp_path) == extras
    assert extras.with_text({"case": None}) == extras
    changed = TextRule(case="upper", language="tr", keep="ş-")
    assert extras.with_text({"case": "upper"}) == Extras(changed, True, seconds, temperature=1.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "version is None"),
        ('{"version": 2}', "version is 2, expected at most 1; a later version"),
        ('{"version": 1, "text": 3}', "text is 3"),
        ('{"version": 1, "text": {"tone": 1}}', "tone"),
        ('{"version": 1, "text": {"case": 1}}', "text.case is 1"),
        ('{"version": 1, "text": {"preset": []}}', "text.preset"),
        ('{"version": 1, "text": {"follows_vocabulary": 1}}', "follows_vocabulary"),
        ('{"version": 1, "temperature": 0}', "temperature is 0, expected a number above 0"),
        ('{"version": 1, "temperature": NaN}', "temperature is nan"),
        ('{"version": 1, "training_seconds": {"usual": 3}}', "training_seconds is .*usual and longest"),
        ('{"version": 1, "training_seconds": {"usual": 3, "longest": 2}}', "training_seconds is"),
    ],
)
def test_unusable(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / EXTRAS_FILE).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_extras(tmp_path)
    assert EXTRAS_FILE in error.value.where

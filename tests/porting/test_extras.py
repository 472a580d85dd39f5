"""flax_wavlm.json: written and read the same, and refused where it is damaged or later."""

from pathlib import Path

import pytest

from flax_wavlm.data.text import TextRule
from flax_wavlm.errors import UserError
from flax_wavlm.porting.extras import EXTRAS_FILE, Extras, read_extras, write_extras


def test_written_and_read(tmp_path: Path) -> None:
    assert read_extras(tmp_path) == Extras(TextRule(), follows_vocabulary=True)
    extras = Extras(TextRule(language="tr", keep="ş-"), follows_vocabulary=False)
    write_extras(tmp_path, extras)
    assert read_extras(tmp_path) == extras
    assert extras.with_text({"case": None}) == extras
    assert extras.with_text({"case": "upper"}) == Extras(TextRule(case="upper", language="tr", keep="ş-"))


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
    ],
)
def test_unusable(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / EXTRAS_FILE).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_extras(tmp_path)
    assert EXTRAS_FILE in error.value.where

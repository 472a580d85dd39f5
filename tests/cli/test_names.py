"""Settings in the library's messages become the flags of the command."""

import pytest

from flax_wavlm.cli.app import COMMANDS
from flax_wavlm.cli.names import in_flags, text_in_flags
from flax_wavlm.errors import UserError

TRAIN, EVALUATE = COMMANDS["train"].fields, COMMANDS["evaluate"].fields


@pytest.mark.parametrize(
    ("text", "train", "evaluate"),
    [
        ("data.path is ''", "--config.data.path is ''", "--data is ''"),
        ("set data.path=FOLDER.", "set --config.data.path=FOLDER.", "set --data=FOLDER."),
        ("(data.corpus)", "(--config.data.corpus)", "(--corpus)"),
        ("see `data.hub_config`, now", "see `--config.data.hub_config`, now", "see `--hub_config`, now"),
        # A flag already: the library used to write them so.
        ("--config.data.path=x", "--config.data.path=x", "--data=x"),
        ("--config.data.pathos=x", "--config.data.pathos=x", "--config.data.pathos=x"),
        # Parts of longer names and of paths.
        ("/home/data.path/x", "/home/data.path/x", "/home/data.path/x"),
        ("my-data.path", "my-data.path", "my-data.path"),
        ("data.path.parent", "data.path.parent", "data.path.parent"),
        ("data.paths", "data.paths", "data.paths"),
        ("old.data.path", "old.data.path", "old.data.path"),
        # Not a flag of evaluate.
        ("train.steps is 0", "--config.train.steps is 0", "train.steps is 0"),
        # The longer of two names; words of English stay words.
        ("data.synthetic.seed", "--config.data.synthetic.seed", "data.synthetic.seed"),
        ("another seed and workdir", "another seed and workdir", "another seed and workdir"),
        ("lower batch_size", "lower batch_size", "lower --batch_size"),
        ("lower --batch_size", "lower --batch_size", "lower --batch_size"),
    ],
)
def test_text(text: str, train: str, evaluate: str) -> None:
    assert text_in_flags(text, TRAIN) == train
    assert text_in_flags(text, EVALUATE) == evaluate
    assert text_in_flags(train, TRAIN) == train  # twice is once
    assert text_in_flags(evaluate, EVALUATE) == evaluate
    assert text_in_flags(text, {}) == text


def test_parts_of_an_error() -> None:
    error = UserError(
        field="data.path", found="data.corpus", expected="data.corpus's folder", do="set data.path"
    )
    assert str(in_flags(error, TRAIN)) == (
        "--config.data.path is 'data.corpus', expected --config.data.corpus's folder; set --config.data.path"
    )
    assert str(in_flags(error, EVALUATE)) == "--data is 'data.corpus', expected --corpus's folder; set --data"


def test_field_whose_name_is_a_word() -> None:
    assert str(in_flags(UserError(field="seed", found=-1), TRAIN)) == "--config.seed is -1"
    assert str(in_flags(UserError(field="workdir", found=""), TRAIN)) == "--workdir is ''"
    # In a file it is the file's own field.
    inside = UserError(where="a.json", field="seed", found=-1)
    assert str(in_flags(inside, TRAIN)) == "a.json: seed is -1"
    assert str(in_flags(UserError("bad", where="data.path"), TRAIN)) == "data.path: bad"


def test_flags_of_the_commands_exist() -> None:
    for name, command in COMMANDS.items():
        known = {f"--{flag}" for flag in command.flags()}
        # "--text_rule case" is a flag and a part of its value.
        own = {flag.split()[0] for flag in command.fields.values() if not flag.startswith("--config.")}
        assert own <= known, name

"""What errors say, and the parts that other tests look at."""

import pytest

from flax_wavlm.errors import (
    UserError,
    cannot_read,
    cannot_write,
    did_you_mean,
    printable,
    reason,
    shown,
    some,
)


def test_message_is_made_of_its_parts() -> None:
    error = UserError(
        where="run.json", field="optim.eps", found=-1.0, expected="above 0", do="correct the file"
    )
    assert str(error) == "run.json: optim.eps is -1.0, expected above 0; correct the file"
    assert (error.field, error.found, error.do) == ("optim.eps", -1.0, "correct the file")


def test_problem_stands_in_for_a_field() -> None:
    error = UserError("holds no speech", found=["a", "b"], expected="clips")
    assert str(error) == "holds no speech, found 'a', 'b', expected clips"


def test_none_is_a_value_that_can_be_found() -> None:
    assert str(UserError(field="seed", found=None)) == "seed is None"


def test_error_in_another_place() -> None:
    error = UserError(where="config", field="dtype", found="int8").at("model/config.json")
    assert str(error) == "model/config.json: dtype is 'int8'"


def test_lists_are_cut_at_ten_with_a_count() -> None:
    assert some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert shown({"b", "a"}) == "'a', 'b'"
    assert shown([]) == "none"
    assert len(shown("x" * 10_000)) < 210


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("embedded null byte\nand more"), "embedded null byte"),
        (KeyError(), "KeyError"),
    ],
)
def test_reason(error: Exception, expected: str) -> None:
    assert reason(error) == expected


def test_the_systems_refusals() -> None:
    error = OSError(13, "Permission denied")
    assert str(cannot_read("a.wav", error)).startswith("a.wav: cannot be read (Permission denied); check")
    assert str(cannot_write("out", error)).startswith("out: cannot be written (Permission denied); see")


def test_did_you_mean() -> None:
    assert did_you_mean("learning_rat", ["learning_rate", "eps"]) == "did you mean 'learning_rate'?"
    assert did_you_mean("qqq", ["learning_rate"]) == ""


@pytest.mark.parametrize(
    "where", ["a\nb.wav", "a\x1b[31mb.wav", "a\x85b", "a\u2028b", "a\u202eb", "a\udcffb"]
)
def test_message_is_on_one_line_and_no_terminal_obeys_it(where: str) -> None:
    for error in (UserError("is damaged", where=where), UserError("is damaged").at(where)):
        assert error.where == where  # for programs
        assert str(error) == f"{printable(where)}: is damaged"
        assert str(error).isprintable()
    assert str(UserError(f"no split {where}", do=where)).isprintable()


def test_sentences_of_several_lines_are_folded() -> None:
    assert str(UserError("two\nlines", where="a\nb", do="\x1b[31mgo")) == "a\\nb: two lines; \\x1b[31mgo"

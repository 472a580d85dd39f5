"""The library names settings ("data.path"); a command line has flags ("--config.data.path", "--data")."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flax_wavlm.errors import UserError


def in_flags(error: UserError, flags: Mapping[str, str]) -> UserError:
    """The error with every setting that it names written as the flag that sets it.

    A setting that the user cannot reach by a flag keeps its name. The values found stay as they are.
    """
    name = flags.get(error.field, error.field) if not error.where else error.field
    return UserError(
        text_in_flags(error.problem, flags),
        where=error.where,
        field=text_in_flags(name, flags),
        found=error.found,
        expected=text_in_flags(error.expected, flags),
        do=text_in_flags(error.do, flags),
    )


def text_in_flags(text: str, flags: Mapping[str, str]) -> str:
    """The text with every name of a setting written as its flag.

    A name counts where it stands alone: not within a longer name, a path or a flag. A setting whose name is
    an English word ("seed", "workdir") is left alone, since a text may mean the word.
    """
    names = [re.escape(name) for name in flags if not name.isalpha()]
    if not names:
        return text
    name = "|".join(sorted(names, key=len, reverse=True))
    alone = rf"(?<![\w./-])(?:--config\.|--)?({name})(?!\w|\.\w)"
    return re.sub(alone, lambda match: flags[match[1]], text)

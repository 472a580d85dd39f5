"""The one error type that bad input ends in."""


class UserError(Exception):
    """Something the user gave cannot be used: a file, a folder, a configuration, a checkpoint.

    The message is for the user alone, no traceback needed: it names the file or field, the value found,
    what was expected, and what to do next. Scripts print it and exit with status 2.
    """

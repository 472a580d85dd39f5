"""How a run ends early: bad input, or a request to stop."""


class UserError(Exception):
    """Something the user gave cannot be used: a file, a folder, a configuration, a checkpoint.

    The message is for the user alone, no traceback needed: it names the file or field, the value found,
    what was expected, and what to do next. Scripts print it and exit with status 2.
    """


class Preempted(Exception):
    """The run was asked to stop (SIGTERM, or a preemption notice), and has saved all it did.

    The same command goes on from there. Scripts print the message and exit with status 75, which is
    sysexits.h's EX_TEMPFAIL: "try again later".
    """

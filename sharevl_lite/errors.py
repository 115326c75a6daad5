"""What tells a user's mistake from a fault of ours: its class."""


class UserError(ValueError):
    """What was asked for cannot be done. The message says what, where and what to do.

    The command line prints the message alone and exits with code 2; any other exception keeps its trace.
    """

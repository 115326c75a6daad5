"""What tells a user's mistake from a fault of ours: its class. And what others' errors say, for such a message."""

INSTALL_GPU = "in an environment of its own, pip install 'sharevl-lite[gpu]' (in a checkout '.[gpu]')"
"""Takes versions of vLLM and Unsloth that go together with the rest, and another torch than constraints.txt."""
INSTALL_UNSLOTH = INSTALL_GPU.replace("[gpu]", "[unsloth]")
"""The same without vLLM."""


class UserError(ValueError):
    """What was asked for cannot be done. The message says what, where and what to do.

    The command line prints the message alone and exits with code 2; any other exception keeps its trace.
    """


class ToldError(UserError):
    """A mistake that one of several processes met and has told, so that the command line prints it no more.

    All of them raise it, at the same place.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def in_one_line(error: BaseException) -> str:
    """All that an error says as one line, or its type's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__

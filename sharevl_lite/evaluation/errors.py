"""What a user of `sharevl-lite eval` can get wrong."""

from sharevl_lite.errors import UserError


class EvaluationError(UserError):
    """An evaluation cannot start, be read or be compared. The message says what, where and what to do."""

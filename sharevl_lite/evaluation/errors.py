"""What a user of `sharevl-lite eval` can get wrong."""


class EvaluationError(ValueError):
    """An evaluation cannot start, be read or be compared. The message says what, where and what to do."""

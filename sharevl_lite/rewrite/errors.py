"""What a user of `sharevl-lite variants` can get wrong."""


class VariantsError(ValueError):
    """Rewriting cannot start or go on. The message says what, where and what to do."""

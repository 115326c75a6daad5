"""What a user of `sharevl-lite variants` can get wrong."""

from sharevl_lite.errors import UserError


class VariantsError(UserError):
    """Rewriting cannot start or go on. The message says what, where and what to do."""

"""What a user of `sharevl-lite export` can get wrong, or must know."""

from __future__ import annotations

from sharevl_lite.errors import UserError


class ExportError(UserError):
    """An export that cannot start, or is not what it should be. The message says what, where and what to do."""

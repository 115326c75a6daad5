"""What can go wrong with an engine that the user can put right."""

from __future__ import annotations

from sharevl_lite.errors import UserError


class RolloutError(UserError):
    """An engine that cannot start or sample as asked, with what to do about it."""

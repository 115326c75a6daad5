"""What a user can mend about a model."""

from __future__ import annotations

from sharevl_lite.errors import UserError


class PolicyError(UserError):
    """A model that cannot be loaded or used, with what to do about it."""

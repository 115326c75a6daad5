"""What can go wrong with an engine that the user can put right."""

from __future__ import annotations


class RolloutError(ValueError):
    """An engine that cannot start or sample as asked, with what to do about it."""

"""What a user can mend about a model."""

from __future__ import annotations


class PolicyError(ValueError):
    """A model that cannot be loaded or used, with what to do about it."""

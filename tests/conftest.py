"""Lying here, it makes `tiny_models` importable from every test; it loads nothing itself."""

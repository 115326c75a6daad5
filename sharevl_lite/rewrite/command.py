"""The command's options, checked, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import VariantsError
from .make import REPORT, Settings, make_variants


def run(options: argparse.Namespace, unknown: list[str]) -> None:
    """Make variants, or print a report. Raises VariantsError for options that do not fit together."""
    if unknown:
        raise VariantsError(f"variants: unknown option {unknown[0]}; see sharevl-lite variants --help")
    if options.report is not None:
        try:
            print((Path(options.report) / REPORT).read_text("utf-8"))
        except OSError as error:
            raise VariantsError(f"--report {options.report}: no report there ({error.strerror})") from error
        return
    if options.data is None or options.out is None:
        raise VariantsError("variants: give DATA and --out DIR, or --report DIR")
    for name in ("num", "concurrency", "timeout", "limit"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            raise VariantsError(f"--{name}: must be above 0, not {getattr(options, name)}")
    settings = Settings(
        data=options.data,
        rewriter=options.rewriter,
        model=options.model,
        base_url=options.base_url,
        num=options.num,
        seed=options.seed,
        split=options.split,
        limit=options.limit,
        on_bad_row=options.on_bad_row,
        columns=_columns(options.columns),
    )
    cache = Path(options.cache) if options.cache else None
    manifest = make_variants(
        settings, Path(options.out), cache=cache, concurrency=options.concurrency, timeout=options.timeout
    )
    counts = manifest["counts"]
    print(
        f"{options.out}: {counts['problems']} problems, {counts['accepted']} rewrites accepted, {counts['rejected']} "
        f"rejected, {counts['without']} problems without any; see {Path(options.out) / REPORT}"
    )


def _columns(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(key.strip() and sign and value.strip() for key, sign, value in pairs):
        raise VariantsError(f"--columns {text!r}: write it as problem=question,answer=label")
    return {key.strip(): value.strip() for key, _, value in pairs}

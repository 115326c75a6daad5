"""The command's options, checked, and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from sharevl_lite.data.sources import count_rows
from sharevl_lite.progress import shown_progress
from sharevl_lite.rewrite.check import TEMPLATE
from sharevl_lite.rewrite.errors import VariantsError
from sharevl_lite.rewrite.make import REPORT, make_variants
from sharevl_lite.rewrite.settings import Settings


def run(options: argparse.Namespace, unknown: list[str]) -> bool:
    """Make variants, or print a report; false where requests failed for good, which is said.

    Raises VariantsError for options that do not fit together.
    """
    if unknown:
        raise VariantsError(f"variants: unknown option {unknown[0]}; see sharevl-lite variants --help")
    if options.report is not None:
        _print_report(options.report)
        return True
    if options.data is None or options.out is None:
        raise VariantsError("variants: give DATA and --out DIR, or --report DIR")
    for name in ("num", "concurrency", "timeout", "limit", "max_tokens", "check_samples"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            raise VariantsError(f"--{name.replace('_', '-')}: must be above 0, not {getattr(options, name)}")
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
        max_tokens=options.max_tokens,
        check=options.check_with,
        check_model=options.check_model,
        check_base_url=options.check_base_url,
        check_samples=options.check_samples,
        check_template=options.check_template or TEMPLATE,
    )
    if options.cache and options.rewriter == "rules" and options.check_with is None:
        raise VariantsError("--cache holds the replies of a model; --with rules asks none")
    cache = Path(options.cache) if options.cache else None
    with shown_progress("rewritten", _number_of_problems(settings)) as progress:
        manifest = make_variants(
            settings,
            Path(options.out),
            cache=cache,
            concurrency=options.concurrency,
            timeout=options.timeout,
            progress=progress,
        )
    counts = manifest["counts"]
    print(
        f"{options.out}: {counts['problems']} problems, {counts['accepted']} rewrites accepted, {counts['rejected']} "
        f"rejected, {counts['without']} problems without any; see {Path(options.out) / REPORT}"
    )
    if counts["accepted"] == 0:
        print("no problem has a rewrite: trained on this, variants differ by their images alone")
    if manifest["failed"]:
        print(_incomplete(options.out, manifest["failed"]), file=sys.stderr)
    return not manifest["failed"]


def _number_of_problems(settings: Settings) -> int | None:
    """At most so many; None where only reading them all would tell."""
    known = [number for number in (count_rows(settings.data, settings.split), settings.limit) if number is not None]
    return min(known, default=None)


def _print_report(folder: str) -> None:
    try:
        print((Path(folder) / REPORT).read_text("utf-8"))
    except OSError as error:
        raise VariantsError(f"--report {folder}: no report there ({error.strerror})") from error


def _incomplete(out: str, failed: list[dict[str, str]]) -> str:
    reasons = Counter(entry["reason"] for entry in failed)
    names = ", ".join(entry["id"] for entry in failed[:10]) + (", …" if len(failed) > 10 else "")
    told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(5))
    return (
        f"NOT COMPLETE: {out} lacks rewrites of {len(failed)} problems whose requests failed for good: {names}\n"
        f"reasons: {told}\n"
        "Run the same command again: it asks for these alone, all other replies are kept."
    )


def _columns(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(key.strip() and sign and value.strip() for key, sign, value in pairs):
        raise VariantsError(f"--columns {text!r}: write it as problem=question,answer=label")
    return {key.strip(): value.strip() for key, _, value in pairs}

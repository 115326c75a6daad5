"""The command's options, checked, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from sharevl_lite.config import DataSection

from .errors import VariantsError
from .make import REPORT, Means, Settings, make_variants


def run(options: argparse.Namespace, unknown: list[str]) -> bool:
    """Make variants, or print a report; whether every problem had its replies.

    Raises VariantsError for options that do not fit together.
    """
    if unknown:
        raise VariantsError(f"variants: unknown option {unknown[0]}; see sharevl-lite variants --help")
    if options.report is not None:
        try:
            print((Path(options.report) / REPORT).read_text("utf-8"))
        except OSError as error:
            raise VariantsError(f"--report {options.report}: no report there ({error.strerror})") from error
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
        check_template=_template(options.check_prompt),
    )
    cache = Path(options.cache) if options.cache else None
    manifest = make_variants(settings, Path(options.out), Means(cache, options.concurrency, options.timeout))
    counts = manifest["counts"]
    print(
        f"{options.out}: {counts['problems']} problems, {counts['accepted']} rewrites accepted, {counts['rejected']} "
        f"rejected, {counts['without']} problems without any; see {Path(options.out) / REPORT}"
    )
    if counts["failed"]:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in manifest["failed_by"].items())
        print(
            f"{counts['failed']} problems had no reply and stand there without rewrites: {reasons}. Run the same "
            "command again to ask those, and only those"
        )
    return not counts["failed"]


def _template(text: str | None) -> str:
    if text is None:
        return Settings.check_template
    try:
        DataSection(prompt_template=text)
    except ValueError as error:
        raise VariantsError(f"--check-prompt {text!r}: it must hold {{problem}} once; double other braces") from error
    return text


def _columns(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(key.strip() and sign and value.strip() for key, sign, value in pairs):
        raise VariantsError(f"--columns {text!r}: write it as problem=question,answer=label")
    return {key.strip(): value.strip() for key, _, value in pairs}

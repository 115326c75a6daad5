"""`sharevl-lite variants`: problems in, the same problems with filtered rewrites out.

Problems are read, rewritten and written one after another through a short window: memory does not grow with the data.
The folder appears under its name only when it is whole; what was paid for before a kill is in the cache beside it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sharevl_lite.atomic import publish_directory, remove_stale_temporaries, temporary_beside, write_atomically
from sharevl_lite.config import ColumnNames, DataSection
from sharevl_lite.data.errors import BadRow, require_some
from sharevl_lite.data.images import ImageReader
from sharevl_lite.data.loading import iterate_problems
from sharevl_lite.data.problem import Problem

from .cache import ReplyCache
from .errors import VariantsError
from .filters import sift
from .output import ProblemWriter, counted
from .replies import INSTRUCTION
from .report import Report
from .rules import RulesRewriter

MANIFEST, REPORT = "manifest.json", "report.md"
REMEMBERED_IMAGES = 256


@dataclass(frozen=True)
class Settings:
    """What decides the output; two runs with equal settings write the same folder."""

    data: str
    rewriter: str = "rules"
    model: str | None = None
    base_url: str | None = field(default=None, repr=False)
    num: int = 4
    seed: int = 0
    split: str = "train"
    limit: int | None = None
    on_bad_row: str = "stop"
    columns: dict[str, str] = field(default_factory=dict)

    def recorded(self) -> dict[str, Any]:
        """The settings as the manifest keeps them: the address without credentials, local files with size and time."""
        from .endpoint import without_credentials

        settings = asdict(self)
        if self.base_url is not None:
            settings["base_url"] = without_credentials(self.base_url)
        source = Path(self.data).expanduser()
        files = sorted(source.rglob("*")) if source.is_dir() else [source] if source.is_file() else []
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        settings["source_state"] = hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16] if stats else None
        return settings


Rewrite = Callable[[Problem], Awaitable[list[str]]]


def make_variants(
    settings: Settings,
    out: Path,
    *,
    cache: Path | None = None,
    concurrency: int = 8,
    timeout: float = 120.0,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Writes `out` and returns its manifest; where `out` was written with equal settings already, nothing is done.

    Raises:
        VariantsError: `out` is in the way, or the rewriter cannot go on.
        DataError: The source or, under `stop`, a row of it is bad.
    """
    recorded = settings.recorded()
    if out.exists():
        return _existing(out, recorded, say)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(out.parent)
    temporary = temporary_beside(out)
    temporary.mkdir()
    try:
        manifest = asyncio.run(_run(settings, recorded, out, temporary, cache, concurrency, timeout, say))
        publish_directory(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _existing(out: Path, recorded: dict[str, Any], say: Callable[[str], object]) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text("utf-8"))
        there = manifest["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise VariantsError(f"--out {out}: exists and is no folder of ours; give another name or remove it") from error
    if there != recorded:
        names = [name for name in recorded if recorded[name] != there.get(name)]
        raise VariantsError(
            f"--out {out}: was written with other settings ({', '.join(names)} differ); give another name or remove it"
        )
    say(f"{out} is complete already, with the same settings")
    return manifest


async def _run(
    settings: Settings,
    recorded: dict[str, Any],
    out: Path,
    folder: Path,
    cache: Path | None,
    concurrency: int,
    timeout: float,
    say: Callable[[str], object],
) -> dict[str, Any]:
    started = time.monotonic()
    skipped: list[BadRow] = []
    counts: Counter[str] = Counter()
    rejections: Counter[str] = Counter()
    report = Report(folder)
    writer = ProblemWriter(folder / "parts")
    rewrite, cost, close = _rewriter(settings, cache or out.with_name(f"{out.name}.cache.sqlite"), concurrency, timeout)
    try:
        async for problem, texts in _in_order(_problems(settings, skipped, say), rewrite, 2 * concurrency):
            accepted, rejected = sift(problem.text, texts, problem.answer)
            accepted, spare = accepted[: settings.num], len(accepted[settings.num :])
            counts.update(problems=1, offered=len(texts), accepted=len(accepted), rejected=len(rejected), spare=spare)
            counts["short"] += len(accepted) < settings.num
            counts["without"] += not accepted
            rejections.update(reason for _, reason in rejected)
            report.add(problem, accepted, rejected)
            writer.add(problem, accepted)
    finally:
        close()
    require_some(settings.data, counts["problems"], skipped)
    (folder / "data").mkdir()
    writer.finish(folder / "data" / f"{settings.split}-00000-of-00001.parquet")
    manifest = {
        "settings": recorded,
        "prompt_sha256": hashlib.sha256(INSTRUCTION.encode()).hexdigest() if settings.rewriter != "rules" else None,
        "counts": dict(counts),
        "rejected_by": counted(rejections),
        "bad_rows_skipped": len(skipped),
        "columns_as_json": sorted(writer.as_json),
        "cost": {**cost(), "wall_seconds": round(time.monotonic() - started, 2)},
    }
    write_atomically(folder / REPORT, report.text(manifest).encode())
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    return manifest


def _problems(settings: Settings, skipped: list[BadRow], say: Callable[[str], object]) -> Iterator[Problem]:
    names = dict(settings.columns)
    choices = names.pop("choices", None)
    unknown = sorted(set(names) - set(ColumnNames.model_fields))
    if unknown:
        known = ", ".join([*ColumnNames.model_fields, "choices"])
        raise VariantsError(f"--columns: there is no {', '.join(unknown)}; there are {known}")
    section = DataSection(columns=ColumnNames(**names), on_bad_row=settings.on_bad_row)
    rows = iterate_problems(
        settings.data,
        section,
        split=settings.split,
        skipped=skipped,
        images=ImageReader(REMEMBERED_IMAGES),
        choices=choices,
        on_layout=lambda where, layout: say(f"{where}: columns {layout.name}"),
    )
    for number, (_, problem) in enumerate(rows):
        if settings.limit is not None and number >= settings.limit:
            return
        yield problem


def _rewriter(
    settings: Settings, cache: Path, concurrency: int, timeout: float
) -> tuple[Rewrite, Callable[[], dict[str, Any]], Callable[[], None]]:
    """How to rewrite, what it has cost, and how to end it. More texts are asked for than wanted: some are rejected."""
    if settings.rewriter == "rules":
        rules = RulesRewriter(settings.seed)

        async def by_rules(problem: Problem) -> list[str]:
            return rules.rewrite(problem.text, settings.num + 2)

        return by_rules, lambda: {"requests": 0}, lambda: None
    if settings.rewriter != "openai":
        raise VariantsError(f"--with {settings.rewriter}: there are rules and openai")
    if not settings.base_url or not settings.model:
        raise VariantsError("--with openai needs --base-url (such as http://localhost:8000/v1) and --model")
    from .endpoint import EndpointRewriter

    base = ReplyCache(cache)
    endpoint = EndpointRewriter(
        settings.base_url, settings.model, base, seed=settings.seed, concurrency=concurrency, timeout=timeout
    )
    return (
        lambda problem: endpoint.rewrite(problem, settings.num + 2),
        lambda: {**counted(endpoint.usage), "model_seconds": round(endpoint.seconds, 2)},
        base.close,
    )


async def _in_order(problems: Iterator[Problem], rewrite: Rewrite, window: int) -> Any:
    """(problem, rewrites) in the order of the data, `window` of them under way."""
    waiting: deque[tuple[Problem, asyncio.Task[list[str]]]] = deque()
    try:
        for problem in problems:
            waiting.append((problem, asyncio.ensure_future(rewrite(problem))))
            if len(waiting) >= window:
                first, task = waiting.popleft()
                yield first, await task
        while waiting:
            first, task = waiting.popleft()
            yield first, await task
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)

"""`sharevl-lite variants`: problems in, the same problems with filtered rewrites out.

Problems are read, rewritten and written one after another through a short window: memory does not grow with the data.
The folder appears under its name only when it is whole; what was paid for before a kill is in the cache beside it.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sharevl_lite import event_loop
from sharevl_lite.atomic import (
    publish_directory,
    remove_leftovers,
    staged,
    write_atomically,
    write_json,
)
from sharevl_lite.config import ColumnNames, DataSection
from sharevl_lite.data.errors import BadRow, require_some
from sharevl_lite.data.images import ImageReader
from sharevl_lite.data.layouts import Layout
from sharevl_lite.data.loading import iterate_problems
from sharevl_lite.data.problem import Problem
from sharevl_lite.data.sources import OWN_DATA, OWN_MANIFEST
from sharevl_lite.rewrite.cache import ReplyCache
from sharevl_lite.rewrite.chat import CachedChat
from sharevl_lite.rewrite.check import SolverCheck
from sharevl_lite.rewrite.errors import VariantsError
from sharevl_lite.rewrite.filters import sift
from sharevl_lite.rewrite.models import ModelRoom
from sharevl_lite.rewrite.output import ProblemWriter, largest_first
from sharevl_lite.rewrite.replies import INSTRUCTION
from sharevl_lite.rewrite.report import Report
from sharevl_lite.rewrite.rewriters import ModelRewriter, Rewriter, RulesRewriter
from sharevl_lite.rewrite.settings import Settings

REPORT = "report.md"
REMEMBERED_IMAGES = 256


@dataclass(frozen=True)
class Outcome:
    """What became of one problem."""

    accepted: list[str]
    rejected: list[tuple[str, str]]
    offered: int
    failed: str | None


Work = Callable[[Problem], Awaitable[Outcome]]


def make_variants(
    settings: Settings,
    out: Path,
    *,
    cache: Path | None = None,
    concurrency: int | None = None,
    timeout: float = 120.0,
    say: Callable[[str], object] = print,
    progress: Callable[[int], object] = lambda problems: None,
) -> dict[str, Any]:
    """Writes `out` and returns its manifest.

    Where `out` was written with equal settings already, nothing is done, unless requests had failed: then it is written
    anew, and with the cache only those are asked for. `say` gets what is to be read meanwhile; `progress` is called as
    problems are done, with their number.

    Raises:
        VariantsError: `out` is in the way, or the rewriter cannot go on.
        DataError: The source or, under `stop`, a row of it is bad.
    """
    settings.validate()
    recorded = settings.recorded()
    cache = cache or out.with_name(f"{out.name}.cache.sqlite")
    there = out.exists()
    if there:
        manifest = _existing(out, recorded)
        if not manifest.get("failed"):
            remove_leftovers(out)  # a kill may have come right after the folder got its name
            say(f"{out} is complete already, with the same settings")
            return manifest
        if not cache.is_file():
            raise VariantsError(
                f"--out {out}: {len(manifest['failed'])} problems are to be asked again, but the replies to the others "
                f"are gone ({cache} is no file); name their file with --cache, or remove {out} to ask for all of them"
            )
        say(f"{out}: asking again for {len(manifest['failed'])} problems whose requests had failed")
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(staged(out))
        except OSError as error:
            raise VariantsError(f"--out {out}: cannot be written ({error}); name another folder") from error
        manifest = event_loop.run(_run(settings, recorded, temporary, cache, concurrency, timeout, say, progress))
        publish_directory(temporary, out, replace=there)
    return manifest


def _existing(out: Path, recorded: dict[str, Any]) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((out / OWN_MANIFEST).read_text("utf-8"))
        there = manifest["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise VariantsError(f"--out {out}: exists and is no folder of ours; give another name or remove it") from error
    if there != recorded:
        names = [name for name in recorded if recorded[name] != there.get(name)]
        raise VariantsError(
            f"--out {out}: was written with other settings ({', '.join(names)} differ); give another name or remove it"
        )
    return manifest


async def _run(
    settings: Settings,
    recorded: dict[str, Any],
    folder: Path,
    cache: Path,
    concurrency: int | None,
    timeout: float,
    say: Callable[[str], object],
    progress: Callable[[int], object],
) -> dict[str, Any]:
    started = time.monotonic()
    skipped: list[BadRow] = []
    counts: Counter[str] = Counter()
    rejections: Counter[str] = Counter()
    failed: list[dict[str, str]] = []
    report = Report(folder)
    writer = ProblemWriter(folder / "parts")
    room = ModelRoom(concurrency=concurrency, timeout=timeout, max_tokens=settings.max_tokens)
    async with _workers(settings, room, cache) as (rewriter, check):
        sources = [source for source in (settings.rewriting, settings.checking) if source is not None]
        window = 2 * max((room.slots(source) for source in sources), default=8)
        work = partial(_work, settings, rewriter, check)
        async with aclosing(_in_order(_problems(settings, skipped, say), work, window)) as outcomes:
            async for problem, outcome in outcomes:
                _count(outcome, settings.num, counts)
                rejections.update(reason for _, reason in outcome.rejected)
                if outcome.failed is not None:
                    failed.append({"id": problem.id, "reason": outcome.failed})
                report.add(problem, outcome.accepted, outcome.rejected)
                writer.add(problem, outcome.accepted)
                progress(1)
        cost = {**rewriter.cost(), **(check.cost() if check is not None else {})}
    require_some(settings.data, counts["problems"], skipped)
    (folder / OWN_DATA).mkdir()
    writer.finish(folder / OWN_DATA / f"{settings.split}-00000-of-00001.parquet")
    manifest = {
        "settings": recorded,
        "prompt_sha256": hashlib.sha256(INSTRUCTION.encode()).hexdigest() if settings.rewriter != "rules" else None,
        "counts": {**counts, "failed": len(failed)},
        "rejected_by": largest_first(rejections),
        "check": None if check is None else largest_first(check.counts),
        "failed": failed,
        "bad_rows_skipped": len(skipped),
        "columns_as_json": sorted(writer.as_json),
        "cost": {**cost, "wall_seconds": round(time.monotonic() - started, 2)},
    }
    write_atomically(folder / REPORT, report.text(manifest).encode())
    write_json(folder / OWN_MANIFEST, manifest, indent=2)
    return manifest


def _count(outcome: Outcome, wanted: int, counts: Counter[str]) -> None:
    accepted, rejected = len(outcome.accepted), len(outcome.rejected)
    counts.update(problems=1, offered=outcome.offered, accepted=accepted, rejected=rejected)
    counts["spare"] += outcome.offered - accepted - rejected
    counts["short"] += accepted < wanted
    counts["without"] += not accepted


async def _work(settings: Settings, rewriter: Rewriter, check: SolverCheck | None, problem: Problem) -> Outcome:
    """One problem's way: more rewrites than wanted are asked for, since filters and check reject some."""
    offer = await rewriter.rewrite(problem, settings.num + 2)
    accepted, rejected = sift(problem.text, offer.texts, problem.answer)
    if check is None:
        return Outcome(accepted[: settings.num], rejected, len(offer.texts), offer.failed)
    checked = await check.check(problem, accepted, settings.num)
    return Outcome(checked.accepted, rejected + checked.rejected, len(offer.texts), offer.failed or checked.failed)


@asynccontextmanager
async def _workers(
    settings: Settings, room: ModelRoom, cache: Path
) -> AsyncIterator[tuple[Rewriter, SolverCheck | None]]:
    """The rewriter and the check; the models, the cache and the verifiers end with them."""
    from sharevl_lite.config import RewardSection
    from sharevl_lite.rewards import VerifierPool

    rewriting, checking = settings.rewriting, settings.checking
    replies = ReplyCache(cache) if rewriting or checking else None
    usual = RewardSection()
    try:
        with VerifierPool(usual.workers, usual.timeout_seconds) as pool:
            rewriter: Rewriter = RulesRewriter(settings.seed)
            check = None
            if rewriting is not None and replies is not None:
                chat = CachedChat(room.open(rewriting), replies)
                rewriter = ModelRewriter(chat, seed=settings.seed, max_tokens=settings.max_tokens)
            if checking is not None and replies is not None:
                check = SolverCheck(
                    CachedChat(room.open(checking), replies),
                    pool,
                    samples=settings.check_samples,
                    seed=settings.seed,
                    template=settings.check_template,
                    max_tokens=settings.max_tokens,
                )
            yield rewriter, check
    finally:
        await room.close()
        if replies is not None:
            replies.close()


def _problems(settings: Settings, skipped: list[BadRow], say: Callable[[str], object]) -> Iterator[Problem]:
    names: dict[str, str | None] = dict(settings.columns)
    if names.get("choices") == "null":
        names["choices"] = None
    unknown = sorted(set(names) - set(ColumnNames.model_fields))
    if unknown:
        known = ", ".join(ColumnNames.model_fields)
        raise VariantsError(f"--columns: there is no {', '.join(unknown)}; there are {known}")
    section = DataSection(columns=ColumnNames.model_validate(names), on_bad_row=settings.on_bad_row)
    rows = iterate_problems(
        settings.data,
        section,
        split=settings.split,
        skipped=skipped,
        images=ImageReader(REMEMBERED_IMAGES),
        on_layout=lambda where, layout: say(f"{where}: columns {_as(layout.name)}{_on_options(layout)}"),
    )
    for _, problem in itertools.islice(rows, settings.limit):  # a row behind the limit is not read
        yield problem


def _as(layout: str) -> str:
    return layout if layout.startswith("as ") else f"as of {layout}"


def _on_options(layout: Layout) -> str:
    choices = layout.columns.choices
    return "" if choices is None else f"; options of column {choices!r} below each question"


async def _in_order(
    problems: Iterator[Problem], work: Work, window: int
) -> AsyncGenerator[tuple[Problem, Outcome], None]:
    """(problem, outcome) in the order of the data, `window` of them under way."""
    waiting: deque[tuple[Problem, asyncio.Future[Outcome]]] = deque()
    try:
        for problem in problems:
            waiting.append((problem, asyncio.ensure_future(work(problem))))
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

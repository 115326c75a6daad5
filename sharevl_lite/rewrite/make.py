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
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sharevl_lite.atomic import publish_directory, remove_stale_temporaries, temporary_beside, write_atomically
from sharevl_lite.config import ColumnNames, DataSection, RewardSection
from sharevl_lite.data.errors import BadRow, require_some
from sharevl_lite.data.images import ImageReader
from sharevl_lite.data.loading import iterate_problems
from sharevl_lite.data.problem import Problem
from sharevl_lite.rewards.pool import VerifierPool

from .cache import ReplyCache
from .chat import CachedChat
from .check import SolverCheck
from .errors import VariantsError
from .filters import sift
from .fingerprint import fingerprint
from .models import ModelRoom, ModelSource
from .output import ProblemWriter, counted
from .replies import INSTRUCTION
from .report import Report
from .rewriters import ModelRewriter, Rewriter, Rewrites, RulesRewriter

MANIFEST, REPORT = "manifest.json", "report.md"
REMEMBERED_IMAGES = 256


@dataclass(frozen=True)
class Settings:
    """What decides the output; two runs with equal settings write the same folder.

    `rewriter` and `check` are `openai`, `hf:MODEL` or `vllm:MODEL`, the first also `rules`; `base_url` and `model`
    belong to `openai`. `check_template` is the prompt of the solver check with `{problem}` in it.
    """

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
    max_tokens: int = 2048
    check: str | None = None
    check_model: str | None = None
    check_base_url: str | None = field(default=None, repr=False)
    check_samples: int = 4
    check_template: str = DataSection().prompt_template

    def recorded(self) -> dict[str, Any]:
        """The settings as the manifest keeps them: addresses without credentials, local files with size and time."""
        from .endpoint import without_credentials

        settings = asdict(self)
        for name in ("base_url", "check_base_url"):
            if settings[name] is not None:
                settings[name] = without_credentials(settings[name])
        return {**settings, "source_state": fingerprint(self.data)}


@dataclass(frozen=True)
class Means:
    """What does not decide the output. `concurrency` None: by the model; `timeout` in seconds for one request."""

    cache: Path | None = None
    concurrency: int | None = None
    timeout: float = 120.0
    say: Callable[[str], object] = print


def make_variants(settings: Settings, out: Path, means: Means | None = None) -> dict[str, Any]:
    """Writes `out` and returns its manifest.

    Where `out` was written with equal settings already, only problems whose requests had no reply then are asked again;
    without such problems nothing is done.

    Raises:
        VariantsError: `out` is in the way, or the rewriter cannot go on.
        DataError: The source or, under `stop`, a row of it is bad.
    """
    means = means or Means()
    recorded = settings.recorded()
    cache = means.cache or out.with_name(f"{out.name}.cache.sqlite")
    if out.exists():
        manifest = _existing(out, recorded)
        failed = manifest["counts"].get("failed", 0)
        if not failed:
            means.say(f"{out} is complete already, with the same settings")
            return manifest
        if not cache.is_file():
            raise VariantsError(
                f"--out {out}: {failed} problems had no reply, and {cache}, which keeps the replies of the others, is "
                "gone: all would be paid for again. Give that file with --cache, or another --out"
            )
        means.say(f"{out}: asking {failed} problems again whose requests had no reply")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(out.parent)
    temporary = temporary_beside(out)
    temporary.mkdir()
    try:
        manifest = asyncio.run(_run(settings, recorded, temporary, cache, means))
        publish_directory(temporary, out, replace=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _existing(out: Path, recorded: dict[str, Any]) -> dict[str, Any]:
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
    return manifest


@dataclass
class _Tools:
    """Rewriter and solver check of a run, and what must be closed behind them."""

    rewriter: Rewriter
    check: SolverCheck | None
    window: int
    room: ModelRoom
    cache: ReplyCache | None

    async def close(self) -> None:
        await self.room.close()
        if self.check is not None:
            self.check.close()
        if self.cache is not None:
            self.cache.close()


@dataclass(frozen=True)
class _Made:
    """A problem with what became of its rewrites; `failed` where a request had no reply."""

    problem: Problem
    offered: int
    accepted: list[str]
    rejected: list[tuple[str, str]]
    failed: str | None


async def _run(settings: Settings, recorded: dict[str, Any], folder: Path, cache: Path, means: Means) -> dict[str, Any]:
    started = time.monotonic()
    skipped: list[BadRow] = []
    counts, rejections, failures = Counter[str](), Counter[str](), Counter[str]()
    report = Report(folder)
    writer = ProblemWriter(folder / "parts")
    tools = _tools(settings, cache, means)
    try:
        async for made in _in_order(_problems(settings, skipped, means.say), settings, tools):
            accepted, spare = made.accepted[: settings.num], len(made.accepted[settings.num :])
            counts.update(problems=1, offered=made.offered, accepted=len(accepted), spare=spare)
            counts.update(rejected=len(made.rejected), failed=made.failed is not None)
            counts.update(short=len(accepted) < settings.num, without=not accepted)
            rejections.update(reason for _, reason in made.rejected)
            failures.update([made.failed] if made.failed is not None else [])
            report.add(made.problem, accepted, made.rejected)
            writer.add(made.problem, accepted)
    finally:
        await tools.close()
    require_some(settings.data, counts["problems"], skipped)
    (folder / "data").mkdir()
    writer.finish(folder / "data" / f"{settings.split}-00000-of-00001.parquet")
    cost = tools.rewriter.cost()
    if tools.check is not None:
        cost |= {f"check: {name}": value for name, value in tools.check.cost().items()}
    manifest = {
        "settings": recorded,
        "prompt_sha256": hashlib.sha256(INSTRUCTION.encode()).hexdigest() if settings.rewriter != "rules" else None,
        "counts": dict(counts),
        "rejected_by": counted(rejections),
        "failed_by": counted(failures),
        "bad_rows_skipped": len(skipped),
        "columns_as_json": sorted(writer.as_json),
        "cost": {**cost, "wall_seconds": round(time.monotonic() - started, 2)},
    }
    write_atomically(folder / REPORT, report.text(manifest).encode())
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    return manifest


def _tools(settings: Settings, cache: Path, means: Means) -> _Tools:
    """Raises VariantsError for a rewriter or solver that there is not."""
    room = ModelRoom(concurrency=means.concurrency, timeout=means.timeout, max_tokens=settings.max_tokens)
    asked: dict[str, ModelSource] = {}
    if settings.rewriter != "rules":
        asked["with"] = ModelSource("--with", settings.rewriter, settings.base_url, settings.model)
    if settings.check is not None:
        asked["check"] = ModelSource("--check-with", settings.check, settings.check_base_url, settings.check_model)
    models = {name: room.open(source) for name, source in asked.items()}
    base = ReplyCache(cache) if models else None
    chats = {name: CachedChat(model, base) for name, model in models.items() if base is not None}
    rewriter: Rewriter = RulesRewriter(settings.seed)
    if "with" in chats:
        rewriter = ModelRewriter(chats["with"], seed=settings.seed, max_tokens=settings.max_tokens)
    check = None
    if "check" in chats:
        check = SolverCheck(
            chats["check"],
            VerifierPool(RewardSection().workers, RewardSection().timeout_seconds),
            samples=settings.check_samples,
            template=settings.check_template,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )
    slots = [room.slots(source) for source in asked.values()]
    return _Tools(rewriter, check, 2 * max(slots, default=8), room, base)


async def _make(problem: Problem, settings: Settings, tools: _Tools) -> _Made:
    """More texts are asked for than wanted: some are rejected."""
    rewrites: Rewrites = await tools.rewriter.rewrite(problem, settings.num + 2)
    accepted, rejected = sift(problem.text, rewrites.texts, problem.answer)
    if rewrites.failed is not None or tools.check is None:
        return _Made(problem, len(rewrites.texts), accepted, rejected, rewrites.failed)
    checked = await tools.check.sift(problem, accepted, settings.num)
    return _Made(problem, len(rewrites.texts), checked.accepted, rejected + checked.rejected, checked.failed)


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


async def _in_order(problems: Iterator[Problem], settings: Settings, tools: _Tools) -> AsyncIterator[_Made]:
    """What is made of the problems, in the order of the data, a window of them under way."""
    waiting: deque[asyncio.Task[_Made]] = deque()
    try:
        for problem in problems:
            waiting.append(asyncio.create_task(_make(problem, settings, tools)))
            if len(waiting) >= tools.window:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

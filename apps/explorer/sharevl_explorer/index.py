"""The index: light columns of every shard in DuckDB, read once each; texts and tokens stay in the Parquet files.

A shard that is new, replaced (a resume writes steps again) or gone is noticed by its size, time and inode at
:meth:`Index.refresh`. One that cannot be read is listed in `unreadable` and tried again at the next refresh.

Spread is the standard deviation of the total reward, with n - 1, which is what an advantage is divided by (but for
`share.std`): over all m·n responses of a problem (global), over the n responses of a variant (local). A group is the
responses to one variant. Its signal is, as in the training's metrics,

    own       its rewards differ (by more than `SILENT_SPREAD`)
    rescued   they do not, but those of the problem do: only the shared level of the advantage can teach
    none      nor do those of the problem

and a problem's is none without a spread (`vanished_global`), rescued if one of its groups is (`rescued`), else own. A
group that is rescued or has none is silent (`vanished_local`). Apart from that, verdicts give an outcome:

    wrong     every response is wrong;  right: every response is right;  mixed: both occur
    unknown   a verdict is not known, and those that are do not differ
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from sharevl_lite.store_schema import ROLLOUTS_DIR, STEP_FILE, StoreError, version_fault

SILENT_SPREAD = 1e-9
"""As in `sharevl_kernels.hierarchical_advantage`, which is not imported here: it needs torch."""

_TABLES = """
CREATE TABLE responses (
    run INT, split VARCHAR, step BIGINT, problem VARCHAR, variant INT, response INT, truncated BOOL,
    total DOUBLE, accuracy DOUBLE, format DOUBLE, adv_global DOUBLE, adv_local DOUBLE, tokens INT, logprob DOUBLE,
    gap DOUBLE, gaps INT, clip DOUBLE
);
CREATE TABLE variants (
    run INT, split VARCHAR, step BIGINT, problem VARCHAR, variant INT, question VARCHAR, transform VARCHAR,
    images VARCHAR[], answer VARCHAR, outcome VARCHAR, signal VARCHAR
);
CREATE TABLE problems (
    run INT, split VARCHAR, step BIGINT, problem VARCHAR, variants INT, responses INT, judged INT, success DOUBLE,
    reward DOUBLE, spread_global DOUBLE, spread_local DOUBLE, outcome VARCHAR, signal VARCHAR, silent INT, rescued INT,
    truncated INT, replaced BOOL, question VARCHAR, answer VARCHAR, transforms VARCHAR, images VARCHAR[],
    id_order VARCHAR
);
"""

_FRESH = """
CREATE OR REPLACE TEMP TABLE fresh AS SELECT
    $run AS run, $split AS split, step, problem_id AS problem, variant_index AS variant, response_index AS response,
    truncated, rewards.total AS total, rewards.accuracy AS accuracy, rewards.format AS format, adv_global, adv_local,
    len(sampling_logprobs)::INT AS tokens, list_avg(sampling_logprobs)::DOUBLE AS logprob,
    list_avg([s.gap FOR s IN scorers IF s.variant_index <> variant_index]) AS gap,
    len([s.gap FOR s IN scorers IF s.variant_index <> variant_index AND s.gap IS NOT NULL])::INT AS gaps,
    list_avg([s.clip_fraction FOR s IN scorers]) AS clip,
    variant_text AS question, transform, image_sha AS images, answer
FROM read_parquet($paths)
"""

_OUTCOME = """CASE WHEN count(accuracy) = 0 THEN 'unknown'
    WHEN max(accuracy) <= 0 THEN if(count(accuracy) = count(*), 'wrong', 'unknown')
    WHEN min(accuracy) >= 1 THEN if(count(accuracy) = count(*), 'right', 'unknown') ELSE 'mixed' END"""

_GROUPS = f"""
CREATE OR REPLACE TEMP TABLE grouped AS
WITH whole AS (
    SELECT step, problem, coalesce(max(total) - min(total) > {SILENT_SPREAD}, false) AS spreads
    FROM fresh GROUP BY step, problem
)
SELECT f.step, f.problem, f.variant, arg_min(f.question, f.response) AS question,
    arg_min(f.transform, f.response) AS transform, arg_min(f.images, f.response) AS images,
    arg_min(f.answer, f.response) AS answer, stddev_samp(f.total) AS spread, {_OUTCOME} AS outcome,
    CASE WHEN max(f.total) - min(f.total) > {SILENT_SPREAD} THEN 'own'
    WHEN any_value(w.spreads) THEN 'rescued' ELSE 'none' END AS signal
FROM fresh f JOIN whole w USING (step, problem) GROUP BY f.step, f.problem, f.variant
"""

# Numbers in an id are padded, so that 2 stands before 10.
_NATURAL = """array_to_string([if(regexp_full_match(piece, '[0-9]{1,18}'), lpad(piece, 18, '0'), piece)
    FOR piece IN regexp_extract_all(problem, '[0-9]+|[^0-9]+')], '')"""

_PROBLEMS = f"""
WITH g AS (
    SELECT step, problem, avg(spread) AS spread_local, count(*) AS variants,
    count(*) FILTER (signal <> 'own') AS silent,
    count(*) FILTER (signal = 'rescued') AS rescued, bool_or(signal = 'none') AS mute,
    arg_min(question, variant) AS question, arg_min(answer, variant) AS answer, arg_min(images, variant) AS images,
    string_agg(DISTINCT transform, ', ' ORDER BY transform) AS transforms FROM grouped GROUP BY step, problem
), r AS (
    SELECT any_value(run) AS run, any_value(split) AS split, step, problem, count(*) AS n, count(accuracy) AS judged,
    avg(accuracy) AS success, avg(total) AS reward, stddev_samp(total) AS spread_global, {_OUTCOME} AS outcome,
    count(*) FILTER (truncated) AS truncated, count(total) > 0 AND count(adv_global) = 0 AS replaced
    FROM fresh GROUP BY step, problem
)
INSERT INTO problems
SELECT r.run, r.split, step, problem, g.variants, r.n, r.judged, r.success, r.reward, r.spread_global, g.spread_local,
    r.outcome, CASE WHEN g.mute THEN 'none' WHEN g.rescued > 0 THEN 'rescued' ELSE 'own' END, g.silent, g.rescued,
    r.truncated, r.replaced AND r.split = 'train', g.question, g.answer, g.transforms, g.images, {_NATURAL}
FROM r JOIN g USING (step, problem)
"""


@dataclass(frozen=True, slots=True)
class Shard:
    """One step's file, as it was when it was read."""

    run: int
    split: str
    step: int
    path: Path
    stamp: tuple[int, int, int]


class Index:
    """Index of one run, and of a second one to compare it with.

    Args:
        runs: folders of the runs; the first is the one that is viewed.

    Raises:
        StoreError: a run is no folder.
    """

    def __init__(self, runs: Sequence[str | Path]) -> None:
        self.runs = [Path(run) for run in runs]
        for run in self.runs:
            if not run.is_dir():
                raise StoreError(f"{run}: no such run folder")
        self.names = _told_apart(self.runs)
        # Other threads go through these two while `refresh` runs: they are replaced by new ones, never changed.
        self.unreadable: Mapping[Path, str] = {}
        self._shards: Mapping[Path, Shard] = {}
        self.revision = 0
        self._lock = threading.Lock()
        self._base = duckdb.connect(
            ":memory:",
            config={"threads": 2, "memory_limit": "600MB", "autoinstall_known_extensions": False},
        )
        self._base.execute(_TABLES)
        self.refresh()

    def refresh(self) -> bool:
        """Read what is new and forget what is gone; whether anything changed."""
        with self._lock:
            present = {shard.path: shard for shard in self._listed()}
            gone = [shard for path, shard in self._shards.items() if present.get(path) != shard]
            new = [shard for path, shard in present.items() if self._shards.get(path) != shard]
            before = self.unreadable
            self.unreadable = {path: why for path, why in before.items() if path in present}
            self._forget(gone)
            for shards in _batches(new):
                self._take(shards)
            changed = bool(gone) or self.unreadable != before or any(shard.path in self._shards for shard in new)
            self.revision += changed
            return changed

    def rows(self, sql: str, parameters: Any = None) -> list[dict[str, Any]]:
        """Rows of a query as dicts.

        Raises:
            StoreError: a file that the query reads is gone or damaged.
        """
        with self.cursor() as cursor:
            try:
                cursor.execute(sql, parameters)
                names = [column[0] for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            except (duckdb.IOException, duckdb.InvalidInputException) as error:
                raise StoreError(f"a shard cannot be read any more: {error}") from error

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """A connection of its own to the same tables, closed at the end."""
        cursor = self._base.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def shard(self, run: int, split: str, step: int) -> Path | None:
        """The file of a step, if it was read."""
        for shard in self._shards.values():
            if (shard.run, shard.split, shard.step) == (run, split, step):
                return shard.path
        return None

    def splits(self, run: int = 0) -> list[str]:
        """Splits of a run with readable steps; `train` first."""
        names = {shard.split for shard in self._shards.values() if shard.run == run}
        return sorted(names, key=lambda name: (name != "train", name))

    def steps(self, run: int, split: str) -> list[int]:
        """Readable steps, ascending."""
        return sorted(shard.step for shard in self._shards.values() if (shard.run, shard.split) == (run, split))

    def damaged(self, run: int, split: str) -> list[int]:
        """Steps whose files cannot be read."""
        folder = self.runs[run] / ROLLOUTS_DIR / split
        names = [STEP_FILE.fullmatch(path.name) for path in self.unreadable if path.parent == folder]
        return [int(name[1]) for name in names if name]

    def _listed(self) -> Iterator[Shard]:
        for number, run in enumerate(self.runs):
            for path in sorted((run / ROLLOUTS_DIR).glob("*/step_*.parquet")):
                match = STEP_FILE.fullmatch(path.name)
                try:
                    stat = path.stat()
                except OSError:
                    continue  # deleted since it was listed
                if match and path.is_file():
                    stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                    yield Shard(number, path.parent.name, int(match[1]), path, stamp)

    def _forget(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            for table in ("responses", "variants", "problems"):
                self._base.execute(
                    f"DELETE FROM {table} WHERE run = ? AND split = ? AND step = ?",
                    [shard.run, shard.split, shard.step],
                )
        gone = {shard.path for shard in shards}
        self._shards = {path: shard for path, shard in self._shards.items() if path not in gone}

    def _take(self, shards: list[Shard]) -> None:
        """Read shards of one run and split together; where that fails, each by itself."""
        sound = [shard for shard in shards if self._is_ours(shard)]
        try:
            self._insert(sound)
        except duckdb.Error as error:
            if len(sound) > 1:
                for shard in sound:
                    self._take([shard])
            else:
                self._refuse(sound[0], str(error).splitlines()[0])

    def _is_ours(self, shard: Shard) -> bool:
        try:
            fault = version_fault(pq.read_schema(shard.path).metadata)
        except (pa.ArrowException, OSError) as error:
            fault = f"not a whole Parquet file (yet): {str(error).splitlines()[0]}"
        if fault is not None:
            self._refuse(shard, fault)
        return fault is None

    def _refuse(self, shard: Shard, why: str) -> None:
        self.unreadable = {**self.unreadable, shard.path: why}

    def _insert(self, shards: list[Shard]) -> None:
        if not shards:
            return
        given = {"run": shards[0].run, "split": shards[0].split, "paths": [str(shard.path) for shard in shards]}
        with self.cursor() as cursor:
            cursor.execute(_FRESH, given)
            strange = cursor.execute("SELECT DISTINCT step FROM fresh").fetchall()
            if {step for (step,) in strange} - {shard.step for shard in shards}:
                raise duckdb.InvalidInputException("rows of another step than the file's name says")
            cursor.execute(_GROUPS)
            cursor.execute("BEGIN")
            cursor.execute(
                "INSERT INTO responses SELECT run, split, step, problem, variant, response, truncated, total, "
                "accuracy, format, adv_global, adv_local, tokens, logprob, gap, gaps, clip FROM fresh"
            )
            cursor.execute(
                "INSERT INTO variants SELECT $run, $split, step, problem, variant, question, transform, images, "
                "answer, outcome, signal FROM grouped",
                {"run": given["run"], "split": given["split"]},
            )
            cursor.execute(_PROBLEMS)
            cursor.execute("COMMIT")
            cursor.execute("DROP TABLE fresh")
            cursor.execute("DROP TABLE grouped")
        read = {shard.path: shard for shard in shards}
        self._shards = {**self._shards, **read}
        self.unreadable = {path: why for path, why in self.unreadable.items() if path not in read}


def _told_apart(runs: Sequence[Path]) -> list[str]:
    """Names of the runs' folders, with as many of the folders above as it takes to tell them apart."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len({*names}) == len(names):
            return names
    return [f"{run.name} ({number})" for number, run in enumerate(runs, 1)]


def _batches(shards: Sequence[Shard], size: int = 50) -> Iterator[list[Shard]]:
    """Shards by run and split, at most `size` together."""
    kinds = sorted({(shard.run, shard.split) for shard in shards})
    for kind in kinds:
        same = [shard for shard in shards if (shard.run, shard.split) == kind]
        for start in range(0, len(same), size):
            yield same[start : start + size]

"""Writing rewritten problems as Parquet in our problem-row form, batch by batch, with memory for one batch.

Extra columns take the type their values show, batch after batch; where batches disagree the column becomes JSON text,
and the manifest says so. `answer` is a column of texts, or of lists where a problem has a list of accepted answers: a
single one is then a list of one, which is judged alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharevl_lite.data.images import encoded_images

if TYPE_CHECKING:
    import pyarrow as pa

    from sharevl_lite.data.problem import Problem

OWN = ("id", "problem", "images", "answer", "variants", "allow_mirrors", "transforms")
BATCH = 256


class ProblemWriter:
    """Collects rows in parts below `folder`; :meth:`finish` joins them into one file of one schema."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._parts: list[Path] = []
        self.as_json: set[str] = set()
        folder.mkdir(parents=True)

    def add(self, problem: Problem, variants: list[str]) -> None:
        """Take one problem with its accepted rewrites."""
        extra = _renamed(problem.metadata)
        images = [{"bytes": data, "path": None} for data in encoded_images(problem.images)]
        transforms = None if problem.transforms is None else sorted(problem.transforms)
        own = (problem.id, problem.text, images, problem.answer_cell, variants, problem.allow_mirrors, transforms)
        self._rows.append({**dict(zip(OWN, own, strict=True)), **extra})
        if len(self._rows) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow.parquet as pq

        if self._rows:
            path = self._folder / f"part-{len(self._parts):06d}.parquet"
            pq.write_table(_table(self._rows, self.as_json), path)
            self._parts.append(path)
            self._rows = []

    def finish(self, path: Path) -> None:
        """Write all parts to `path`, marked so that `datasets` decodes the images, and remove them."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets import Features, Image, List

        self._flush()
        schemas = [pq.read_schema(part) for part in self._parts]
        listed = any(pa.types.is_list(schema.field("answer").type) for schema in schemas)
        if listed:
            schemas = [_with_type(schema, {"answer"}, pa.list_(pa.string())) for schema in schemas]
        clashing = _clashing(schemas)
        self.as_json |= clashing
        schema = pa.unify_schemas(
            [_with_type(each, self.as_json, pa.string()) for each in schemas], promote_options="permissive"
        ).remove_metadata()
        features = Features.from_arrow_schema(schema)
        features["images"] = List(Image())
        schema = schema.with_metadata(features.arrow_schema.metadata)
        with pq.ParquetWriter(path, schema) as writer:
            for part in self._parts:
                rows = _listed(pq.read_table(part).to_pylist(), listed)
                writer.write_table(pa.Table.from_pylist(_texts(rows, self.as_json), schema=schema))
                part.unlink()
        self._folder.rmdir()


def _renamed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The source's other columns; `source_` in front of a name of ours, again where the source has that name too."""
    renamed = {name: value for name, value in metadata.items() if name not in OWN}
    for name in (name for name in metadata if name in OWN):
        free = f"source_{name}"
        while free in renamed:
            free = f"source_{free}"
        renamed[free] = metadata[name]
    return renamed


def _table(rows: list[dict[str, Any]], as_json: set[str]) -> pa.Table:
    import pyarrow as pa

    listed = any(isinstance(row["answer"], list) for row in rows)
    own = {
        "id": pa.string(),
        "problem": pa.string(),
        "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "answer": pa.list_(pa.string()) if listed else pa.string(),
        "variants": pa.list_(pa.string()),
        "allow_mirrors": pa.bool_(),
        "transforms": pa.list_(pa.string()),
    }
    for name in dict.fromkeys(name for row in rows for name in row if name not in own):
        try:
            own[name] = pa.array([row.get(name) for row in rows]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            as_json.add(name)
        if name in as_json:
            own[name] = pa.string()
    return pa.Table.from_pylist(_texts(_listed(rows, listed), as_json), schema=pa.schema(list(own.items())))


def _listed(rows: list[dict[str, Any]], listed: bool) -> list[dict[str, Any]]:
    """The rows; where answers are `listed`, with a list of one for a single answer."""
    if not listed:
        return rows
    return [{**row, "answer": [row["answer"]] if isinstance(row["answer"], str) else row["answer"]} for row in rows]


def _texts(rows: list[dict[str, Any]], as_json: set[str]) -> list[dict[str, Any]]:
    if not as_json:
        return rows
    return [
        {name: _json(value) if name in as_json and value is not None else value for name, value in row.items()}
        for row in rows
    ]


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _clashing(schemas: list[pa.Schema]) -> set[str]:
    import pyarrow as pa

    bad = set()
    for name in {name for schema in schemas for name in schema.names}:
        fields = [pa.schema([schema.field(name)]) for schema in schemas if name in schema.names]
        try:
            pa.unify_schemas(fields, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            bad.add(name)
    return bad


def _with_type(schema: pa.Schema, names: set[str], kind: pa.DataType) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([pa.field(f.name, kind) if f.name in names else f for f in schema])


def largest_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts with the largest first; equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

"""Files as older programs wrote them: their columns, spelled out so that they stay as they were."""

import pyarrow as pa
import pyarrow.parquet as pq

_REWARDS = pa.struct(
    [
        pa.field("total", pa.float64()),
        pa.field("accuracy", pa.float64()),
        pa.field("format", pa.float64()),
        pa.field("functions", pa.map_(pa.string(), pa.float64())),
    ]
)
_VERIFICATION = pa.struct(
    [pa.field("extracted", pa.string()), pa.field("rule", pa.string()), pa.field("failure", pa.string())]
)
_SCORER = pa.struct(
    [
        pa.field("variant_index", pa.int32(), nullable=False),
        pa.field("advantage", pa.float64()),
        pa.field("mean_logprob", pa.float64()),
        pa.field("gap", pa.float64()),
        pa.field("clip_fraction", pa.float64()),
    ]
)
VERSION_1 = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("variant_index", pa.int32(), nullable=False),
        pa.field("variant_text", pa.string(), nullable=False),
        pa.field("transform", pa.string()),
        pa.field("image_sha", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("response_index", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("sampling_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("rewards", _REWARDS, nullable=False),
        pa.field("verification", _VERIFICATION, nullable=False),
        pa.field("adv_global", pa.float64()),
        pa.field("adv_local", pa.float64()),
        pa.field("scorers", pa.list_(_SCORER), nullable=False),
    ],
    metadata={b"sharevl_lite.schema_version": b"1"},
)
VERSION_2 = pa.schema(
    [*VERSION_1, pa.field("scorer_logprobs", pa.list_(pa.list_(pa.float32())))],
    metadata={b"sharevl_lite.schema_version": b"2"},
)


def as_version_1(path):
    """Writes a step's file again as version 1 would have."""
    _rewrite(path, VERSION_1, 1)


def as_version_2(path):
    """Writes a step's file again as version 2 would have."""
    _rewrite(path, VERSION_2, 2)


def _rewrite(path, schema, version):
    table = pq.read_table(path).select(schema.names)
    place = schema.names.index("schema_version")
    table = table.set_column(place, schema.field(place), pa.array([version] * table.num_rows, pa.int32()))
    pq.write_table(table.cast(schema), path, compression="zstd")


def as_version(path, version):
    """Gives a step's file another version (bytes) in its metadata."""
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"sharevl_lite.schema_version": version}), path)

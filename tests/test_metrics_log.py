"""metrics.jsonl: exact numbers back, null for what is no number, whole after SIGKILL."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sharevl_lite.metrics_log import MetricsError, MetricsLog, read


def test_records_come_back_as_written(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    records = [
        {"step": 0, "loss": 0.1 + 0.2, "tiny": 5e-324, "int": 1, "none": None, "bool": True},
        {"step": 1, "text": "π\n\u2028\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
    ]
    for record in records:
        MetricsLog(path).append(record)
    assert read(path) == records


def test_what_is_no_number_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append({"step": 0, "a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan")})
    assert read(path) == [{"step": 0, "a": None, "b": None, "c": None, "d": None}]
    assert "NaN" not in path.read_text()


def test_array_scalars_are_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append(
        {"step": 0, "a": np.float64(0.1), "b": np.int64(3), "c": np.bool_(True), "d": np.array(2.0)}
    )
    assert read(path) == [{"step": 0, "a": 0.1, "b": 3, "c": True, "d": 2.0}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"loss": 1.0}, "needs an int `step`, got None"),
        ({"step": 1.0}, "needs an int `step`, got 1.0"),
        ({"step": 1, "x": {"y": 1.0}}, r"record\[x\]: dict cannot be logged; log a number or text"),
        ({"step": 1, "x": np.zeros(3)}, r"record\[x\]: .* log a number, not an array"),
    ],
)
def test_a_record_that_cannot_be_written_writes_nothing(tmp_path, record, message):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(MetricsError, match=message):
        MetricsLog(path).append(record)
    assert not path.exists()


@pytest.mark.parametrize("tail", [b"{", b'{"step": 2, "loss": 1.', b'{"step": 2}', b"\0\0\0"])
def test_a_torn_last_line_is_skipped_and_removed(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"step": 1})
    with open(path, "ab") as file:
        file.write(tail)
    assert read(path) == [{"step": 1}]
    log.append({"step": 2, "again": True})
    assert read(path) == [{"step": 1}, {"step": 2, "again": True}]


@pytest.mark.parametrize("line", ["{", "[1]", "\0", ""])
def test_damage_elsewhere_is_an_error_with_the_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(MetricsError, match=r"metrics.jsonl:2: "):
        read(path)


def test_truncation_keeps_the_steps_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    assert log.truncate_after(3) == 0
    for step in (0, 1, 1, 2, 3):
        log.append({"step": step})
    with open(path, "ab") as file:
        file.write(b'{"step": 0')
    assert log.truncate_after(1) == 2
    log.append({"step": 1, "of": 3})
    assert log.truncate_after(1, without="of") == 1
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 1}\n'
    log.append({"step": 2})
    assert [record["step"] for record in read(path)] == [0, 1, 1, 2]


WRITER = """
import os, sys
from sharevl_lite.metrics_log import MetricsLog, read
path = sys.argv[1]
log, step = MetricsLog(path), int(sys.argv[2])
log.truncate_after(step - 1)
while True:
    log.append({"step": step, "filler": str(step) * 2000})
    os.write(1, f"{step}\\n".encode())
    step += 1
"""


def test_kills_at_random_moments_lose_no_line_and_tear_none(tmp_path):
    path, step, rng = tmp_path / "metrics.jsonl", 0, random.Random(0)
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", WRITER, path, str(step)], stdout=subprocess.PIPE) as writer:
            first = writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.03))
            os.kill(writer.pid, signal.SIGKILL)
            finished = [int(line) for line in (first + writer.stdout.read()).split()]
        records = read(path)
        steps = [record["step"] for record in records]
        assert steps == list(range(len(steps)))
        assert steps[-1] in (finished[-1], finished[-1] + 1)  # durable before append returned
        assert all(record["filler"] == str(record["step"]) * 2000 for record in records)
        step = steps[-1] - rng.randrange(2)
    assert json.loads(path.read_bytes().split(b"\n")[0])["step"] == 0

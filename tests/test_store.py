"""The rollout store: every column comes back, and no kill shows a torn file."""

import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from old_stores import as_version, as_version_1, as_version_2
from PIL import Image

from sharevl_lite import store as store_module
from sharevl_lite.atomic import temporary_beside
from sharevl_lite.data import Variant
from sharevl_lite.records import StoredPictures
from sharevl_lite.store import Rewards, RolloutRow, RolloutStore, Scorer, StoreError, Verification, read, scan
from sharevl_lite.store_schema import SCHEMA, SCHEMA_VERSION


def picture(seed, size=(5, 3)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def row(step=0, **changes):
    given = RolloutRow(
        run_id="run-1",
        step=step,
        problem_id="p7",
        variant_index=1,
        variant_text="Wie viele?\n<image>",
        transform="rotate_90_cw",
        image_sha=[],
        answer="$2\\sqrt{221}$",
        response_index=5,
        text="<think>…</think> \\boxed{3} 🙂",
        token_ids=[0, 151_643, 2**31 - 1],
        truncated=True,
        sampling_logprobs=[-0.5, 0.0, -1e-30],
        rewards=Rewards(total=0.95, accuracy=1.0, format=0.5, functions={"length": -0.25, "other": None}),
        verification=Verification(extracted="3", rule="exact", failure=None),
        adv_global=0.1 + 0.2,
        adv_local=-1.5,
        scorers=[
            Scorer(variant_index=0, advantage=0.3, mean_logprob=-1.25, gap=-0.4, clip_fraction=0.125),
            Scorer(variant_index=1, advantage=-1.2, mean_logprob=-0.85, gap=0.0),
        ],
        scorer_logprobs=[[-0.25, -2.5, -1.0], None],
        extra={"judge says": "zu kurz 🙂", "tries": "[1, 2]"},
    )
    return replace(given, **changes)


# ---------------------------------------------------------------- round trip


def test_every_column_comes_back(tmp_path):
    store = RolloutStore(tmp_path)
    shas = [store.put_image(picture(0)), store.put_image(picture(1))]
    path = store.write("train", 42, [row(42, image_sha=shas), row(42, response_index=6, image_sha=shas[:1])])
    assert path == tmp_path / "rollouts" / "train" / "step_000042.parquet"
    table = read(tmp_path)
    table.validate(full=True)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert table.num_rows == 2
    assert table.slice(0, 1).to_pylist() == [
        {
            "schema_version": SCHEMA_VERSION,
            "run_id": "run-1",
            "step": 42,
            "problem_id": "p7",
            "variant_index": 1,
            "variant_text": "Wie viele?\n<image>",
            "transform": "rotate_90_cw",
            "image_sha": shas,
            "answer": "$2\\sqrt{221}$",
            "response_index": 5,
            "text": "<think>…</think> \\boxed{3} 🙂",
            "token_ids": [0, 151_643, 2**31 - 1],
            "truncated": True,
            "sampling_logprobs": [-0.5, 0.0, float(np.float32(-1e-30))],
            "rewards": {
                "total": 0.95,
                "accuracy": 1.0,
                "format": 0.5,
                "functions": [("length", -0.25), ("other", None)],
            },
            "verification": {"extracted": "3", "rule": "exact", "failure": None},
            "adv_global": 0.1 + 0.2,
            "adv_local": -1.5,
            "scorers": [
                {"variant_index": 0, "advantage": 0.3, "mean_logprob": -1.25, "gap": -0.4, "clip_fraction": 0.125},
                {"variant_index": 1, "advantage": -1.2, "mean_logprob": -0.85, "gap": 0.0, "clip_fraction": None},
            ],
            "scorer_logprobs": [[-0.25, -2.5, -1.0], None],
            "extra": [("judge says", "zu kurz 🙂"), ("tries", "[1, 2]")],
        }
    ]


def test_every_column_says_what_it_holds():
    assert all(column.metadata[b"description"] for column in SCHEMA)
    assert b"nats per token" in SCHEMA.field("scorers").type.value_type.field("gap").metadata[b"description"]


def test_nan_is_null_at_every_depth(tmp_path):
    nan = math.nan
    RolloutStore(tmp_path).write(
        "eval",
        0,
        [
            row(
                adv_global=nan,
                adv_local=None,
                sampling_logprobs=[nan, -1.0, -2.0],
                rewards=Rewards(total=nan, accuracy=None, format=nan, functions={"f": nan}),
                scorers=[Scorer(variant_index=0, advantage=nan, mean_logprob=nan, gap=nan, clip_fraction=nan)],
                scorer_logprobs=[[nan, -1.0, -2.0]],
            )
        ],
    )
    (got,) = read(tmp_path, "eval").to_pylist()
    assert (got["adv_global"], got["adv_local"], got["sampling_logprobs"]) == (None, None, [None, -1.0, -2.0])
    assert got["rewards"] == {"total": None, "accuracy": None, "format": None, "functions": [("f", None)]}
    assert set(got["scorers"][0].values()) == {0, None}
    assert got["scorer_logprobs"] == [[None, -1.0, -2.0]]


def test_numpy_tokens_and_empty_responses(tmp_path):
    rows = [
        row(token_ids=np.arange(3, dtype=np.int64), sampling_logprobs=np.zeros(3, dtype=np.float32)),
        row(
            token_ids=[],
            sampling_logprobs=[],
            text="",
            scorers=[],
            scorer_logprobs=None,
            transform=None,
            verification=Verification(),
        ),
    ]
    RolloutStore(tmp_path).write("train", 0, rows)
    table = read(tmp_path)
    assert table["token_ids"].to_pylist() == [[0, 1, 2], []]
    assert table["scorers"].to_pylist()[1] == []
    assert table["transform"].to_pylist() == ["rotate_90_cw", None]


def test_a_step_without_rows_is_stored(tmp_path):
    store = RolloutStore(tmp_path)
    store.write("train", 0, [])
    assert (store.steps("train"), read(tmp_path).num_rows) == ([0], 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 8}, "row 1 is of step 8; write each step by itself"),
        ({"answer": None}, "column answer is missing in row 1"),
        ({"variant_index": "one"}, "a value of column variant_index is no int32"),
        ({"token_ids": [2**31, 0, 0]}, "a value of column token_ids is no list"),
        ({"token_ids": [1]}, "row 1 has 1 token_ids and 3 sampling_logprobs"),
        ({"image_sha": ["0" * 64]}, "image 0{64} is not in the store; put_image comes before write"),
        ({"image_sha": ["../../etc"]}, "is no image name"),
        ({"schema_version": 99}, "row 1 has schema_version 99, not 3"),
        (
            {"scorer_logprobs": [[-0.5] * 3]},
            r"scorer_logprobs of lengths \[3\] for 2 scorers and 3 token_ids",
        ),
        ({"scorer_logprobs": [None, [-0.5]]}, r"scorer_logprobs of lengths \[1\] for 2 scorers and 3 token_ids"),
    ],
)
def test_rows_that_do_not_fit_write_nothing(tmp_path, changes, message):
    store = RolloutStore(tmp_path)
    with pytest.raises(StoreError, match=message):
        store.write("train", 7, [row(7), row(**{"step": 7} | changes)])
    assert store.steps("train") == []


# ---------------------------------------------------------------- reading


@pytest.fixture
def run(tmp_path):
    store = RolloutStore(tmp_path)
    for step in (0, 1, 2, 10):
        store.write("train", step, [row(step, response_index=index) for index in range(3)])
    store.write("eval", 0, [row(0)])
    return tmp_path


def test_steps_and_columns_are_chosen(run):
    assert RolloutStore(run).steps("train") == [0, 1, 2, 10]
    assert read(run)["step"].to_pylist() == [0] * 3 + [1] * 3 + [2] * 3 + [10] * 3
    table = read(run, steps=[10, 1], columns=["step", "rewards"])
    assert table.column_names == ["step", "rewards"]
    assert table["step"].to_pylist() == [1] * 3 + [10] * 3
    assert read(run, steps=[]).num_rows == 0


def test_a_scan_filters_before_it_reads(run):
    dataset = scan(run)
    found = dataset.to_table(columns=["step"], filter=(ds.field("step") == 2) & (ds.field("response_index") > 0))
    assert found["step"].to_pylist() == [2, 2]
    assert dataset.count_rows() == 12


def test_steps_beyond_six_digits_stay_in_order(tmp_path):
    store = RolloutStore(tmp_path)
    for step in (1_000_000, 999_999):
        store.write("train", step, [row(step)])
    assert store.steps("train") == [999_999, 1_000_000]


def test_temporaries_and_strangers_are_not_read(run):
    folder = run / "rollouts" / "train"
    for name in (temporary_beside(folder / "step_000003.parquet").name, "step_000004.parquet.bak", "notes.txt"):
        (folder / name).write_bytes(b"PAR1 half a file")
    assert read(run).num_rows == 12
    assert RolloutStore(run).steps("train") == [0, 1, 2, 10]


def test_a_later_store_removes_temporaries_of_dead_writers(run):
    folder = run / "rollouts" / "train"
    dead, alive = temporary_beside(folder / "step_000003.parquet"), temporary_beside(folder / "step_000003.parquet")
    for path in (dead, alive):
        path.write_bytes(b"half")
    os.utime(dead, (time.time() - 7200,) * 2)
    RolloutStore(run).write("train", 3, [row(3)])
    assert not dead.exists()
    assert alive.exists()


def test_discarding_for_a_resume(run):
    store = RolloutStore(run)
    assert store.discard_after("train", 1) == [2, 10]
    assert store.steps("train") == [0, 1]
    assert store.steps("eval") == [0]
    assert store.discard_after("train", 1) == []
    assert store.discard_after("unwritten", 0) == []


def test_writing_a_step_again_replaces_it(run):
    RolloutStore(run).write("train", 2, [row(2, answer="other")])
    assert read(run, steps=[2])["answer"].to_pylist() == ["other"]


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(StoreError, match=r"no split 'test'; it has eval, train"):
        read(run, "test")
    with pytest.raises(StoreError, match="no such run folder"):
        read(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="holds no rollouts yet"):
        read(tmp_path / "empty")
    with pytest.raises(StoreError, match="no step 3, 4; it holds 0 to 10"):
        read(run, steps=[2, 4, 3])
    with pytest.raises(StoreError, match="no column reward; the store has schema_version, run_id"):
        read(run, columns=["reward"])
    with pytest.raises(StoreError, match="is no name of a split"):
        read(run, "../train")


def test_another_schema_version_is_refused(run):
    path = run / "rollouts" / "train" / "step_000001.parquet"
    for version in (b"99", b"two"):
        as_version(path, version)
        message = f"step_000001.parquet: schema version {version.decode()}, and this program reads 1 to 3; read the run"
        with pytest.raises(StoreError, match=message):
            read(run)
    assert read(run, steps=[0]).num_rows == 3
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(StoreError, match="has no schema version"):
        read(run)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match="not a readable Parquet file"):
        read(run)


@pytest.mark.parametrize(
    ("version", "make", "lacking"),
    [(1, as_version_1, ["scorer_logprobs", "extra"]), (2, as_version_2, ["extra"])],
)
def test_what_an_older_version_lacks_is_null(run, version, make, lacking):
    """A run of an older program, and one that a newer program went on with."""
    path = run / "rollouts" / "train" / "step_000000.parquet"
    make(path)
    table = read(run)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert table["schema_version"].to_pylist() == [version] * 3 + [SCHEMA_VERSION] * 9
    assert [table[name].null_count for name in lacking] == [3] * len(lacking)
    others = [name for name in SCHEMA.names if name not in ("schema_version", "step", *lacking)]
    assert read(run, steps=[0], columns=others) == read(run, steps=[1], columns=others)


# ---------------------------------------------------------------- images


def test_equal_pixels_are_stored_once(tmp_path):
    store = RolloutStore(tmp_path)
    image = picture(0)
    with_profile = image.copy()
    with_profile.info["icc_profile"] = b"private"
    sha = store.put_image(image)
    before = (tmp_path / "images" / f"{sha}.png").stat()
    assert store.put_image(with_profile) == sha
    assert (tmp_path / "images" / f"{sha}.png").stat().st_mtime_ns == before.st_mtime_ns
    assert np.array_equal(np.asarray(store.image(sha)), np.asarray(image))
    assert store.put_image(image.transpose(Image.Transpose.ROTATE_90)) != sha


def test_a_picture_is_written_in_a_fraction_of_the_usual_time(tmp_path):
    """A drawing on white with noise, which is drawn anew at every visit; the GPU waits while it is written."""

    def seconds(write):
        start = time.process_time()
        write()
        return time.process_time() - start

    drawn = np.random.default_rng(0).normal(255.0, 25.0, (400, 600, 3)).clip(0, 255)
    noise, store = Image.fromarray(drawn.astype(np.uint8)), RolloutStore(tmp_path)
    usual = seconds(lambda: noise.save(tmp_path / "usual.png"))
    assert seconds(lambda: store.put_image(noise)) < 0.5 * usual
    (stored,) = (tmp_path / "images").iterdir()
    assert stored.stat().st_size < 1.25 * (tmp_path / "usual.png").stat().st_size


def test_the_shape_is_part_of_the_name(tmp_path):
    store = RolloutStore(tmp_path)
    assert store.put_image(Image.new("RGB", (2, 6))) != store.put_image(Image.new("RGB", (6, 2)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_modes_are_stored_as_rgb(tmp_path, mode):
    store = RolloutStore(tmp_path)
    image = picture(0).convert(mode)
    assert np.array_equal(np.asarray(store.image(store.put_image(image))), np.asarray(image.convert("RGB")))


def test_a_damaged_image_is_an_error_and_is_written_again(tmp_path):
    store = RolloutStore(tmp_path)
    sha = store.put_image(picture(0))
    path = tmp_path / "images" / f"{sha}.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(StoreError, match="damaged image"):
        store.image(sha)
    assert store.put_image(picture(0)) == sha
    assert path.read_bytes() == whole
    picture(1).save(path)
    with pytest.raises(StoreError, match="the pixels do not match the name"):
        store.image(sha)
    with pytest.raises(StoreError, match="no such image"):
        store.image("0" * 64)


def test_two_writers_of_one_image_both_succeed(tmp_path, monkeypatch):
    barrier, real = threading.Barrier(2, timeout=20), store_module.write_atomically

    def meet_then_write(path, content):
        barrier.wait()  # both have seen that the file is missing
        return real(path, content)

    monkeypatch.setattr(store_module, "write_atomically", meet_then_write)
    names = []
    writers = [
        threading.Thread(target=lambda: names.append(RolloutStore(tmp_path).put_image(picture(0)))) for _ in "ab"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(names) == 2
    assert os.listdir(tmp_path / "images") == [f"{names[0]}.png"]
    assert names[0] == names[1]
    assert RolloutStore(tmp_path).image(names[0]).size == (5, 3)


# ---------------------------------------------------------------- kills and failures


def test_a_rename_that_never_happens_shows_nothing(tmp_path, monkeypatch):
    store = RolloutStore(tmp_path)
    store.write("train", 0, [row(0)])

    def lost(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", lost)
    with pytest.raises(OSError, match="Input/output error"):
        store.write("train", 1, [row(1)])
    with pytest.raises(OSError, match="Input/output error"):
        store.write("train", 0, [row(0, answer="new")])
    assert store.steps("train") == [0]
    assert read(tmp_path)["answer"].to_pylist() == [row().answer]
    assert os.listdir(tmp_path / "rollouts" / "train") == ["step_000000.parquet"]


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[3])
from test_store import picture, row
from sharevl_lite.store import RolloutStore
store, step = RolloutStore(sys.argv[1]), int(sys.argv[2])
while True:
    sha = store.put_image(picture(step, (60, 40)))
    long = row(step, image_sha=[sha], token_ids=[step] * 5000, sampling_logprobs=[-0.5] * 5000, scorer_logprobs=None)
    store.write("train", step, [long] * 20)
    os.write(1, f"{step}\\n".encode())
    step += 1
"""


def test_kills_at_random_moments_show_no_torn_file(tmp_path):
    rng, step = random.Random(0), 0
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, tmp_path, str(step), os.path.dirname(__file__)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            first = writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.06))
            os.kill(writer.pid, signal.SIGKILL)
            finished = [int(line) for line in (first + writer.stdout.read()).split()]
        store = RolloutStore(tmp_path)
        steps = store.steps("train")
        assert steps == list(range(len(steps)))
        assert steps[-1] in (finished[-1], finished[-1] + 1)
        table = read(tmp_path, steps=steps[step:])
        table.validate(full=True)
        assert table["step"].to_pylist() == [number for number in steps[step:] for _ in range(20)]
        assert table["token_ids"].to_pylist() == [[number] * 5000 for number in table["step"].to_pylist()]
        for sha in {shas[0] for shas in table["image_sha"].to_pylist()}:
            assert store.image(sha).size == (60, 40)
        for folder in ("rollouts/train", "images"):
            visible = [name for name in os.listdir(tmp_path / folder) if not name.startswith(".tmp-")]
            assert all(name.endswith((".parquet", ".png")) for name in visible)
        step = steps[-1] + 1


def test_pictures_are_stored_in_the_background(tmp_path):
    """Those of a rollout while it is trained, others when asked for; a failure comes to light where it counts."""
    names = {}

    def put(image):
        names[image] = threading.current_thread().name
        if image == "bad":
            raise OSError("the disk is full")
        return f"sha of {image}"

    def rollout_of(*rows):
        return SimpleNamespace(variants=[[Variant(k, "?", row) for k in range(2)] for row in rows], replaced=None)

    rollout, pictures = rollout_of(("a",), ("b", "c")), StoredPictures(put)
    pictures.start(rollout)
    names_of = pictures.take()
    assert {*names} == {"a", "b", "c"}
    assert threading.current_thread().name not in names.values()
    assert names_of(rollout.variants[1][0]) == ["sha of b", "sha of c"]
    assert names_of(Variant(0, "?", ("d",))) == ["sha of d"]
    assert names["d"] == threading.current_thread().name
    pictures.start(rollout_of(("bad",)))
    with pytest.raises(OSError, match="the disk is full"):
        pictures.take()
    assert pictures.take()(rollout.variants[0][0]) == ["sha of a"]

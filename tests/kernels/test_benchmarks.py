"""The benchmark scripts, on a CPU: what they check, print and write. Its times say nothing and are not looked at."""

import csv
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "kernels" / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """The log-prob benchmark as a module; it finds its neighbours as a script does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import bench_grouped_logprob

    return bench_grouped_logprob


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_script(name, *options):
    command = [sys.executable, str(FOLDER / name), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["grouped_logprob", "packed_update", "swiglu", "hierarchical_advantage"])
def test_without_a_gpu_it_says_what_it_needs(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"bench_{name}.py"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"bench_{name}").main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "needs a CUDA device" in said.err
    assert said.out == ""


def test_a_wrong_peer_has_no_time_and_a_missing_one_is_no_failure(bench, tmp_path, monkeypatch, capsys):
    def absent():
        raise ImportError("no such package")

    def half_a_nat_off():
        return lambda hidden_TH, weight_VH, targets_T: (
            bench.PEERS_BEFORE[0].load()(hidden_TH, weight_VH, targets_T) + 0.5
        )

    def broken():
        def fail(*_):
            raise RuntimeError("out of order")

        return fail

    monkeypatch.setattr(bench, "PEERS_BEFORE", bench.PEERS, raising=False)
    peers = (bench.PEERS[0], bench.Peer("wrong", "", half_a_nat_off), bench.Peer("absent", "no-such", absent))
    monkeypatch.setattr(bench, "PEERS", (*peers, bench.Peer("broken", "", broken)))
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cpu", "--out", str(tmp_path), "--repeats", "1"])
    assert bench.main() == 0
    rows = {row["what"]: row for row in read(tmp_path / "grouped_logprob.csv")}
    for what in ("sharevl grouped_logprob", "torch", "products alone"):
        for kind in ("no grad", "forward + backward"):
            assert rows[f"{what}, {kind}"]["status"] == "ok"
            assert float(rows[f"{what}, {kind}"]["ms"]) > 0
    for kind in ("no grad", "forward + backward"):
        wrong = rows[f"wrong, {kind}"]
        assert wrong["status"].startswith("RED: log-probs off by 5.0e-01")
        assert wrong["ms"] == wrong["ratio"] == ""
    assert rows["absent"]["status"] == "not installed (no such package)"
    assert rows["broken"]["status"] == "failed: out of order"
    assert float(rows["sharevl grouped_logprob, forward + backward"]["logprob_error"]) < 5e-5
    assert {row["torch"] for row in rows.values()} == {torch.__version__}
    assert "RED" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["log-probs", "gradient"])
def test_our_own_row_is_red_when_it_is_wrong(bench, tmp_path, monkeypatch, damage):
    right = bench.grouped_logprob

    def wrong(hidden_TH, weight_VH, targets_T):
        found = right(hidden_TH, weight_VH, targets_T)
        moved = found.logprobs_T + 1e-3 if damage == "log-probs" else found.logprobs_T.detach() + 0 * found.logprobs_T
        return found._replace(logprobs_T=moved)

    monkeypatch.setattr(bench, "grouped_logprob", wrong)
    monkeypatch.setattr(bench, "PEERS", bench.PEERS[:1])
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cpu", "--out", str(tmp_path), "--repeats", "1"])
    assert bench.main() == 1
    ours = [row for row in read(tmp_path / "grouped_logprob.csv") if row["what"].startswith("sharevl")]
    assert ours[1]["status"].startswith("RED")
    assert ours[1]["ms"] == ""


def test_a_packed_update_is_checked_and_measured(tmp_path):
    options = ["--device", "cpu", "--out", str(tmp_path), "--repeats", "1", "--prompt", "40", "--response", "9"]
    done = run_script("bench_packed_update.py", *options, "--token-budget", "90")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read(tmp_path / "packed_update.csv")
    fused = "packed and fused, "
    names = ["packed, rows of 90", f"{fused}rows of 90", f"{fused}nothing recomputed, rows of 90"]
    assert [row["what"] for row in rows] == ["rows, batches of 4", *names, "policy loss alone"]
    assert {row["status"] for row in rows} == {"ok"}
    for row in rows[1:4]:
        assert float(row["logprob_error"]) < 1e-4
        assert 0 < float(row["gradient_error"]) < 1e-4
    assert rows[1]["gradient_error"] != rows[2]["gradient_error"]  # other layers
    assert rows[2]["gradient_error"] == rows[3]["gradient_error"]
    assert "of the faster packed update" in rows[4]["note"]


def test_advantages_are_checked_and_measured(tmp_path):
    done = run_script("bench_hierarchical_advantage.py", "--device", "cpu", "--out", str(tmp_path), "--repeats", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read(tmp_path / "hierarchical_advantage.csv")
    assert len(rows) == 6
    assert {row["status"] for row in rows} == {"ok"}


def test_activations_are_checked_and_measured(tmp_path):
    done = run_script("bench_swiglu.py", "--device", "cpu", "--out", str(tmp_path), "--repeats", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read(tmp_path / "swiglu.csv")
    assert [(row["what"], row["status"]) for row in rows] == [("torch", "ok"), ("swiglu", "ok")]
    # Rounded once, where torch rounds the activation's factors too.
    assert 0 < float(rows[1]["gradient_error"]) <= float(rows[0]["gradient_error"])

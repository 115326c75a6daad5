"""Verifier processes: a grader that hangs, processes that are killed, and parents that go without a word."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sharevl_lite.rewards import Verdict, VerifierFailure, VerifierPool, verify
from sharevl_lite.rewards.pool import VerifierStartError

HANGS = r"\boxed{9^{9^{9^{9}}}}"
FACTORIAL = r"\boxed{100000000!}"


def is_running(pid: int) -> bool:
    """A zombie, dead and waiting to be reaped by whoever adopted it, does not run."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def has_ended(pid: int) -> bool:
    """Whether a child could be reaped. A zombie whose other threads are still dying can not, and counts as alive."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def pool():
    with VerifierPool(workers=2, timeout_seconds=3.0) as pool:
        yield pool


def test_verdicts_are_those_of_verify_and_in_order(pool):
    predictions = [rf"\boxed{{{n}x+1}}" for n in range(8)] + ["no box", r"\boxed{}", r"\boxed{−5}", "\\boxed{\ud800\n}"]
    golds = ["1+3x"] * 8 + ["5", "5", "-5", "5"]
    assert pool.verify_many(predictions, golds) == [verify(p, g) for p, g in zip(predictions, golds, strict=True)]


def test_the_power_tower_really_hangs_without_the_pool():
    code = f"from sharevl_lite.rewards import verify; verify({HANGS!r}, '5')"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], timeout=5, check=True, stderr=subprocess.DEVNULL)


def test_a_hanging_item_fails_in_time_and_its_neighbours_do_not(pool):
    start = time.monotonic()
    predictions = [r"\boxed{\sqrt{8}}", HANGS, r"\boxed{3}", FACTORIAL, r"\boxed{1+x}", r"\boxed{x-1}"]
    golds = [r"2\sqrt{2}", "5", "3", "5", "x+1", "x+1"]
    outcomes = pool.verify_many(predictions, golds)
    assert [getattr(outcome, "correct", None) for outcome in outcomes] == [True, None, True, None, True, False]
    assert outcomes[1] == outcomes[3] == VerifierFailure("timeout after 3 s")
    assert time.monotonic() - start < 20
    assert pool.verify_many([r"\boxed{7}"], ["7"]) == [Verdict(True, "exact", "7")]


def test_equal_items_are_verified_once():
    with VerifierPool(workers=1, timeout_seconds=1.0) as pool:
        start = time.monotonic()
        outcomes = pool.verify_many([f"so {HANGS}", HANGS, f"hence {HANGS}"] * 20, ["5"] * 60)
    assert outcomes == [VerifierFailure("timeout after 1 s")] * 60
    assert time.monotonic() - start < 15


def test_any_accepted_answer_is_right_and_the_first_that_accepts_says_by_which_rule(pool):
    golds = ["4", "four", "5", "five", "5"]
    predictions = [r"\boxed{5}", r"\boxed{Five}", r"\boxed{6}", "no box"]
    outcomes = pool.verify_many(predictions, [golds] * 4)
    assert outcomes == [verify(prediction, golds) for prediction in predictions]
    assert outcomes[:2] == [Verdict(True, "exact", "5"), Verdict(True, "exact", "Five")]
    assert [outcome.rule for outcome in outcomes[2:]] == ["none", "no_box"]
    assert pool.verify_many(predictions[:1], [("5",)]) == pool.verify_many(predictions[:1], ["5"])
    assert pool.verify_many(predictions[:2], ["5", ["x", "Five"]]) == outcomes[:2], "one answer beside several"


def test_a_failure_on_one_accepted_answer_is_neither_right_nor_wrong(pool):
    late, failed, wrong = pool.verify_many([r"\boxed{5}"] * 3, [["1/0", "5"], ["6", "1/0", "7"], ["6", "7"]])
    assert late == verify(r"\boxed{5}", ("1/0", "5")) == Verdict(True, "exact", "5")
    assert isinstance(failed, VerifierFailure)
    assert failed.reason.startswith("ValueError")
    assert wrong == Verdict(False, "none", "5")
    with pytest.raises(ValueError, match=r"."):
        verify(r"\boxed{5}", ("6", "1/0"))


def test_a_time_out_on_one_accepted_answer_leaves_time_for_the_next():
    with VerifierPool(workers=1, timeout_seconds=2.0) as pool:
        tower = HANGS.removeprefix(r"\boxed{").removesuffix("}")
        right, unknown = pool.verify_many([HANGS, HANGS], [["5", tower], ["5", "no words of this kind"]])
        pool.verify_many([r"\boxed{1}"], ["1"])
        before = pool.pids
        first = pool.verify_many([HANGS], [[tower, "7"]])
        assert pool.pids == before, "an answer that is right by one gold is not held against the next"
    assert right == Verdict(True, "exact", tower)
    assert unknown == VerifierFailure("timeout after 2 s")
    assert first == [right]


def test_a_process_killed_at_work_costs_its_item_only():
    with VerifierPool(workers=1, timeout_seconds=60.0) as pool:
        pool.verify_many([r"\boxed{1}"], ["1"])
        (pid,) = pool.pids
        killer = threading.Timer(1.0, os.kill, (pid, signal.SIGKILL))
        killer.start()
        hung, fine = pool.verify_many([HANGS, r"\boxed{x+1}"], ["5", "1+x"])
    assert hung == VerifierFailure("the verifier process died (signal SIGKILL)")
    assert fine.correct


def test_a_process_killed_while_idle_is_replaced(pool):
    pool.verify_many([r"\boxed{1}", r"\boxed{2}"], ["1", "1"])
    before = pool.pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: all(map(has_ended, before)), 30)
    assert pool.verify_many([r"\boxed{2}"], ["2"])[0].correct
    assert not set(pool.pids) & set(before)


def test_an_error_in_a_grader_is_a_failure_of_its_item(pool):
    empty, undefined, fine = pool.verify_many([r"\boxed{5}"] * 3, ["  ", "1/0", "5"])
    assert empty.reason.startswith("ValueError: the gold answer is empty")
    assert undefined.reason.startswith("ValueError")
    assert fine.correct


def test_ctrl_c_does_not_reach_the_processes(pool):
    pool.verify_many([r"\boxed{1}"], ["1"])
    (pid,) = pool.pids
    assert os.getsid(pid) != os.getsid(0)
    os.kill(pid, signal.SIGINT)
    assert pool.verify_many([r"\boxed{2}"], ["2"])[0].correct
    assert pool.pids == [pid]


def test_an_interrupted_call_leaves_no_reply_behind(pool):
    pool.verify_many([r"\boxed{1}"], ["1"])
    threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        pool.verify_many([HANGS], ["5"])
    assert pool.pids == []
    assert pool.verify_many([r"\boxed{3}"], ["3"]) == [Verdict(True, "exact", "3")]


def test_close_ends_the_processes(pool):
    pool.verify_many([r"\boxed{1}"], ["1"])
    (pid,) = pool.pids
    pool.close()
    assert not is_running(pid)


def test_lengths_must_match(pool):
    with pytest.raises(ValueError, match="2 predictions but 1 gold"):
        pool.verify_many(["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"response 1 \(from 0\) has no gold answer"):
        pool.verify_many(["a", "b"], ["a", []])
    assert pool.pids == [], "nothing to verify starts nothing"
    assert pool.verify_many([], []) == []


def test_graders_that_cannot_be_imported_stop_the_run(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('broken installation')")
    monkeypatch.syspath_prepend(tmp_path)
    with VerifierPool(1, 3.0) as pool, pytest.raises(VerifierStartError, match="broken installation"):
        pool.verify_many([r"\boxed{x}"], ["5"])


PARENT = """
import os
from sharevl_lite.rewards import VerifierPool
pool = VerifierPool(workers=1, timeout_seconds={timeout})
pool.verify_many([r"\\boxed{{1}}"], ["1"])
print(pool.pids[0], flush=True)
pool.verify_many({predictions!r}, ["5"] * {count})
print("done", flush=True)
{then}
"""


def start_parent(tmp_path, predictions: list[str], timeout: float, then: str = "") -> tuple[subprocess.Popen, int]:
    """A script without a `__main__` guard, as users write them, with a pool; returns it and its verifier's pid."""
    script = tmp_path / "script.py"
    script.write_text(PARENT.format(predictions=predictions, count=len(predictions), timeout=timeout, then=then))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    return parent, int(parent.stdout.readline())


def test_a_script_without_a_main_guard_runs_once_and_leaves_nothing(tmp_path):
    parent, pid = start_parent(tmp_path, [r"\boxed{5}"], timeout=5)
    # Not `communicate`, which would miss a second line that the first `readline` has already buffered.
    assert parent.stdout.read() == "done\n"
    assert parent.wait(timeout=30) == 0
    assert not is_running(pid)


def test_parent_killed_while_the_verifier_is_idle(tmp_path):
    parent, pid = start_parent(tmp_path, [], timeout=5, then="import time; time.sleep(60)")
    assert parent.stdout.readline() == "done\n"
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_running(pid), 10)


def test_parent_killed_while_the_verifier_hangs(tmp_path):
    parent, pid = start_parent(tmp_path, [HANGS], timeout=3)
    time.sleep(1.0)
    assert is_running(pid)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not is_running(pid), 15)


def test_a_forked_child_cannot_use_the_pool_and_does_not_end_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from sharevl_lite.rewards import VerifierPool\n"
        "pool = VerifierPool(1, 5.0)\n"
        "pool.verify_many([r'\\boxed{1}'], ['1'])\n"
        "before = pool.pids\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        pool.verify_many([r'\\boxed{1}'], ['1'])\n"
        "    except RuntimeError as error:\n"
        "        sys.exit(7 if 'each process' in str(error) else 8)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "assert pool.verify_many([r'\\boxed{2}'], ['2'])[0].correct and pool.pids == before\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, script], check=True, env=environment, timeout=60)


def test_the_worker_does_not_load_torch():
    code = (
        "import sys; from sharevl_lite.rewards import worker; worker._warm_up()\n"
        "assert 'sympy' in sys.modules and not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""A small, real run: the shipped model and data, few problems and steps."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from warm_python import WarmPython

from sharevl_lite import load_recipe, train
from sharevl_lite.cli import main
from sharevl_lite.rewards import pool

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "digits_cpu.yaml"
SMALL = {
    "share.num_responses": 3,
    "data.train_limit": 64,
    "rollout.max_completion_length": 24,
    "train.rollouts": 4,
    "train.problems_per_rollout": 4,
    "train.problems_per_update": 2,
    "train.epochs_per_rollout": 1,
    "train.save_rollouts": 1,
    "train.token_budget": 256,
    "eval.problems": 4,
    "eval.samples": 1,
    "reward.workers": 1,
}


@pytest.fixture(scope="session")
def idle_verifiers():
    idle = []
    yield idle
    while idle:
        idle.pop().kill()


@pytest.fixture(autouse=True, scope="module")
def verifiers_are_handed_on(idle_verifiers):
    """A run ends its idle verifier process; here the next run takes it over, and saves a second of imports.

    By module, since tests of the pool itself may come between two modules of this folder.
    """
    idle, start_new, kill_all = idle_verifiers, pool.WorkerProcess, pool._kill_all

    def start(seconds):
        while idle:
            worker = idle.pop()
            if worker.is_alive():
                return worker
            worker.kill()
        return start_new(seconds)

    def end(workers, owner):
        if os.getpid() == owner:
            idle.extend(worker for worker in workers if worker.ready and worker.task is None)
            workers[:] = [worker for worker in workers if worker not in idle]
        kill_all(workers, owner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "WorkerProcess", start)
        patch.setattr(pool, "_kill_all", end)
        yield


@pytest.fixture
def small_recipe(tmp_path):
    """`small_recipe(name, **changes)`: a recipe that runs in seconds below tmp_path."""

    def make(name="small", /, **changes):
        return load_recipe(DEMO, {**SMALL, "name": name, "output_dir": str(tmp_path), **changes})

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a small run of two steps, trained once: tests take a copy of it."""
    few = {"data.eval": None, "train.rollouts": 2, "train.warmup_updates": 0}
    folder = tmp_path_factory.mktemp("finished")
    recipe = load_recipe(DEMO, {**SMALL, **few, "name": "first", "output_dir": str(folder)})
    return train(recipe, console=Console(quiet=True)).run_dir


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a small run that nothing stopped, trained once. Copy it to change it."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = load_recipe(DEMO, {**SMALL, "name": "whole", "output_dir": str(folder)})
    return train(recipe, console=Console(quiet=True)).run_dir


@pytest.fixture
def command(tmp_path):
    """`command(words, **changes)`: the words of a `sharevl-lite train` that does the same in a process of its own."""

    def make(*words, name="small", **changes):
        knobs = {**SMALL, "name": name, "output_dir": str(tmp_path), **changes}
        flags = [f"--{key}={value}" for key, value in knobs.items()]
        return [sys.executable, "-m", "sharevl_lite", "train", str(DEMO), *words, *flags]

    return make


@pytest.fixture
def finish_here(capsys):
    """Runs a command in this process, which has torch already, to its end; returns what it said: `out` and `err`."""

    def run(words, code=0):
        capsys.readouterr()
        ended = main(words[words.index("train") :])
        said = capsys.readouterr()
        assert ended == code, said.out + said.err
        return said

    return run


@pytest.fixture
def environment():
    """Environment of those processes: one thread each, so that floating-point sums have one order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture
def start(environment):
    """Starts a command in a process of its own that has imported everything; what still runs is killed at the end."""
    started = []

    def begin(words, **changed):
        started.append(WarmPython(words[2], words[3:], environment | changed))  # python -m MODULE ...
        return started[-1]

    yield begin
    for process in started:
        process.close()


@pytest.fixture
def finish_in_two(start):
    """Runs a command (in the second process perhaps another) to its end in two processes, as a launcher starts them;
    returns what both of them said. `code` is both processes' exit code, or a pair of them."""

    def run(words, code=0, second=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        words = {"0": words, "1": second or words}
        both = [start(words[rank], **world, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
        said = [process.communicate(timeout=200) for process in both]
        output, errors = ("".join(texts) for texts in zip(*said, strict=True))
        codes = list(code) if isinstance(code, tuple) else [code, code]
        assert [process.returncode for process in both] == codes, output + errors
        return subprocess.CompletedProcess(words["0"], code, output, errors)

    return run


@pytest.fixture
def finish(environment):
    """Runs a command to its end in a fresh interpreter and returns it; fails with its output."""

    def run(words, code=0):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        with subprocess.Popen(words, env=environment, **pipes) as process:
            try:
                output, errors = process.communicate(timeout=400)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # a launcher's workers too
                raise
        assert process.returncode == code, output + errors
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    return run

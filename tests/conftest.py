"""One torch thread per test process: sums have one order, and two test processes do not fight over two cores.

Without a GPU the Triton kernels run in Triton's interpreter; that is decided when they are imported. Lying here, this
file also makes `tiny_models` importable from every test. Tests that interrupt need what a shell takes from a program in
its background: an interrupt that is not ignored.

While modules and tests are collected, nothing is looked through for garbage; what was collected stays.
"""

import gc
import os
import signal
from pathlib import Path

gc.disable()  # until the tests are collected: see pytest_collection_finish

import pytest  # noqa: E402
import torch  # noqa: E402

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """A million objects of modules and tests are no garbage: the tests' own collections leave them out."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """What a real training run wrote: two steps of six problems, evaluated before and after. Copy it to change it."""
    from sharevl_lite.recipes import load_recipe
    from sharevl_lite.run import train

    folder = tmp_path_factory.mktemp("run")
    words = "--train.rollouts 2 --train.problems_per_rollout 6 --train.problems_per_update 6 --share.num_responses 3"
    words += f" --eval.problems 4 --output-dir {folder}"
    train(load_recipe(Path(__file__).parents[1] / "configs" / "digits_cpu.yaml", words.split()))
    return next(folder.iterdir())

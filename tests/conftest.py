"""One torch thread per test process: sums have one order, and two test processes do not fight over two cores.

Without a GPU the Triton kernels run in Triton's interpreter; that is decided when they are imported. Lying here, this
file also makes `tiny_models` importable from every test.
"""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

"""One torch thread per test process: sums have one order, and two test processes do not fight over two cores.

Lying here, this file also makes `tiny_models` importable from every test.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

"""Settings of vLLM's CPU build, where it is installed; read before vLLM is imported."""

import os
from importlib.util import find_spec

if find_spec("vllm") is not None:
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)

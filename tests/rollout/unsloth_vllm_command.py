"""The command `sharevl-lite` with Unsloth and vLLM in its process, on a CPU too (see ../policy/unsloth_on_cpu.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "policy"))

import unsloth_on_cpu

from sharevl_lite.policy.unsloth import import_unsloth

if __name__ == "__main__":
    # Unsloth loads vLLM's first library to see whether it is sound. Without AVX512-BF16 that of its CPU build may end
    # the process, and vLLM takes another one.
    old = "avx512_bf16" not in Path("/proc/cpuinfo").read_text()
    if old:
        sys.modules["vllm._C"] = None
    import_unsloth()
    if old:
        del sys.modules["vllm._C"]

    import torch

    from sharevl_lite.cli import main

    if not torch.cuda.is_available():
        import vllm_command  # noqa: F401

        unsloth_on_cpu.share_on_a_cpu()
    sys.exit(main(sys.argv[1:]))

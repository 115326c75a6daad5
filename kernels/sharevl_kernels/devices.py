"""Which tensors the Triton kernels run on, and how tensors get to a device."""

from __future__ import annotations

import torch
from torch import Tensor

OLDEST = (8, 0)
"""Compute capability of Ampere; the kernels are compiled and tested from there on."""


def runs_triton(tensor: Tensor) -> bool:
    """Whether the kernels serve this tensor: an NVIDIA GPU from Ampere on, and not float64. Others get torch ops."""
    if not tensor.is_cuda or torch.version.hip is not None or tensor.dtype == torch.float64:
        return False
    return torch.cuda.get_device_capability(tensor.device) >= OLDEST


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for a GPU: a copy from pageable memory waits until all is done that was
    asked of it before."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

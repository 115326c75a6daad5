"""Most of a GPU's memory that was in use, without what the driver has back.

An engine that sleeps unmaps its weights and cache, but keeps their addresses, and torch counts them as allocated all
the while. So a peak is that of torch's counter less what is given back at the time.
"""

from __future__ import annotations

import torch


class DeviceMemory:
    """The current device's, from torch's counters."""

    def __init__(self) -> None:
        self._given_back = 0
        self._before = 0

    def peak(self) -> int:
        """Bytes, since the last :meth:`reset`."""
        return max(self._before, torch.cuda.max_memory_allocated() - self._given_back)

    def give_back(self, size: int) -> None:
        """Called when so many bytes that torch counts have gone to the driver; with 0 before they are taken again."""
        self._before = self.peak()
        torch.cuda.reset_peak_memory_stats()
        self._given_back = size

    def reset(self) -> None:
        """Begins anew with what is in use now."""
        self._before = 0
        torch.cuda.reset_peak_memory_stats()


MEMORY = DeviceMemory()
"""This process's."""

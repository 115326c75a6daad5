"""Peaks of a GPU's memory while an engine sleeps and wakes, with counters that stand for torch's."""

import pytest
import torch

from sharevl_lite.device_memory import DeviceMemory


class Counters:
    """torch's two counters of allocated bytes."""

    def __init__(self):
        self.now = self.most = 0

    def allocate(self, size):
        self.now += size
        self.most = max(self.most, self.now)

    def reset(self):
        self.most = self.now


@pytest.fixture
def device(monkeypatch):
    counters = Counters()
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: counters.most)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", counters.reset)
    return counters, DeviceMemory()


def test_what_sleeps_is_not_in_use(device):
    counters, memory = device
    counters.allocate(7)  # the policy
    counters.allocate(20)  # an engine, awake
    assert memory.peak() == 27
    memory.give_back(20)
    memory.reset()
    counters.allocate(5)
    counters.allocate(-5)
    assert memory.peak() == 12  # torch counts 32
    memory.give_back(0)  # it wakes, and nothing else is allocated
    assert memory.peak() == 27
    memory.give_back(20)
    counters.allocate(30)  # an update larger than the engine
    counters.allocate(-30)
    assert memory.peak() == 37
    memory.give_back(0)
    assert memory.peak() == 37


def test_without_an_engine_it_is_torch_s_own_peak(device):
    counters, memory = device
    counters.allocate(9)
    counters.allocate(-4)
    assert memory.peak() == 9
    memory.reset()
    assert memory.peak() == 5

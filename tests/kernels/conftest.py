"""Where kernels run in tests: interpreted on a CPU, or compiled on a GPU."""

import pytest
import torch
from devices import CPU, GPU


@pytest.fixture(params=[CPU, GPU])
def device(request):
    """Each place where the kernels can run."""
    return torch.device(request.param)


@pytest.fixture
def poisoned(monkeypatch):
    """New memory is full of NaN (or of nonsense numbers): what a kernel forgets to write, a test sees."""
    new_empty = torch.Tensor.new_empty

    def poison(self, *args, **kwargs):
        fresh = new_empty(self, *args, **kwargs)
        return fresh.fill_(torch.nan if fresh.is_floating_point() else 77) if fresh.numel() else fresh

    monkeypatch.setattr(torch.Tensor, "new_empty", poison)

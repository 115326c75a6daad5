"""Figures that are worked out from a step's values."""

import math

import pytest
import torch

from sharevl_lite.metrics import percentile_95
from sharevl_lite.rewards import known


@pytest.mark.parametrize("size", [1, 2, 10, 11, 20, 21, 200])
def test_the_percentile_is_the_nearest_of_the_values_without_their_signs(size):
    values = list(range(size))
    signed = torch.tensor([-value if value % 2 else value for value in values], dtype=torch.float32)
    found = percentile_95(signed[torch.randperm(size, generator=torch.Generator().manual_seed(size))])
    assert found in values
    assert found == round(0.95 * (size - 1))
    assert percentile_95(torch.zeros(0)) is None


def test_a_reward_that_is_not_known_is_written_as_none():
    assert known(math.nan) is None
    assert [known(value) for value in (0.0, -1.5, 1.0)] == [0.0, -1.5, 1.0]

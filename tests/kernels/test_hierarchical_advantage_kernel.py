"""The advantage kernel against the plain torch form, which tests/share/test_advantage.py holds to exact arithmetic."""

import math

import pytest
import torch
from devices import GPU
from sharevl_kernels.hierarchical_advantage import SILENT_SPREAD, hierarchical_advantage
from sharevl_kernels.hierarchical_advantage import kernel as module
from sharevl_kernels.hierarchical_advantage.kernel import launch_advantage
from sharevl_kernels.hierarchical_advantage.reference import reference_advantage

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # 0 / 0 that is not used
SHAPES = [(1, 1, 1), (4, 2, 6), (3, 1, 7), (5, 3, 1), (2, 5, 11), (6, 4, 4)]


def rewards(shape, seed=0, device="cpu", dtype=torch.float32):
    """Rewards of few levels, so that many groups are silent, and a mask that leaves some groups empty or of one."""
    draw = torch.Generator().manual_seed(seed)
    rewards_PMN = torch.tensor([0.0, 0.1, 1.0])[torch.randint(3, shape, generator=draw)]
    rewards_PMN[torch.rand(shape[:2], generator=draw) < 0.3] = 0.7
    mask_PMN = torch.rand(shape, generator=draw) < 0.8
    mask_PMN[torch.rand(shape[:2], generator=draw) < 0.2] = False
    rewards_PMN[~mask_PMN] = math.nan
    return rewards_PMN.to(device, dtype), mask_PMN.to(device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("std", ["plain", "repeated", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_both_levels_in_one_launch(device, shape, std, dtype, seed, monkeypatch):
    rewards_PMN, mask_PMN = rewards(shape, seed, device, dtype)
    repeats = shape[1] if std == "repeated" else 1
    launches = []
    kernel = module.advantage_kernel

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(module, "advantage_kernel", Counted())
    found = launch_advantage(rewards_PMN, mask_PMN, 1e-6, repeats, scaled=std != "none")
    assert launches == [(shape[0],)]
    expected = reference_advantage(rewards_PMN.cpu(), mask_PMN.cpu(), 1e-6, repeats, scaled=std != "none")
    # Both are float64; eps reaches the kernel as a float32, 1e-14 from 1e-6.
    torch.testing.assert_close(found.global_PMN.cpu(), expected.global_PMN, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(found.local_PMN.cpu(), expected.local_PMN, rtol=1e-7, atol=1e-12)
    assert torch.equal(found.silent_PM.cpu(), expected.silent_PM)
    assert torch.equal(found.silent_P.cpu(), expected.silent_P)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, 1e12, 1e30])
def test_equal_rewards_have_an_advantage_of_exactly_zero(device, reward):
    rewards_PMN = torch.full((2, 3, 7), reward, device=device)
    found = launch_advantage(rewards_PMN, torch.ones_like(rewards_PMN, dtype=torch.bool), 0.0, 1)
    assert (found.global_PMN == 0.0).all()
    assert (found.local_PMN == 0.0).all()
    assert found.silent_PM.all()
    assert found.silent_P.all()


@pytest.mark.usefixtures("poisoned")
def test_rewards_that_differ_by_rounding_alone_are_no_signal(device):
    """The same border as on a CPU, to the last bit."""
    above = math.nextafter(SILENT_SPREAD, 1.0)
    spreads = [[0.3, 0.1 + 0.2], [0.0, SILENT_SPREAD], [0.0, above], [-SILENT_SPREAD, 0.0], [0.0, 2 * SILENT_SPREAD]]
    rewards_PMN = torch.tensor(spreads, dtype=torch.float64, device=device)[:, None]
    mask_PMN = torch.ones_like(rewards_PMN, dtype=torch.bool)
    found = launch_advantage(rewards_PMN, mask_PMN, 1e-6, 1)
    assert found.silent_P.tolist() == [True, True, False, True, False]
    assert found.silent_PM.squeeze(1).tolist() == [True, True, False, True, False]
    silent = found.silent_P
    for level_PMN in (found.global_PMN, found.local_PMN):
        assert (level_PMN[silent] == 0.0).all()
        assert (level_PMN[~silent] != 0.0).all()
    expected = reference_advantage(rewards_PMN.cpu(), mask_PMN.cpu(), 1e-6, 1)
    assert torch.equal(found.silent_PM.cpu(), expected.silent_PM)
    assert torch.equal(found.silent_P.cpu(), expected.silent_P)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(0, 2, 6), (3, 2, 0)], ids=str)
def test_no_rewards(device, shape):
    rewards_PMN = torch.zeros(shape, device=device)
    found = launch_advantage(rewards_PMN, torch.ones_like(rewards_PMN, dtype=torch.bool), 1e-6, 1)
    assert found.global_PMN.shape == shape
    assert found.silent_PM.all()
    assert found.silent_P.all()


@pytest.mark.parametrize("device", [GPU])
def test_the_op_on_a_gpu_is_the_op_on_a_cpu(device):
    rewards_PMN, mask_PMN = rewards((512, 2, 6), device=device)
    found = hierarchical_advantage(rewards_PMN, mask_PMN)
    expected = hierarchical_advantage(rewards_PMN.cpu(), mask_PMN.cpu())
    assert found.global_PMN.is_cuda
    assert found.global_PMN.dtype == torch.float32
    torch.testing.assert_close(found.as_pairs().cpu(), expected.as_pairs(), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        hierarchical_advantage(rewards_PMN, torch.ones_like(mask_PMN))

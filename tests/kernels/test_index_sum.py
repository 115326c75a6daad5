"""Adding up gathered rows: one after another in float32, against the loop in float64."""

import pytest
import torch
from devices import CPU, GPU, INTERPRETED
from hypothesis import given, settings
from hypothesis import strategies as st
from sharevl_kernels.index_sum import gather_rows, index_sum, sort_index
from sharevl_kernels.index_sum.kernel import launch_index_sum
from sharevl_kernels.index_sum.reference import reference_index_sum

DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16, torch.float16]


def case(dtype=torch.float32, device="cpu", width=37, seed=0):
    """Rows that belong to nobody (3, 7), to one, and to many, in no order."""
    draw = torch.Generator().manual_seed(seed)
    index_G = torch.tensor([5, 0, 5, 1, 5, 2, 2, 0, 4, 6, 5, 5, 5])
    values_GX = torch.randn(13, width, generator=draw).to(device, dtype)
    return values_GX, index_G.to(device), torch.randn(13, generator=draw).to(device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("width", [1, 37, 1100])
def test_the_kernel_adds_up_what_belongs_together(device, dtype, scaled, width):
    values_GX, index_G, scales_G = case(dtype, device, width)
    index = sort_index(index_G, 8)
    found_SX = launch_index_sum(values_GX, index.order_G, index.starts_S1, scales_G if scaled else None)
    expected_SX = reference_index_sum(values_GX.cpu(), index_G.cpu(), 8, scales_G.cpu() if scaled else None)
    assert found_SX.dtype == dtype
    # Six terms in float32, and one rounding to the dtype.
    torch.testing.assert_close(found_SX.cpu().double(), expected_SX, rtol=torch.finfo(dtype).eps, atol=2e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=30), st.booleans())
def test_the_op_on_a_cpu(places, scaled):
    values_GX = torch.randn(len(places), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(len(places)))
    scales_G = torch.arange(len(places), dtype=torch.float64) if scaled else None
    index_G = torch.tensor(places, dtype=torch.long)
    found_SX = index_sum(values_GX, sort_index(index_G, 9), scales_G=scales_G)
    torch.testing.assert_close(found_SX, reference_index_sum(values_GX, index_G, 9, scales_G), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("device", [pytest.param("cpu", id="cpu"), GPU])
def test_a_shared_rows_gradient_is_rounded_once(device):
    """256 equal gradients of 1 + 2^-7 in bfloat16: added up in bfloat16 they stop growing at 256."""
    values_SX = torch.zeros(2, 4, dtype=torch.bfloat16, device=device, requires_grad=True)
    index = sort_index(torch.zeros(256, dtype=torch.long, device=device), 2)
    (gradient_SX,) = torch.autograd.grad(
        gather_rows(values_SX, index), values_SX, torch.full((256, 4), 1.0078125, dtype=torch.bfloat16, device=device)
    )
    assert gradient_SX[0].tolist() == [258.0] * 4
    assert gradient_SX[1].tolist() == [0.0] * 4


def test_gathering_has_the_gradient_of_an_index():
    values_SHD = torch.randn(8, 2, 3, dtype=torch.float64, requires_grad=True)
    _, index_G, _ = case()
    index = sort_index(index_G, 8)
    assert torch.equal(gather_rows(values_SHD, index), values_SHD[index_G])
    torch.autograd.gradcheck(lambda v: gather_rows(v, index), values_SHD)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_registrations_hold(device):
    values_GX, index_G, _ = case(device=device)
    index = sort_index(index_G, 8)
    values_SX = torch.randn(8, 5, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.sharevl.gather_rows.default, (values_SX, *index))
    torch.library.opcheck(torch.ops.sharevl.gather_rows_backward.default, (values_GX, *index))


def test_an_index_of_other_rows_is_refused():
    values_GX, index_G, _ = case()
    index = sort_index(index_G, 8)
    with pytest.raises(ValueError, match="12 rows for an index of 13"):
        index_sum(values_GX[:12], index)
    with pytest.raises(ValueError, match="of 8 rows, there are 13"):
        gather_rows(values_GX, index)

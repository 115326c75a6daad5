"""The gated activation and its gradients, each rounded once, against autograd over the definition in float64."""

import pytest
import torch
from devices import GPU, INTERPRETED
from sharevl_kernels.swiglu import op, swiglu, swiglu_backward
from sharevl_kernels.swiglu.kernel import SPAN, launch_swiglu, launch_swiglu_backward
from sharevl_kernels.swiglu.reference import reference_swiglu, reference_swiglu_backward

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # 1 / (1 + inf) is 0
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 37), (2, SPAN), (5, 300), (0, 8)]


def case(shape, dtype=torch.float32, device="cpu", seed=0):
    """A gradient, gates of every size that matters (±100 among them), and factors."""
    draw = torch.Generator().manual_seed(seed)
    grad, gate, up = (torch.randn(shape, generator=draw) for _ in range(3))
    if gate.numel() > 4:
        gate.view(-1)[:4] = torch.tensor([-100.0, 100.0, 0.0, -20.0])
    return [x.to(device, dtype) for x in (grad, 3.0 * gate, up)]


def close(found, expected, dtype):
    # A few float32 operations, and one rounding to the dtype; float16 has no fraction finer than 6e-8.
    error = 4 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
    torch.testing.assert_close(found.cpu().double(), expected, rtol=error, atol=1e-7)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_compute_the_definition(device, dtype, shape):
    grad, gate, up = case(shape, dtype, device)
    expected = reference_swiglu_backward(grad.cpu(), gate.cpu(), up.cpu())
    found = launch_swiglu_backward(grad, gate, up)
    for ours, theirs in zip((launch_swiglu(gate, up), *found), (expected[0], *expected), strict=True):
        assert ours.dtype == dtype
        close(ours, theirs, dtype)


@pytest.mark.parametrize("place", [pytest.param("cpu", id="cpu"), GPU])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_ops_take_what_layers_hand_them(place, dtype):
    grad, gate, up = (x.T for x in case((40, 6), dtype, place))  # not contiguous
    expected = reference_swiglu_backward(grad.cpu(), gate.cpu(), up.cpu())
    close(swiglu(gate, up), reference_swiglu(gate.cpu(), up.cpu()), dtype)
    for ours, theirs in zip(swiglu_backward(grad, gate, up), expected, strict=True):
        assert ours.dtype == dtype
        assert ours.device.type == place
        close(ours, theirs, dtype)


def test_gradients_of_nothing_and_of_extremes_are_finite():
    _, gate, up = case((4, 4), torch.bfloat16)
    for number in (-3e38, -100.0, 0.0, 100.0, 3e38):
        for found in swiglu_backward(torch.ones_like(gate), gate.new_full(gate.shape, number), up / up.abs().max()):
            assert torch.isfinite(found).all()


def test_tensors_that_do_not_belong_together_are_refused():
    grad, gate, up = case((4, 4))
    with pytest.raises(ValueError, match=r"\(4, 4\) torch.float32 and \(3, 4\)"):
        swiglu(gate, up[:3])
    with pytest.raises(ValueError, match=r"torch.float32 and \(4, 4\) torch.bfloat16"):
        swiglu_backward(grad.bfloat16(), gate, up)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_ops_go_through_the_rows_in_pieces(monkeypatch, count):
    """As they do for tensors that are too large for float32 copies of them; bit for bit the same."""
    inputs = case((40, 6), torch.bfloat16)
    whole = (swiglu(*inputs[1:]), *swiglu_backward(*inputs))
    monkeypatch.setattr(op, "PIECE_NUMBERS", count * 6)
    for in_pieces, at_once in zip((swiglu(*inputs[1:]), *swiglu_backward(*inputs)), whole, strict=True):
        assert torch.equal(in_pieces, at_once)

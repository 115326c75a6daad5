"""The Triton kernels of grouped_logprob against the equations in float64: interpreted on a CPU, compiled on a GPU."""

import math

import pytest
import torch
from devices import CPU, GPU, INTERPRETED, TOLERANCES
from sharevl_kernels.grouped_logprob import grouped_logprob, launch
from sharevl_kernels.grouped_logprob.kernel import AMPERE, BLACKWELL, FLOAT32, HOPPER, ScanConfig
from sharevl_kernels.grouped_logprob.launch import kernel_logprobs
from sharevl_kernels.grouped_logprob.reference import reference_logprobs

pytestmark = [  # what overflows is left to the torch body; numpy, which interprets the kernels, says so aloud
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]
ROWS, WIDTH, VOCABULARY = 37, 48, 131  # ragged, and a prime
TILES = {
    "pointers": ScanConfig(16, 32, 16, warps=4, stages=2, group=2),
    "pointers, persistent": ScanConfig(16, 32, 16, warps=4, stages=2, persistent=True, group=2),
    "tma": ScanConfig(16, 32, 16, warps=4, stages=2, tma=True, group=2),
    "tma, persistent": ScanConfig(16, 32, 16, warps=4, stages=2, tma=True, persistent=True, group=3),
}
GPU_TILES = {
    "pointers": ScanConfig(64, 64, 32, warps=4, stages=2, group=2),
    "tma, persistent": ScanConfig(64, 64, 64, warps=4, stages=3, tma=True, persistent=True, group=2),
}
DTYPES = [torch.float32] if INTERPRETED else list(TOLERANCES)  # the interpreter multiplies bfloat16 wrongly


PLACES = [
    *(pytest.param(("cpu", tile), marks=CPU.marks, id=name) for name, tile in TILES.items()),
    pytest.param(("cuda", None), marks=GPU.marks, id="gpu"),
    *(pytest.param(("cuda", tile), marks=GPU.marks, id=f"gpu, {name}") for name, tile in GPU_TILES.items()),
]


@pytest.fixture(params=PLACES)
def place(request):
    """Interpreted and compiled with small tiles, so that a small case has many; on a GPU with its own tile too."""
    return request.param


@pytest.fixture
def config(place):
    where, tile = place
    if where == "cuda" and tile is not None and tile.tma and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a tensor memory accelerator (compute capability 9.0)")
    return tile


@pytest.fixture
def device(place):
    return torch.device(place[0])


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks of the vocabulary (of a tile or two), the last one ragged."""
    monkeypatch.setattr(launch, "EXPONENTIALS_BYTES", ROWS * 64 * 4)


def tensors(dtype, device, *, scale=1.0, seed=0, rows=ROWS, width=WIDTH, vocabulary=VOCABULARY):
    """Logits have a standard deviation of about 2·scale."""
    draw = torch.Generator().manual_seed(seed)
    hidden_TH = torch.randn(rows, width, generator=draw) * 2 * scale / math.sqrt(width)
    weight_VH = torch.randn(vocabulary, width, generator=draw)
    targets_T = torch.randint(vocabulary, (rows,), generator=draw)
    targets_T[0], targets_T[-1] = 0, vocabulary - 1
    return hidden_TH.to(device, dtype), weight_VH.to(device, dtype), targets_T.to(device)


def assert_close(found, expected, tolerance):
    logprobs_T, entropies_T, unit_TH = found
    assert logprobs_T.dtype == entropies_T.dtype == unit_TH.dtype == torch.float32
    assert (logprobs_T.double() - expected[0]).abs().max().item() <= tolerance.logprob
    assert (entropies_T.double() - expected[1]).abs().max().item() <= tolerance.logprob
    largest = expected[2].abs().max().item()
    assert (unit_TH.double() - expected[2]).abs().max().item() <= tolerance.gradient * largest


def run(hidden_TH, weight_VH, targets_T, temperature=1.0, config=None, **wanted):
    wanted = {"want_unit": True, "want_entropy": True} | wanted
    return kernel_logprobs(hidden_TH, weight_VH, targets_T, temperature, config=config, **wanted)


@pytest.mark.usefixtures("poisoned", "small_chunks")
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("scale", [0.02, 1.0, 5.0], ids=["flat", "usual", "peaked"])
def test_log_probs_entropies_and_unit_gradients(device, config, dtype, temperature, scale):
    case = tensors(dtype, device, scale=scale)
    expected = reference_logprobs(*case, temperature=temperature)
    assert_close(run(*case, temperature, config), expected, TOLERANCES[dtype])


@pytest.mark.usefixtures("poisoned", "small_chunks")
@pytest.mark.parametrize("rows", [1, 16, 33])
@pytest.mark.parametrize("vocabulary", [2, 31, 64, 97])
def test_ragged_shapes(device, config, dtype, rows, vocabulary):
    case = tensors(dtype, device, rows=rows, vocabulary=vocabulary, width=24)
    assert_close(run(*case, config=config), reference_logprobs(*case), TOLERANCES[dtype])


@pytest.mark.usefixtures("poisoned", "small_chunks")
def test_blocks_of_rows(device, config, dtype, monkeypatch):
    monkeypatch.setattr(launch, "ROWS", 48)
    case = tensors(dtype, device, rows=105)
    blocks = []
    block = launch._Block
    monkeypatch.setattr(launch, "_Block", lambda *args: blocks.append(args) or block(*args))
    assert_close(run(*case, config=config), reference_logprobs(*case), TOLERANCES[dtype])
    assert len(blocks) > 1


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "shipped", [HOPPER, BLACKWELL, AMPERE, FLOAT32], ids=["hopper", "blackwell", "ampere", "float32"]
)
@pytest.mark.skipif(not INTERPRETED, reason="compiled tiles are for one card each; test_resources compiles them all")
def test_the_shipped_tiles(shipped):
    case = tensors(torch.float32, "cpu", rows=150, vocabulary=601, width=80)
    assert_close(run(*case, config=shipped), reference_logprobs(*case), TOLERANCES[torch.float32])


@pytest.mark.usefixtures("poisoned", "small_chunks")
def test_a_certain_target_keeps_its_small_log_prob_and_gradient(device, config, dtype):
    """At a margin of 20 a float32 log_softmax returns 0 where the truth is -1e-8."""
    hidden_TH, weight_VH, targets_T = tensors(dtype, device, scale=0.05)
    weight_VH[:, -1] = 0.0
    weight_VH[targets_T.unique(), -1] = 0.0
    hidden_TH[:, -1] = 24.0
    targets_T.fill_(7)
    weight_VH[7, -1] = 1.0
    expected_T, _, expected_TH = reference_logprobs(hidden_TH, weight_VH, targets_T)
    assert -1e-6 < expected_T.max().item() < 0.0
    logprobs_T, entropies_T, unit_TH = run(hidden_TH, weight_VH, targets_T, config=config)
    # Relative: the sum of the others is taken on its own. The margins themselves are rounded to 24·6e-8.
    torch.testing.assert_close(logprobs_T.double(), expected_T, rtol=2e-5, atol=0.0)
    torch.testing.assert_close(unit_TH.double(), expected_TH, rtol=2e-2, atol=1e-2 * expected_TH.abs().max().item())
    assert (entropies_T > 0.0).all()


@pytest.mark.usefixtures("poisoned", "small_chunks")
@pytest.mark.parametrize("margin", [60.0, 80.0, 120.0, 400.0])
def test_a_target_far_below_the_others_neither_overflows_nor_loses_its_gradient(device, config, dtype, margin):
    hidden_TH, weight_VH, targets_T = tensors(dtype, device)
    hidden_TH[4:7, -1] = margin
    weight_VH[:, -1] = 1.0
    weight_VH[targets_T[4:7], -1] = 0.0
    expected = reference_logprobs(hidden_TH, weight_VH, targets_T)
    assert expected[0][4:7].max().item() < 10 - margin
    logprobs_T, entropies_T, unit_TH = run(hidden_TH, weight_VH, targets_T, config=config)
    torch.testing.assert_close(logprobs_T.double(), expected[0], rtol=1e-6, atol=TOLERANCES[dtype].logprob)
    # An entropy is what is left of two sums as large as the margin.
    torch.testing.assert_close(entropies_T.double(), expected[1], rtol=0.0, atol=1e-6 * margin + 5e-5)
    # Logits as large as the margin are rounded to 6e-8 of it, and so are the ratios of the others' probabilities.
    tolerance = (TOLERANCES[dtype].gradient + 2e-7 * margin) * expected[2].abs().max().item()
    torch.testing.assert_close(unit_TH.double(), expected[2], rtol=0.0, atol=tolerance)


@pytest.mark.usefixtures("poisoned", "small_chunks")
def test_a_target_outside_the_vocabulary_is_zero_and_moves_nothing(device, config, dtype):
    # Its exponentials overflow: no z_y to subtract. Of this draw one row is steep and yet within the kernel's reach.
    hidden_TH, weight_VH, targets_T = tensors(dtype, device, scale=60.0, seed=4)
    targets_T[[3, 9, 20]] = torch.tensor([-100, VOCABULARY, 2**40], device=device)
    found = run(hidden_TH, weight_VH, targets_T, config=config)
    for result in found:
        assert (result[[3, 9, 20]] == 0.0).all()
        assert torch.isfinite(result).all()
    targets_T[[3, 9, 20]] = 5
    kept = [i for i in range(ROWS) if i not in (3, 9, 20) and found[0][i] > launch.STEEPEST]
    assert kept
    for result, other in zip(found, run(hidden_TH, weight_VH, targets_T, config=config), strict=True):
        assert torch.equal(result[kept], other[kept])


@pytest.mark.usefixtures("poisoned", "small_chunks")
def test_the_bits_do_not_depend_on_what_else_is_wanted(device, config, dtype):
    case = tensors(dtype, device, scale=3.0)
    both = run(*case, config=config)
    for wanted in ({"want_unit": False}, {"want_entropy": False}, {"want_unit": False, "want_entropy": False}):
        found = run(*case, config=config, **wanted)
        assert torch.equal(found[0], both[0])
        if wanted.get("want_entropy", True):
            assert torch.equal(found[1], both[1])
        else:
            assert found[1].numel() == 0
        assert found[2].numel() == (both[2].numel() if wanted.get("want_unit", True) else 0)


def test_a_value_that_is_not_a_number_stays_one(device, config, dtype):
    hidden_TH, weight_VH, targets_T = tensors(dtype, device)
    hidden_TH[5, 3] = math.nan
    logprobs_T, _, _ = run(hidden_TH, weight_VH, targets_T, config=config)
    assert logprobs_T.isnan().nonzero().flatten().tolist() == [5]


# ---------------------------------------------------------------- the op on a GPU


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_the_op_gathers_rows_scales_and_sums(device, dtype):
    draw = torch.Generator().manual_seed(1)
    hidden_SH = (torch.randn(300, 256, generator=draw) / 8).to(device, dtype).requires_grad_(True)
    weight_VH = torch.randn(5003, 256, generator=draw).to(device, dtype)
    rows_T = torch.randint(300, (1000,), generator=draw).to(device)
    targets_T = torch.randint(5003, (1000,), generator=draw).to(device)
    cu_seqlens_B1 = torch.tensor([0, 10, 10, 700, 1000], device=device)
    grad_T = torch.randn(1000, generator=draw).to(device)
    found = grouped_logprob(
        hidden_SH,
        weight_VH,
        targets_T,
        rows_T=rows_T,
        cu_seqlens_B1=cu_seqlens_B1,
        temperature=0.8,
        return_entropy=True,
    )
    expected = reference_logprobs(hidden_SH, weight_VH, targets_T, rows_T=rows_T, temperature=0.8)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found.logprobs_T.double(), expected[0], rtol=0.0, atol=tolerance.logprob)
    torch.testing.assert_close(found.entropies_T.double(), expected[1], rtol=0.0, atol=tolerance.logprob)
    assert found.sums_B[1].item() == 0.0
    sums_B = torch.stack([part.sum() for part in found.logprobs_T.detach().split([10, 0, 690, 300])])
    torch.testing.assert_close(found.sums_B, sums_B, rtol=1e-5, atol=1e-3)
    (gradient_SH,) = torch.autograd.grad((found.logprobs_T * grad_T).sum(), hidden_SH)
    expected_SH = torch.zeros(300, 256, dtype=torch.float64, device=device)
    expected_SH.index_add_(0, rows_T, expected[2] * grad_T[:, None].double())
    # One rounding to the dtype on top of the unit gradients' error.
    limit = (tolerance.gradient + torch.finfo(dtype).eps) * expected_SH.abs().max().item()
    assert (gradient_SH.double() - expected_SH).abs().max().item() <= limit


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_a_trained_head_on_a_gpu(device, dtype):
    draw = torch.Generator().manual_seed(1)
    hidden_TH = (torch.randn(200, 128, generator=draw) / 6).to(device, dtype).requires_grad_(True)
    weight_VH = torch.randn(1009, 128, generator=draw).to(device, dtype).requires_grad_(True)
    targets_T = torch.randint(1009, (200,), generator=draw).to(device)
    exact = [x.detach().double().requires_grad_(True) for x in (hidden_TH, weight_VH)]
    logprobs_T = grouped_logprob(hidden_TH, weight_VH, targets_T).logprobs_T
    expected_T = (exact[0] @ exact[1].T).log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
    assert (logprobs_T.double() - expected_T).abs().max().item() <= TOLERANCES[dtype].logprob
    found = torch.autograd.grad(logprobs_T.sum(), (hidden_TH, weight_VH))
    for gradient, expected in zip(found, torch.autograd.grad(expected_T.sum(), exact), strict=True):
        # The gradient of the logits is rounded to the dtype before both products, as in a linear layer.
        limit = (TOLERANCES[dtype].gradient + 2 * torch.finfo(dtype).eps) * expected.abs().max().item()
        assert (gradient.double() - expected).abs().max().item() <= limit


@pytest.mark.parametrize("device", [GPU])
def test_it_compiles_on_a_gpu(device):
    hidden_TH, weight_VH, targets_T = tensors(torch.bfloat16, device, rows=64)
    hidden_TH.requires_grad_(True)

    def loss(hidden_TH):
        return grouped_logprob(hidden_TH * 2, weight_VH, targets_T).logprobs_T.square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    plain, traced = loss(hidden_TH), compiled(hidden_TH)
    torch.testing.assert_close(traced, plain, rtol=1e-3, atol=0.0)  # hidden · 2 is exact; sums in another order
    torch.testing.assert_close(torch.autograd.grad(traced, hidden_TH), torch.autograd.grad(plain, hidden_TH))


@pytest.mark.parametrize("device", [GPU])
def test_with_and_without_a_gradient_the_bits_are_the_same_at_full_size(device):
    draw = torch.Generator(device).manual_seed(2)
    hidden_TH = torch.randn(4100, 2048, generator=draw, device=device, dtype=torch.bfloat16)
    weight_VH = torch.randn(151936, 2048, generator=draw, device=device, dtype=torch.bfloat16) / 45
    targets_T = torch.randint(151936, (4100,), generator=draw, device=device)
    with torch.no_grad():
        plain = grouped_logprob(hidden_TH, weight_VH, targets_T, return_entropy=True)
    hidden_TH.requires_grad_(True)
    for entropy in (True, False):
        trained = grouped_logprob(hidden_TH, weight_VH, targets_T, return_entropy=entropy)
        assert trained.logprobs_T.requires_grad
        assert torch.equal(plain.logprobs_T, trained.logprobs_T)


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize(
    ("tokens", "vocabulary", "dtype"),
    [
        (8192, 152064, torch.bfloat16),
        (24576, 152064, torch.bfloat16),
        (8192, 304128, torch.bfloat16),
        (256, 152064, torch.float16),
    ],
)
def test_its_workspace_is_bounded_whatever_the_tokens_and_the_vocabulary(device, tokens, vocabulary, dtype):
    width = 1024
    hidden_TH = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
    weight_VH = torch.randn(vocabulary, width, device=device, dtype=dtype) / 32
    targets_T = torch.randint(vocabulary, (tokens,), device=device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grouped_logprob(hidden_TH, weight_VH, targets_T).logprobs_T.sum().backward()
    unit_bytes = 2 * tokens * width * 4  # the unit gradients, and their scaled copy
    assert torch.cuda.max_memory_allocated() - before - unit_bytes <= 400 * 1024**2


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("repeated", [False, True], ids=["own rows", "repeated rows"])
def test_the_registration_holds(device, repeated):
    """Schema, fake implementation, autograd and tracing, by torch's own checks."""
    hidden_SH, weight_VH, targets_T = tensors(torch.float32, device)
    rows_T = torch.tensor([5, 5, 0, 3], device=device).repeat(10)[:ROWS] if repeated else None
    op = torch.ops.sharevl.grouped_logprob.default
    for want_unit in (False, True):
        arguments = (hidden_SH.clone().requires_grad_(want_unit), weight_VH, targets_T, rows_T, 0.7, want_unit, True)
        torch.library.opcheck(op, arguments)

"""grouped_logprob as its users call it, against the equations in float64; on a CPU, where torch ops do the work."""

import math

import pytest
import torch
from sharevl_kernels.grouped_logprob import body, grouped_logprob
from sharevl_kernels.grouped_logprob.reference import reference_logprobs

HIDDEN, VOCABULARY, ROWS, TARGETS = 8, 23, 6, 10


@pytest.fixture(params=[1, 3, 10, 2048], ids="chunks of {}".format)
def chunk(request, monkeypatch):
    """Chunks of one row, with a short last one, exactly all, and more than all."""
    monkeypatch.setattr(body, "CHUNK_ELEMENTS", request.param * VOCABULARY)
    return request.param


def tensors(dtype=torch.float64, seed=0, scale=1.0):
    """Hidden rows, a head, targets and the (repeated, unordered) rows that predict them."""
    draw = torch.Generator().manual_seed(seed)
    hidden_SH = scale * torch.randn(ROWS, HIDDEN, generator=draw, dtype=torch.float64)
    weight_VH = torch.randn(VOCABULARY, HIDDEN, generator=draw, dtype=torch.float64)
    targets_T = torch.randint(VOCABULARY, (TARGETS,), generator=draw)
    targets_T[:2] = torch.tensor([0, VOCABULARY - 1])
    rows_T = torch.tensor([5, 5, 0, 1, 2, 5, 3, 0, 4, 5])
    return hidden_SH.to(dtype), weight_VH.to(dtype), targets_T, rows_T


def naive(hidden_SH, weight_VH, targets_T, rows_T, temperature=1.0):
    """What any textbook says, differentiable: log_softmax and gather."""
    all_TV = ((hidden_SH.double() @ weight_VH.double().T) / temperature).log_softmax(-1)[rows_T]
    return all_TV.gather(1, targets_T[:, None])[:, 0], -(all_TV.exp() * all_TV).sum(-1)


def test_the_reference_is_the_textbook_with_autograd():
    hidden_SH, weight_VH, targets_T, rows_T = tensors(scale=2.0)
    logprobs_T, entropies_T, unit_TH = reference_logprobs(
        hidden_SH, weight_VH, targets_T, rows_T=rows_T, temperature=0.7
    )
    hidden_TH = hidden_SH[rows_T].requires_grad_(True)
    expected_T, expected_entropies_T = naive(hidden_TH, weight_VH, targets_T, torch.arange(TARGETS), 0.7)
    torch.testing.assert_close(logprobs_T, expected_T.detach(), rtol=1e-13, atol=1e-13)  # float64
    torch.testing.assert_close(entropies_T, expected_entropies_T.detach(), rtol=1e-13, atol=1e-13)
    (expected_TH,) = torch.autograd.grad(expected_T.sum(), hidden_TH)
    torch.testing.assert_close(unit_TH, expected_TH, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("chunk", "poisoned")
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trained head"])
def test_log_probs_and_entropies(temperature, trainable):
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    expected_T, expected_entropies_T = naive(hidden_SH, weight_VH, targets_T, rows_T, temperature)
    found = grouped_logprob(
        hidden_SH,
        weight_VH.requires_grad_(trainable),
        targets_T,
        rows_T=rows_T,
        temperature=temperature,
        return_entropy=True,
    )
    # float64 throughout: products of 8 and sums of 23 terms, 1e-16 each.
    torch.testing.assert_close(found.logprobs_T.detach(), expected_T, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.entropies_T, expected_entropies_T, rtol=1e-13, atol=1e-13)
    assert found.sums_B is None


@pytest.mark.usefixtures("chunk")
def test_without_rows_each_target_has_its_own():
    hidden_SH, weight_VH, targets_T, _ = tensors()
    found = grouped_logprob(hidden_SH, weight_VH, targets_T[:ROWS])
    expected_T, _ = naive(hidden_SH, weight_VH, targets_T[:ROWS], torch.arange(ROWS))
    torch.testing.assert_close(found.logprobs_T, expected_T, rtol=1e-13, atol=1e-13)  # as above
    assert found.entropies_T is None


@pytest.mark.usefixtures("chunk", "poisoned")
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trained head"])
def test_gradients_reach_every_repeated_row_and_a_trained_head(trainable):
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    inputs = (hidden_SH.requires_grad_(True), weight_VH.requires_grad_(trainable))[: 1 + trainable]

    def call(*inputs):
        head = inputs[1] if trainable else weight_VH
        return grouped_logprob(inputs[0], head, targets_T, rows_T=rows_T, temperature=0.7, return_entropy=True)

    torch.autograd.gradcheck(lambda *inputs: call(*inputs).logprobs_T, inputs)
    weights_T = torch.linspace(-1, 1, TARGETS, dtype=torch.float64)
    found = call(*inputs)
    gradients = torch.autograd.grad((weights_T * found.logprobs_T).sum(), inputs)
    expected_T, _ = naive(hidden_SH, weight_VH, targets_T, rows_T, 0.7)
    expected = torch.autograd.grad((weights_T * expected_T).sum(), inputs)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-13)  # float64 sums over chunks and targets
    assert not found.entropies_T.requires_grad


def test_sums_of_segments_have_gradients_and_may_be_empty():
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    hidden_SH.requires_grad_(True)
    cu_seqlens_B1 = torch.tensor([0, 0, 4, 9, 9, 10])
    found = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T, cu_seqlens_B1=cu_seqlens_B1)
    pieces = found.logprobs_T.split([0, 4, 5, 0, 1])
    expected_B = torch.stack([piece.sum() for piece in pieces])
    torch.testing.assert_close(found.sums_B, expected_B, rtol=1e-14, atol=0.0)
    weights_B = torch.tensor([7.0, 1.0, -2.0, 5.0, 3.0], dtype=torch.float64)
    (gradient_SH,) = torch.autograd.grad((weights_B * found.sums_B).sum(), hidden_SH, retain_graph=True)
    (expected_SH,) = torch.autograd.grad((weights_B * expected_B).sum(), hidden_SH)
    torch.testing.assert_close(gradient_SH, expected_SH, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("bad", [[0, 4, 9], [1, 10], [0, 6, 4, 10], []])
def test_segments_must_cover_the_targets(bad):
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    with pytest.raises(ValueError, match="must rise from 0 to 10"):
        grouped_logprob(
            hidden_SH, weight_VH, targets_T, rows_T=rows_T, cu_seqlens_B1=torch.tensor(bad, dtype=torch.long)
        )


def test_the_wide_product_of_gpus_has_the_gradients_of_a_product(monkeypatch):
    """Run here with a plain product in the place of the one that only GPUs have."""
    monkeypatch.setattr(body, "_wide_mm", torch.mm)
    draw = torch.Generator().manual_seed(0)
    left_AB = torch.randn(3, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    right_BC = torch.randn(4, 5, dtype=torch.float64, generator=draw, requires_grad=True)
    torch.autograd.gradcheck(body._WideProduct.apply, (left_AB, right_BC))
    torch.autograd.gradcheck(lambda left: body._WideProduct.apply(left, right_BC.detach()), left_AB)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_pass_with_gradients_gives_the_same_bits_as_the_one_without(dtype):
    hidden_SH, weight_VH, targets_T, rows_T = tensors(dtype, seed=3, scale=4.0)
    arguments = {"rows_T": rows_T, "temperature": 0.9}
    with torch.no_grad():
        plain = grouped_logprob(hidden_SH, weight_VH, targets_T, return_entropy=True, **arguments)
    hidden_SH.requires_grad_(True)
    trained = grouped_logprob(hidden_SH, weight_VH, targets_T, return_entropy=True, **arguments)
    assert trained.logprobs_T.requires_grad
    assert torch.equal(plain.logprobs_T, trained.logprobs_T)
    assert torch.equal(plain.entropies_T, trained.entropies_T)
    # The old log-probs come with entropies, the trained ones without.
    assert torch.equal(plain.logprobs_T, grouped_logprob(hidden_SH, weight_VH, targets_T, **arguments).logprobs_T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_normalised_in_float32(dtype):
    hidden_SH, weight_VH, targets_T, rows_T = tensors(dtype, seed=4, scale=5.0)
    found = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T, return_entropy=True)
    assert found.logprobs_T.dtype == found.entropies_T.dtype == torch.float32
    logits_TV = (hidden_SH @ weight_VH.T)[rows_T]  # rounded to dtype as the op's are on a CPU, exact from here
    all_TV = logits_TV.double().log_softmax(-1)
    expected_T = all_TV.gather(1, targets_T[:, None])[:, 0]
    # Logits up to 50 and a sum of 23 exponentials in float32: some roundings of 50 · 6e-8.
    torch.testing.assert_close(found.logprobs_T.double(), expected_T, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(found.entropies_T.double(), -(all_TV.exp() * all_TV).sum(-1), rtol=1e-5, atol=2e-5)


def test_large_logits_neither_overflow_nor_lose_the_certain_token():
    weight_VH = torch.eye(3)
    found = grouped_logprob(torch.tensor([[1e4, 0.0, -1e4]]), weight_VH, torch.tensor([0]), return_entropy=True)
    assert found.logprobs_T.item() == 0.0
    assert found.entropies_T.item() == 0.0
    found = grouped_logprob(torch.tensor([[20.0, 0.0, -1e4]]), weight_VH, torch.tensor([0]))
    assert found.logprobs_T.item() == pytest.approx(-math.exp(-20), rel=1e-5)  # log_softmax in float32 gives 0
    found = grouped_logprob(torch.zeros(1, 3), weight_VH, torch.tensor([2]), return_entropy=True)
    assert found.logprobs_T.item() == pytest.approx(-math.log(3), rel=1e-6)  # float32
    assert found.entropies_T.item() == pytest.approx(math.log(3), rel=1e-6)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trained head"])
def test_under_autograd_no_logits_are_kept(trainable):
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    hidden_SH.requires_grad_(True)
    weight_VH.requires_grad_(trainable)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T)
    assert kept
    assert all(VOCABULARY not in shape[1:] for shape in kept), kept


def test_a_second_derivative_is_refused():
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    hidden_SH.requires_grad_(True)
    logprobs_T = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T).logprobs_T
    (gradient_SH,) = torch.autograd.grad((logprobs_T**2).sum(), hidden_SH, create_graph=True)
    with pytest.raises(RuntimeError, match="grouped_logprob_backward"):
        gradient_SH.square().sum().backward()


# ---------------------------------------------------------------- autocast and compilation


def test_autocast_casts_as_for_a_linear_layer():
    hidden_SH, weight_VH, targets_T, rows_T = tensors(torch.float32)
    hidden_SH.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T)
    expected = grouped_logprob(hidden_SH.detach().bfloat16(), weight_VH.bfloat16(), targets_T, rows_T=rows_T)
    assert found.logprobs_T.dtype == torch.float32
    assert torch.equal(found.logprobs_T, expected.logprobs_T)
    found.logprobs_T.sum().backward()
    assert hidden_SH.grad.dtype == torch.float32
    assert hidden_SH.grad.abs().max() > 0.1


def test_autocast_leaves_float64_alone():
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T)
    assert torch.equal(found.logprobs_T, grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T).logprobs_T)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trained head"])
def test_it_compiles_into_one_graph(trainable):
    hidden_SH, weight_VH, targets_T, rows_T = tensors(torch.float32)
    cu_seqlens_B1 = torch.tensor([0, 4, 10])
    inputs = (hidden_SH.requires_grad_(True), weight_VH.requires_grad_(trainable))[: 1 + trainable]

    def loss(hidden_SH, weight_VH):
        found = grouped_logprob(
            hidden_SH * 2, weight_VH, targets_T, rows_T=rows_T, cu_seqlens_B1=cu_seqlens_B1, return_entropy=True
        )
        return found.sums_B.square().sum() + found.entropies_T.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    plain, traced = loss(hidden_SH, weight_VH), compiled(hidden_SH, weight_VH)
    torch.testing.assert_close(traced, plain, rtol=1e-6, atol=0.0)  # the same float32 ops, perhaps in another order
    torch.testing.assert_close(torch.autograd.grad(traced, inputs), torch.autograd.grad(plain, inputs))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("bad", [-1, VOCABULARY, -100])
def test_a_target_outside_the_vocabulary_is_refused(bad):
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    targets_T[4] = bad
    with pytest.raises(ValueError, match=r"outside \[0, 23\)"):
        grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T)


def test_every_target_needs_one_row():
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    with pytest.raises(ValueError, match="10 targets for 6 rows"):
        grouped_logprob(hidden_SH, weight_VH, targets_T)
    with pytest.raises(ValueError, match="4 targets for 6 rows"):
        grouped_logprob(hidden_SH, weight_VH, targets_T[:4])
    with pytest.raises(ValueError, match="10 targets for 9 rows"):
        grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T[:9])


def test_shapes_dtypes_and_temperature_are_checked():
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    with pytest.raises(ValueError, match=r"agree in H, got \(6, 8\) and \(23, 7\)"):
        grouped_logprob(hidden_SH, weight_VH[:, :7], targets_T, rows_T=rows_T)
    with pytest.raises(ValueError, match="cast one, or use autocast"):
        grouped_logprob(hidden_SH.float(), weight_VH, targets_T, rows_T=rows_T)
    with pytest.raises(ValueError, match="temperature must be positive"):
        grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T, temperature=0.0)


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(("dtype", "wide"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_nothing_to_score(dtype, wide, trainable):
    hidden_SH, weight_VH, _, _ = tensors(dtype)
    none_T = torch.zeros(0, dtype=torch.long)
    found = grouped_logprob(
        hidden_SH.requires_grad_(True),
        weight_VH.requires_grad_(trainable),
        none_T,
        rows_T=none_T,
        cu_seqlens_B1=torch.tensor([0, 0]),
        return_entropy=True,
    )
    for result_T in found[:2]:
        assert result_T.shape == (0,)
        assert result_T.dtype == wide
    assert found.sums_B.tolist() == [0.0]
    found.logprobs_T.sum().backward()
    assert (hidden_SH.grad == 0.0).all()

"""grouped_logprob against log_softmax and gather in float64."""

import math

import pytest
import torch
from sharevl_kernels.grouped_logprob import grouped_logprob, op

HIDDEN, VOCABULARY, ROWS, TARGETS = 8, 23, 6, 10


@pytest.fixture(params=[1, 3, 10, 2048], ids="chunks of {}".format)
def chunk(request, monkeypatch):
    """Chunks of one, with a short last one, exactly all, and more than all."""
    monkeypatch.setattr(op, "CHUNK", request.param)
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


def naive(hidden_SH, weight_VH, targets_T, rows_T, temperature):
    all_TV = ((hidden_SH.double() @ weight_VH.double().T) / temperature).log_softmax(-1)[rows_T]
    return all_TV.gather(1, targets_T[:, None])[:, 0], -(all_TV.exp() * all_TV).sum(-1)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_log_probs_and_entropies(temperature):
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    logprobs_T, entropies_T = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T, temperature=temperature)
    expected_T, expected_entropies_T = naive(hidden_SH, weight_VH, targets_T, rows_T, temperature)
    # float64 throughout: products of 8 and sums of 23 terms, 1e-16 each.
    torch.testing.assert_close(logprobs_T, expected_T, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(entropies_T, expected_entropies_T, rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("chunk")
def test_without_rows_each_target_has_its_own():
    hidden_SH, weight_VH, targets_T, _ = tensors()
    found = grouped_logprob(hidden_SH, weight_VH, targets_T[:ROWS])
    expected = naive(hidden_SH, weight_VH, targets_T[:ROWS], torch.arange(ROWS), 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)  # as above


@pytest.mark.usefixtures("chunk")
def test_gradients_reach_every_repeated_row_and_the_head():
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    hidden_SH.requires_grad_(True)
    weight_VH.requires_grad_(True)
    torch.autograd.gradcheck(
        lambda h, w: grouped_logprob(h, w, targets_T, rows_T=rows_T, temperature=0.7)[0], (hidden_SH, weight_VH)
    )
    weights_T = torch.linspace(-1, 1, TARGETS, dtype=torch.float64)
    logprobs_T, entropies_T = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T, temperature=0.7)
    found = torch.autograd.grad((weights_T * logprobs_T).sum(), (hidden_SH, weight_VH))
    expected_T, _ = naive(hidden_SH, weight_VH, targets_T, rows_T, 0.7)
    expected = torch.autograd.grad((weights_T * expected_T).sum(), (hidden_SH, weight_VH))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)  # float64 sums over chunks and targets
    assert not entropies_T.requires_grad


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_pass_with_gradients_gives_the_same_bits_as_the_one_without(dtype):
    hidden_SH, weight_VH, targets_T, rows_T = tensors(dtype, seed=3, scale=4.0)
    with torch.no_grad():
        plain = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T, temperature=0.9)
    hidden_SH.requires_grad_(True)
    trained = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T, temperature=0.9)
    assert trained[0].requires_grad
    assert torch.equal(plain[0], trained[0])
    assert torch.equal(plain[1], trained[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_normalised_in_float32(dtype):
    hidden_SH, weight_VH, targets_T, rows_T = tensors(dtype, seed=4, scale=5.0)
    logprobs_T, entropies_T = grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T)
    assert logprobs_T.dtype == entropies_T.dtype == torch.float32
    logits_TV = (hidden_SH @ weight_VH.T)[rows_T]  # rounded to dtype as the op's are, exact from here
    all_TV = logits_TV.double().log_softmax(-1)
    expected_T = all_TV.gather(1, targets_T[:, None])[:, 0]
    # Logits up to 50 and a sum of 23 exponentials in float32: some roundings of 50 · 6e-8.
    torch.testing.assert_close(logprobs_T.double(), expected_T, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(entropies_T.double(), -(all_TV.exp() * all_TV).sum(-1), rtol=1e-5, atol=2e-5)


def test_large_logits_neither_overflow_nor_lose_the_certain_token():
    weight_VH = torch.eye(3)
    logprobs_T, entropies_T = grouped_logprob(torch.tensor([[1e4, 0.0, -1e4]]), weight_VH, torch.tensor([0]))
    assert logprobs_T.item() == 0.0
    assert entropies_T.item() == 0.0
    uniform, entropy = grouped_logprob(torch.zeros(1, 3), weight_VH, torch.tensor([2]))
    assert uniform.item() == pytest.approx(-math.log(3), rel=1e-6)  # float32
    assert entropy.item() == pytest.approx(math.log(3), rel=1e-6)


def test_under_autograd_no_logits_are_kept():
    hidden_SH, weight_VH, targets_T, rows_T = tensors()
    hidden_SH.requires_grad_(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        grouped_logprob(hidden_SH, weight_VH, targets_T, rows_T=rows_T)
    assert all(VOCABULARY not in shape[1:] for shape in kept), kept


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


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_nothing_to_score(dtype, wide):
    hidden_SH, weight_VH, _, _ = tensors(dtype)
    none_T = torch.zeros(0, dtype=torch.long)
    for result_T in grouped_logprob(hidden_SH, weight_VH, none_T, rows_T=none_T):
        assert result_T.shape == (0,)
        assert result_T.dtype == wide

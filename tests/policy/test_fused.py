"""Fused layers compute and learn what PEFT and transformers do, in fewer operations."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_packed_scores import ALL, TEMPERATURE, exact, gradients, make_case, packed_scores, worst
from tiny_models import FAMILIES, tiny_model, tiny_policy
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sharevl_lite.config_model import ModelSection
from sharevl_lite.policy import adapted
from sharevl_lite.policy.adapted import Adapted, adapted_linear, adapted_mlp
from sharevl_lite.policy.fused import fuse, stock_layers
from sharevl_lite.policy.hf import load_policy

assert exact  # a fixture
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
VIEWS = {"view", "_unsafe_view", "t", "transpose", "expand", "detach", "alias", "select", "slice", "unsqueeze", "split"}


class Operations(TorchDispatchMode):
    """Counts operations that write something."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.counts[name] += name not in VIEWS
        return function(*args, **(kwargs or {}))


def scores_and_slopes(policy, budget=ALL):
    scores = packed_scores(policy, make_case(policy), budget)
    return scores, gradients(policy, scores)


def test_while_sampling_an_adapter_is_narrowed_once():
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*shape, generator=draw).bfloat16() for shape in ((6, 4), (2, 4)))
    a, b = (torch.randn(*shape, generator=draw) for shape in ((3, 4), (6, 3)))
    layer = Adapted(weight, None, a, b, 0.7)
    with torch.no_grad(), adapted.narrowed_once():
        expected = adapted_linear(x, layer)
        with Operations() as seen:
            assert torch.equal(adapted_linear(x, layer), expected)
        assert seen.counts["_to_copy"] == 0
    b.mul_(2.0)  # an update
    with torch.no_grad():
        assert not torch.equal(adapted_linear(x, layer), expected)
        with adapted.narrowed_once():
            assert torch.equal(adapted_linear(x, layer), adapted_linear(x, Adapted(weight, None, a, b.bfloat16(), 0.7)))
    assert adapted_linear(x[:0], layer).shape == (0, 6)


def test_gradients_are_those_of_the_formula():
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, a, b = (
        torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((2, 5, 4), (6, 4), (6,), (3, 4), (6, 3))
    )
    for tensor in (x, a, b):
        tensor.requires_grad_()
    for constant in (None, bias):
        torch.testing.assert_close(
            adapted_linear(x, Adapted(weight, constant, a, b, 0.7)),
            x @ (weight + 0.7 * b @ a).T + (0.0 if constant is None else constant),
        )
        assert torch.autograd.gradcheck(
            lambda x, a, b, c=constant: adapted_linear(x, Adapted(weight, c, a, b, 0.7)), (x, a, b)
        )
    # Where nothing before the layer trains, its input gets no gradient.
    adapted_linear(x.detach(), Adapted(weight, bias, a, b, 0.7)).sum().backward()
    assert x.grad is None
    assert a.grad.abs().sum() > 0


@pytest.mark.parametrize("biased", [False, True])
def test_gradients_of_an_mlp_are_those_of_the_formula(biased):
    draw = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    sizes = ((4, 6), (4, 6), (6, 4))
    x, scales = random(2, 5, 4).requires_grad_(), (0.7, 1.3, 0.4)
    fixed = [(random(outer, inner), random(outer) if biased else None) for inner, outer in sizes]
    adapters = [random(*shape).requires_grad_() for inner, outer in sizes for shape in ((3, inner), (outer, 3))]

    def layers(adapters):
        return [Adapted(*fixed[k], *adapters[2 * k : 2 * k + 2], scale) for k, scale in enumerate(scales)]

    def dense(x, layer):
        wide = layer.weight_OI + layer.scale * layer.b_OR @ layer.a_RI
        return torch.nn.functional.linear(x, wide, layer.bias_O)

    gate, up, down = layers(adapters)
    expected = dense(torch.nn.functional.silu(dense(x, gate)) * dense(x, up), down)
    torch.testing.assert_close(adapted_mlp(x, gate, up, down), expected)
    assert torch.autograd.gradcheck(lambda x, *adapters: adapted_mlp(x, *layers(adapters)), (x, *adapters))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_fused_policy_scores_and_learns_alike(family, checkpointing):
    policy = tiny_policy(family, dtype=torch.float64, temperature=TEMPERATURE, checkpointing=checkpointing).train()
    expected, slopes = scores_and_slopes(policy)
    layers = policy.config.text_config.num_hidden_layers
    norms = 4 if family == "qwen3_vl" else 2
    assert fuse(policy.model) == layers * (7 + 1 + norms) + 1  # projections, their MLP, norms
    found, fused = scores_and_slopes(policy)
    assert worst(found, expected) < 1e-12
    assert fused.keys() == slopes.keys()
    assert worst(fused.values(), slopes.values()) < 1e-10
    with stock_layers(policy.model):
        stock, steep = scores_and_slopes(policy)
    assert worst(stock, expected) == 0.0
    assert worst(steep.values(), slopes.values()) == 0.0
    again, back = scores_and_slopes(policy)
    assert worst(again, found) == 0.0
    assert worst(back.values(), fused.values()) == 0.0
    assert worst(found, expected) > 0.0  # other layers, indeed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_close_to_float64_as_before(family, device):
    stock, fused = [], []
    for seed in range(3):
        made = {"seed": seed, "dtype": torch.bfloat16, "temperature": TEMPERATURE}
        truth, slopes = scores_and_slopes(tiny_policy(family, **made).double())
        policy = tiny_policy(family, **made).to(device).train()
        for errors in (stock, fused):
            found, learned = scores_and_slopes(policy)
            far = torch.cat(found).detach().double().cpu() - torch.cat(truth).detach()
            off = sum((learned[key].double().cpu() - slopes[key]).square().sum() for key in slopes)
            errors.append((far.square().mean().item(), off.item() / sum(s.square().sum() for s in slopes.values())))
            fuse(policy.model)
    # Draws of the same roundings. Of single models the roots were 0.7 to 1.3 times as large, by chance.
    for one, other in zip(zip(*stock, strict=True), zip(*fused, strict=True), strict=True):
        assert sum(other) <= 1.25**2 * sum(one)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_takes_fewer_operations(family, monkeypatch):
    """Counted as on a GPU, where an activation and its gradients are one kernel each and no torch operation."""
    monkeypatch.setattr(adapted, "swiglu", lambda gate, up: gate)
    monkeypatch.setattr(adapted, "swiglu_backward", lambda grad, gate, up: (grad, gate, up))
    policy = tiny_policy(family, dtype=torch.bfloat16).train()
    scores_and_slopes(policy)  # the vision tower's features are kept from here on
    counts = []
    for _ in range(2):
        with Operations() as operations:
            scores_and_slopes(policy)
        counts.append(operations.counts)
        fuse(policy.model)
    before, after = counts
    assert after["mm"] + after["addmm"] + after["addmm_"] == before["mm"] + before["addmm"]
    blocks = policy.config.text_config.num_hidden_layers
    layers = 7 * blocks
    assert after["silu"] + after["silu_backward"] == 0
    # Neither forward nor backward is scaled or added at the layer's width; a few inputs are the first layer's.
    assert before["add"] - after["add"] >= 2 * layers - 3
    assert before["mul"] - after["mul"] >= 2 * layers + 3 * blocks  # the last of the gated activation
    assert after["mul_"] == before["mul_"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_mlp_keeps_what_its_projections_gave(family):
    """Of the MLP's own width J: gate and up. Stock layers keep silu's input and output, up, and what down reads."""
    policy = tiny_policy(family, dtype=torch.bfloat16).train()
    case, width = make_case(policy), policy.config.text_config.intermediate_size
    packed_scores(policy, case, ALL)  # the vision tower's features are kept from here on
    kept = []
    for _ in range(2):
        found = {}

        def pack(tensor, found=found):
            if tensor.ndim > 1 and tensor.shape[-1] == width and tensor.shape[-2] > 2 * width:
                found[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other gets its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = packed_scores(policy, case, ALL)
        kept.append(len(found))
        del scores
        fuse(policy.model)
    layers = policy.config.text_config.num_hidden_layers
    assert kept[0] >= 4 * layers
    assert kept[1] == 2 * layers


def test_the_reference_and_other_adapters_are_peft_s_own():
    policy = tiny_policy("qwen2_5_vl")
    case = make_case(policy)
    with torch.no_grad():
        with policy.reference():
            plain = packed_scores(policy, case, ALL)
        own = packed_scores(policy, case, ALL)
        fuse(policy.model)
        with policy.reference():
            assert worst(packed_scores(policy, case, ALL), plain) < 1e-5
        assert worst(packed_scores(policy, case, ALL), own) < 1e-5
        policy.model.add_adapter("second", policy.model.peft_config["default"])
        policy.model.set_adapter("second")  # its B is zero
        assert worst(packed_scores(policy, case, ALL), plain) < 1e-5
        assert worst(plain, own) > 1e-3


def test_merged_adapters_count_once():
    policy = tiny_policy("qwen2_5_vl", dtype=torch.float64)
    case = make_case(policy)
    fuse(policy.model)
    with torch.no_grad():
        own = packed_scores(policy, case, ALL)
        policy.model.merge_adapter()
        assert worst(packed_scores(policy, case, ALL), own) < 1e-10
        policy.model.unmerge_adapter()
        assert worst(packed_scores(policy, case, ALL), own) < 1e-10


def test_an_mlp_of_another_kind_keeps_its_own_way():
    """Another activation; a projection with a base that trains, or without an adapter."""
    wanted = ["gate_proj", "up_proj", "down_proj"]
    for name in ("gelu", "base", "bare"):
        model = tiny_model("qwen2_5_vl")
        if name == "gelu":
            model.config.get_text_config().hidden_act = "gelu"
        adapted = get_peft_model(model, LoraConfig(r=3, target_modules=wanted[: 2 if name == "bare" else 3]))
        mlps = [layer.mlp for layer in model.model.language_model.layers]
        if name == "base":
            for mlp in mlps:
                mlp.down_proj.base_layer.weight.requires_grad_()
        fuse(adapted)
        assert all("forward" in vars(mlp.gate_proj) for mlp in mlps), name
        assert not any("forward" in vars(mlp) for mlp in mlps), name


def test_what_it_cannot_compute_stays_as_it_was():
    targets = {"lora_dropout": {"lora_dropout": 0.1}, "dora": {"use_dora": True}, "bias": {"lora_bias": True}}
    for name, options in targets.items():
        model = get_peft_model(tiny_model("qwen2_5_vl"), LoraConfig(r=3, target_modules=["q_proj"], **options))
        assert fuse(model) == 2 * 3 + 1, name  # the norms alone
    model = get_peft_model(tiny_model("qwen2_5_vl"), LoraConfig(r=3, target_modules=["q_proj"]))
    model.get_base_model().model.language_model.layers[0].self_attn.q_proj.base_layer.weight.requires_grad_()
    assert fuse(model) == 2 * 3 + 1 + 2


def test_half_precision_is_fused_and_float32_keeps_its_bits():
    for dtype, fused in (("float32", False), ("bfloat16", True)):
        policy = load_policy(ModelSection(path="builtin:digits-vl", dtype=dtype), seed=0)
        assert any("_sharevl_fused" in module.__dict__ for module in policy.modules()) == fused


def test_norms_stay_in_half_precision_under_a_gpus_autocast(monkeypatch):
    """torch 2.13 lists them for float32, on GPUs alone; asked with tensors that have a device and no memory."""
    policy = tiny_policy("qwen2_5_vl", dtype=torch.bfloat16)
    fuse(policy.model)
    norm = policy.base.model.language_model.layers[0].input_layernorm
    monkeypatch.setattr(norm, "weight", None)
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode():
            norm.weight = torch.nn.Parameter(torch.empty(32, device="cuda", dtype=torch.bfloat16))
            assert norm(torch.empty(1, 5, 32, device="cuda", dtype=torch.bfloat16)).dtype == torch.bfloat16
    finally:
        torch.set_autocast_enabled("cuda", False)

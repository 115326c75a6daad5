"""The proof of packing: a packed row scores and differentiates like separate rows through the ordinary model.

In float64, on tiny random models of both families, against transformers' own forward pass of one prompt and one
response at a time: causal attention, the model's own positions, all images of the prompt through the vision tower.
"""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from sharevl_kernels.prefix_attention import Run
from sharevl_kernels.prefix_attention.reference import masked_attention
from tiny_models import FAMILIES, encoder, picture, tiny_model, tiny_policy
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from sharevl_lite.share import SegmentGroup, pack_row, packed_length, plan_rows

TEMPERATURE = 0.8
ALL, SPLITTING = 10_000, 110


@pytest.fixture
def exact(monkeypatch):
    """Keeps float64 where the families' code says float32.

    They normalise, rotate and number positions in float32 whatever the model's dtype. Float32 roundings of two values
    that differ by 1e-16 can differ by 6e-8: without this fixture gradients of 40 differ by 5e-6, which could hide an
    error of that size.
    """

    def normalise(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))

    for norm in (Qwen2VLRMSNorm, Qwen2_5_VLRMSNorm, Qwen3VLTextRMSNorm):
        monkeypatch.setattr(norm, "forward", normalise)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@dataclass
class Case:
    """Prompts with their responses, and the groups of pairs to be scored."""

    prompts: list
    responses: list

    @property
    def images(self):
        return {key: image for prompt in self.prompts for key, image in prompt.images.items()}

    @property
    def pairs(self):
        return [
            (prompt, response)
            for prompt, responses in zip(self.prompts, self.responses, strict=True)
            for response in responses
        ]

    def groups(self):
        numbers = iter(range(len(self.pairs)))
        return [
            SegmentGroup(prompt.prefix, tuple(responses), tuple(next(numbers) for _ in responses))
            for prompt, responses in zip(self.prompts, self.responses, strict=True)
        ]


def make_case(policy, seed=0):
    """Unequal prompts (two images, one of those again, none, an image at the end) and responses of 1 to 32 tokens."""
    family = policy.config.model_type
    encode = encoder(policy).encode
    first, second, third = picture(family, 2, 3, 1), picture(family, 3, 4, 2), picture(family, 4, 2, 3)
    prompts = [
        encode("See <image> and <image>: which?", (first, second)),
        encode("<image>How many are there in this one?", (first,)),
        encode("No picture, 2+3?", ()),
        encode("Long words come before. Name it: <image>", (third,)),
    ]
    draw = torch.Generator().manual_seed(seed)
    words = torch.tensor([i for i in range(policy.config.text_config.vocab_size) if i not in policy.vision_token_ids])
    lengths = [[25, 1, 32, 3], [1, 2, 7], [6, 4], [9]]
    responses = [[words[torch.randint(len(words), (length,), generator=draw)] for length in group] for group in lengths]
    return Case(prompts, responses)


def separate_scores(policy, case):
    """Log-probs of each pair's response: its row alone, through the ordinary forward pass."""
    scores = []
    weight = policy.model.get_input_embeddings().weight
    for prompt, response in case.pairs:
        ids = torch.cat([prompt.prefix.ids_P, response]).to(weight.device)
        inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        if prompt.images:
            images = [prompt.images[key] for key in prompt.prefix.image_keys]
            inputs |= {
                "pixel_values": torch.cat([image.patches_LD for image in images]).to(ids.device),
                "image_grid_thw": torch.stack([image.grid_3 for image in images]).to(ids.device),
                "mm_token_type_ids": torch.cat([prompt.token_types_P, torch.zeros_like(response)])[None].to(ids.device),
            }
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
            logits = policy.model(**inputs, use_cache=False).logits[0, -len(response) - 1 : -1]
        all_scores = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / policy.temperature).log_softmax(-1)
        scores.append(all_scores.gather(1, response[:, None].to(ids.device))[:, 0])
    return scores


def packed_scores(policy, case, budget, images=None):
    """The same, from rows of at most `budget` tokens."""
    scores = {}
    for groups in plan_rows(case.groups(), budget):
        row = pack_row(groups)
        logprobs_S = policy(row, case.images if images is None else images).logprobs_S
        scores.update(zip(row.pairs, logprobs_S.split(row.cu_seqlens_B1.diff().tolist()), strict=True))
    return [scores[number] for number in range(len(case.pairs))]


def gradients(policy, scores, seed=1):
    """Gradients of the adapter for a random weighted sum of all log-probs, by name."""
    draw = torch.Generator().manual_seed(seed)
    total = sum((torch.randn(len(s), generator=draw, dtype=torch.float64).to(s.device) * s).sum() for s in scores)
    policy.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}


def worst(found, expected):
    return max((f - e).detach().abs().max().item() for f, e in zip(found, expected, strict=True))


def assert_equal_to_separate_rows(policy, case, budget):
    separate = separate_scores(policy, case)
    expected = gradients(policy, separate)
    packed = packed_scores(policy, case, budget)
    found = gradients(policy, packed)
    # Log-probs down to -15 after three layers in float64, whose sums run in another order: 7e-15 was measured.
    assert worst(packed, separate) < 1e-12
    # Gradients are sums over 50 tokens and all layers of numbers up to 10² here: ~1e-13 of rounding.
    assert found.keys() == expected.keys()
    assert worst(found.values(), expected.values()) < 1e-10
    # Nothing above would notice an adapter or a pair that does not matter.
    assert all(gradient.abs().max() > 1e-4 for gradient in expected.values())
    assert torch.cat(separate).std() > 0.5


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("budget", [ALL, SPLITTING], ids=["one row", "split group"])
def test_packed_rows_score_and_learn_like_separate_rows(family, checkpointing, budget):
    policy = tiny_policy(family, dtype=torch.float64, temperature=TEMPERATURE, checkpointing=checkpointing).train()
    case = make_case(policy)
    rows = plan_rows(case.groups(), budget)
    if budget == SPLITTING:
        assert sum(part.prefix is case.prompts[0].prefix for row in rows for part in row) > 1
        assert any(len(row) > 1 for row in rows)
        assert all(sum(map(packed_length, row)) <= budget for row in rows)
    else:
        assert len(rows) == 1
    assert_equal_to_separate_rows(policy, case, budget)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_dense_mask_scores_and_learns_like_separate_rows(family, checkpointing, monkeypatch):
    """The oracle of attention on gathered keys, which all other tests here run."""
    calls = []

    def masked(*args, **kwargs):
        calls.append(args[3])
        return masked_attention(*args, **kwargs)

    monkeypatch.setattr("sharevl_lite.policy.attention.prefix_attention", masked)
    policy = tiny_policy(family, dtype=torch.float64, temperature=TEMPERATURE, checkpointing=checkpointing).train()
    assert_equal_to_separate_rows(policy, make_case(policy), budget=SPLITTING)
    layouts = {id(layout) for layout in calls}
    # Every layer of a row has the row's layout, and layers that are computed again have it too.
    assert len(calls) == len(layouts) * policy.config.text_config.num_hidden_layers * (1 + checkpointing)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_vision_tower_with_adapters_learns_too(family):
    policy = tiny_policy(family, dtype=torch.float64, checkpointing=True, adapt_vision=True).train()
    assert any(".visual." in name for name, p in policy.named_parameters() if p.requires_grad)
    assert_equal_to_separate_rows(policy, make_case(policy), budget=ALL)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_proof_would_notice_a_wrong_mask_position_or_image(family, monkeypatch):
    policy = tiny_policy(family, dtype=torch.float64, temperature=TEMPERATURE).eval()
    case = make_case(policy)
    with torch.no_grad():
        separate = separate_scores(policy, case)
        scores = partial(packed_scores, policy, case, ALL)
        assert worst(scores(), separate) < 1e-12
        for damage in ("positions", "mask", "first row"):
            with monkeypatch.context() as context:
                context.setitem(globals(), "pack_row", partial(damaged, damage))
                assert worst(scores(), separate) > 1e-3, damage
        keys = list(case.images)
        swapped = case.images | {keys[0]: black(case.images[keys[0]])}
        policy._features.clear()
        assert worst(scores(images=swapped), separate) > 1e-3


def damaged(kind, groups):
    row = pack_row_as_it_is(groups)
    fields = dict(vars(row))
    if kind == "positions":
        fields["positions_3T"] = torch.arange(row.ids_T.numel()).expand(3, -1)
    elif kind == "mask":
        # Plain causal attention within a group: every run goes on from the one before it.
        read, runs = 0, []
        for number, run in enumerate(row.runs):
            read = run.length if run.parent is None else read + run.length
            whole = (None, 0) if run.parent is None else (number - 1, read - run.length)
            runs.append(Run(run.length, *whole))
        fields["runs"] = tuple(runs)
    else:
        fields["rows_U"] = row.rows_U.roll(1)
    return type(row)(**fields)


pack_row_as_it_is = pack_row


def black(image):
    return type(image)(torch.zeros_like(image.patches_LD), image.grid_3)


# ---------------------------------------------------------------- the vision tower


@pytest.fixture
def count_vision():
    """Counts a policy's passes through its vision tower by the number of patches."""

    def watch(policy):
        calls = []
        policy.base.model.visual.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[0]))
        return calls

    return watch


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_runs_once_per_distinct_image(family, count_vision):
    policy = tiny_policy(family)
    case = make_case(policy)
    calls = count_vision(policy)
    assert len(case.images) == 3
    with torch.no_grad():
        packed_scores(policy, case, SPLITTING)
    assert sorted(calls) == [24, 32, 48]  # though 4 images are named, in several rows
    policy.train()
    packed_scores(policy, case, SPLITTING)
    assert len(calls) == 3  # a frozen tower's features outlive the pass


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learning_vision_tower_runs_once_per_distinct_image_and_row(family, count_vision):
    policy = tiny_policy(family, adapt_vision=True).train()
    case = make_case(policy)
    calls = count_vision(policy)
    packed_scores(policy, case, ALL)
    assert sorted(calls) == [24, 32, 48]
    packed_scores(policy, case, ALL)
    assert len(calls) == 6  # its weights change between passes, so nothing may be kept


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_does_not_leave_its_images_to_a_learning_vision_tower(family):
    policy = tiny_policy(family, adapt_vision=True)
    case = make_case(policy)
    with torch.no_grad():
        before = torch.cat(packed_scores(policy, case, ALL))
        with policy.reference():
            reference = torch.cat(packed_scores(policy, case, ALL))
        after = torch.cat(packed_scores(policy, case, ALL))
        with policy.reference():
            again = torch.cat(packed_scores(policy, case, ALL))
    assert torch.equal(before, after)
    assert torch.equal(reference, again)
    assert not torch.equal(before, reference)


def test_kept_features_stay_within_their_bound(monkeypatch):
    policy = tiny_policy("qwen3_vl")
    case = make_case(policy)
    with torch.no_grad():
        expected = torch.cat(packed_scores(policy, case, SPLITTING))
        one = next(iter(policy._features.values())).nbytes
        monkeypatch.setattr("sharevl_lite.policy.packed.FEATURE_CACHE_BYTES", one)
        policy._features.clear()
        assert torch.equal(torch.cat(packed_scores(policy, case, SPLITTING)), expected)
    assert len(policy._features) == 1


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_half_precision_on_a_gpu_is_as_close_to_float64_as_separate_rows_are(family, checkpointing):
    """FlashAttention on gathered keys and Triton's head: scores and adapter gradients against float64."""
    exact = tiny_policy(family, dtype=torch.bfloat16, temperature=TEMPERATURE).double()  # its very weights
    case = make_case(exact)
    truth = separate_scores(exact, case)
    slopes = gradients(exact, truth)
    policy = tiny_policy(family, dtype=torch.bfloat16, temperature=TEMPERATURE, checkpointing=checkpointing)
    policy = policy.to("cuda").train()
    errors = {}
    for name, scores in (
        ("packed", packed_scores(policy, case, SPLITTING)),
        ("separate", separate_scores(policy, case)),
    ):
        found = gradients(policy, scores)
        errors[name] = (
            (torch.cat(scores).detach().double().cpu() - torch.cat(truth).detach()).square().mean().sqrt().item(),
            sum((found[key].double().cpu() - slopes[key]).square().sum() for key in slopes).sqrt().item(),
        )
    # Root mean squares of two draws of the same roundings: a quarter apart by chance.
    assert errors["packed"][0] <= 1.25 * errors["separate"][0]
    assert errors["packed"][1] <= 1.25 * errors["separate"][1]


# ---------------------------------------------------------------- reference, errors, bits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_model_without_its_adapter(family):
    policy = tiny_policy(family, seed=4)
    case = make_case(policy)
    base = tiny_policy(family, seed=4)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        with policy.reference():
            reference = torch.cat(packed_scores(policy, case, ALL))
        # Adding an adapter of zeros changes no bit.
        assert torch.equal(reference, torch.cat(packed_scores(base, case, ALL)))
        adapted = torch.cat(packed_scores(policy, case, ALL))
    assert (adapted - reference).abs().max() > 0.1


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_base_model_itself(family):
    policy = tiny_policy(family, seed=4, dtype=torch.float64)
    case = make_case(policy)
    base = tiny_policy(family, seed=4, dtype=torch.float64)
    base.model = tiny_model(family, seed=4, dtype=torch.float64)
    with torch.no_grad(), policy.reference():
        found = packed_scores(policy, case, ALL)
        assert worst(found, separate_scores(base, case)) < 1e-12  # as packed rows against separate ones


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", [0, 1, -1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
def test_a_response_with_a_vision_token_is_refused(family, place, token):
    policy = tiny_policy(family)
    case = make_case(policy)
    case.responses[0][0][place] = policy.processor.tokenizer.convert_tokens_to_ids(token)
    with pytest.raises(ValueError, match="must not contain vision tokens"):
        packed_scores(policy, case, ALL)


def test_a_prompt_whose_images_do_not_fit_its_placeholders_is_refused():
    policy = tiny_policy("qwen2_5_vl")
    case = make_case(policy)
    images = case.images
    smaller, larger = sorted(images, key=lambda key: images[key].patches_LD.shape[0])[:2]
    with pytest.raises(ValueError, match="image tokens for"):
        packed_scores(policy, case, ALL, images=images | {smaller: images[larger]})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_row_has_the_same_bits_with_and_without_gradients(family, dtype, checkpointing):
    policy = tiny_policy(family, dtype=dtype, temperature=TEMPERATURE, checkpointing=checkpointing).train()
    row = pack_row(make_case(policy).groups())
    images = make_case(policy).images
    with torch.no_grad():
        plain = policy(row, images, entropy=True)
    trained = policy(row, images, entropy=True)
    assert plain[0].dtype == trained[0].dtype == torch.float32
    assert trained[0].requires_grad
    # Equal operations on equal shapes: the ratio of an unchanged policy is exactly 1.
    assert torch.equal(plain[0], trained[0])
    assert torch.equal(plain[1], trained[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_entropies_are_those_of_the_predicted_distributions(family):
    policy = tiny_policy(family, temperature=TEMPERATURE)
    case = make_case(policy)
    case = Case(case.prompts[2:3], case.responses[2:3])  # text only
    row = pack_row(case.groups())
    with torch.no_grad():
        entropies_S = policy(row, {}, entropy=True).entropies_S
        expected = []
        for prompt, response in case.pairs:
            ids = torch.cat([prompt.prefix.ids_P, response])[None]
            logits = policy.model(input_ids=ids).logits[0, -len(response) - 1 : -1] / TEMPERATURE
            expected.append(torch.distributions.Categorical(logits=logits).entropy())
    # float32 through three layers with wide weights
    torch.testing.assert_close(entropies_S, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_processes_average_gradients_of_the_vision_tower_after_a_row_without_an_image(tmp_path):
    """The last row of an update is the one that is averaged, and every trained weight must take part in it."""
    policy = tiny_policy("qwen2_5_vl", adapt_vision=True).train()
    asked = [
        encoder(policy).encode("<image>What?", [picture("qwen2_5_vl", 2, 3, 0)]),
        encoder(policy).encode("What?", []),
    ]
    rows = [pack_row([SegmentGroup(prompt.prefix, (torch.tensor([5, 6]),), (0,))]) for prompt in asked]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(policy)
        for _ in range(2):
            with model.no_sync():
                model(rows[0], asked[0].images).logprobs_S.sum().backward()
            model(rows[1], asked[0].images).logprobs_S.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    trained = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in trained.values())
    assert any("visual" in name and gradient.abs().sum() > 0 for name, gradient in trained.items())

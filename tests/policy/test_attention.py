"""`sharevl_prefix` in a model: set for good, read only by packed rows, refused where it would be wrong."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from sharevl_kernels.prefix_attention import PrefixLayout, Run
from tiny_models import FAMILIES, encoder, picture, tiny_model, tiny_policy

from sharevl_lite.cli import main
from sharevl_lite.policy.attention import NAME, attend, attend_within_blocks, use_block_attention, use_prefix_attention


@pytest.mark.parametrize("family", FAMILIES)
def test_text_layers_have_it_and_the_vision_tower_keeps_its_own(family):
    model = tiny_model(family)
    before = model.config.vision_config._attn_implementation
    use_prefix_attention(model)
    assert model.model.language_model.config._attn_implementation == NAME
    assert model.model.visual.config._attn_implementation == before != NAME


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_with_a_configuration_of_their_own_have_it(family):
    """Unsloth's model with shared weights is built so, and transformers looks for one object."""
    model = tiny_model(family)
    for layer in model.model.language_model.layers:
        layer.self_attn.config = copy.deepcopy(layer.self_attn.config)
    model.model.language_model.config = copy.deepcopy(model.model.language_model.config)
    use_prefix_attention(model)
    assert all(layer.self_attn.config._attn_implementation == NAME for layer in model.model.language_model.layers)
    assert model.model.visual.blocks[0].attn.config._attn_implementation != NAME


def features_and_slopes(policy, images):
    """A vision tower's features of pictures of several windows, and gradients of its adapters."""
    features = [policy._image_features(key, images) for key in images]
    tensors = [tensor for found in features for tensor in (found.embeds_LH, *found.deepstack)]
    policy.zero_grad()
    sum(
        (tensor.double() * torch.linspace(-1, 1, tensor.numel()).view_as(tensor).to(tensor)).sum() for tensor in tensors
    ).backward()
    slopes = [p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None and "visual" in name]
    assert slopes
    return [tensor.detach() for tensor in tensors], slopes


def pictures_of(policy):
    family = policy.config.model_type
    prompts = [encoder(policy).encode("<image>", [picture(family, *size, 1)]) for size in ((3, 5), (4, 2), (1, 1))]
    return {key: image for prompt in prompts for key, image in prompt.images.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_a_vision_tower_are_attended_in_one_call_a_layer(family, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["cu_seq_lens_q"].diff().tolist())
        return attend_within_blocks(*args, **kwargs)

    monkeypatch.setattr("sharevl_lite.policy.attention.attend_within_blocks", counted)
    policy = tiny_policy(family, dtype=torch.float64, adapt_vision=True)
    images = pictures_of(policy)
    expected, slopes = features_and_slopes(policy, images)
    assert not calls
    use_block_attention(policy.base.model.visual)
    found, learned = features_and_slopes(policy, images)
    assert len(calls) == len(images) * policy.config.vision_config.depth
    assert max(map(len, calls)) == (6 if family == "qwen2_5_vl" else 1)  # windows of 2 × 2 tokens
    # float64; both round in float32 at norms and rotations, alike.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(learned, slopes, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_vision_tower_on_a_gpu_is_as_close_to_float64_as_sdpa(family):
    exact = tiny_policy(family, dtype=torch.bfloat16).double()
    images = pictures_of(exact)
    truth = [exact._image_features(key, images).embeds_LH for key in images]
    errors = []
    for name in ("sdpa", "sharevl_flash_blocks"):
        policy = tiny_policy(family, dtype=torch.bfloat16).cuda()
        use_prefix_attention(policy.base)
        assert policy.base.model.visual.config._attn_implementation == "sharevl_flash_blocks"
        for module in policy.base.model.visual.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = name
        with policy.autocast():
            found = [policy._image_features(key, images).embeds_LH for key in images]
        differences = [(mine.double().cpu() - true).square().mean() for mine, true in zip(found, truth, strict=True)]
        errors.append(torch.stack(differences).mean().sqrt().item())
    assert 0 < errors[1] <= 1.5 * errors[0]  # two draws of the same roundings


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ordinary_pass_is_what_it_was(family):
    """Left-padded rows, as sampling has them: bit for bit the masks and the attention of `sdpa`."""
    model = tiny_model(family)
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        sampled = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        use_prefix_attention(model)
        after = model(input_ids=ids, attention_mask=mask).logits
        again = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(before, after)
    assert torch.equal(sampled, again)


@pytest.mark.parametrize("padded", [False, True])
def test_a_new_tokens_queries_share_their_head_of_keys(padded):
    """Against keys and values that are repeated for each head; float64, so that nothing but rounding differs."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    query, key, value = draw(3, 8, 1, 16), draw(3, 2, 11, 16), draw(3, 2, 11, 16)
    mask = torch.arange(11) >= torch.tensor([0, 4, 10])[:, None] if padded else torch.ones(3, 11, dtype=torch.bool)
    scores = (query * 0.3) @ key.repeat_interleave(4, dim=1).transpose(2, 3)
    probs = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    expected = (probs @ value.repeat_interleave(4, dim=1)).transpose(1, 2)
    found, weights = attend(None, query, key, value, mask[:, None, None] if padded else None, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert weights is None


def test_sliding_windows_are_refused_before_anything_is_scored():
    model = tiny_model("qwen2_5_vl")
    model.config.text_config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(ValueError, match="this model has full_attention, sliding_attention"):
        use_prefix_attention(model)


def test_the_command_says_so_before_it_loads_weights(tmp_path, capsys):
    config = tiny_model("qwen2_5_vl").config
    config.text_config.layer_types = ["sliding_attention"] * 3
    config.save_pretrained(tmp_path)
    recipe = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"
    assert main(["train", str(recipe), "--model.path", str(tmp_path), "--output-dir", str(tmp_path / "runs")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "model.path" in message
    assert "needs full attention without dropout in every text layer; this model has sliding_attention" in message


def test_linear_attention_is_refused():
    model = tiny_model("qwen3_vl")
    model.config.text_config.layer_types = ["linear_attention"] * 3
    with pytest.raises(ValueError, match="this model has linear_attention"):
        use_prefix_attention(model)


def test_attention_dropout_is_refused():
    model = tiny_model("qwen2_5_vl")
    model.config.text_config.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"attention_dropout 0\.1"):
        use_prefix_attention(model)


@pytest.mark.parametrize("wrong", [{"dropout": 0.1}, {"sliding_window": 16}])
def test_a_packed_row_is_never_attended_otherwise(wrong):
    policy = tiny_policy("qwen2_5_vl")
    layer = policy.base.model.language_model.layers[0].self_attn
    layout = PrefixLayout([Run(2), Run(2, 0, 2)], torch.device("cpu"))
    query, key = torch.randn(1, 4, 4, 8), torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="one row, scored with full attention"):
        attend(layer, query, key, key, None, prefix_layout=layout, **wrong)

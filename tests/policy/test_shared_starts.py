"""Variants that begin alike, and equal responses: what is alike is in a row once, and all is scored and learned as from
separate rows."""

import pytest
import torch
from test_packed_scores import ALL, TEMPERATURE, Case, assert_equal_to_separate_rows, exact
from tiny_models import FAMILIES, encoder, picture, tiny_policy

from sharevl_lite.share import pack_row, packed_length, plan_rows

assert exact  # a fixture
QUESTION = "How many of them are red?"


def variants_of_a_problem(policy):
    """The question; reworded; again as it was; with its picture turned; a second picture behind the first; reworded."""
    family = policy.config.model_type
    encode = encoder(policy).encode
    first, second, third = picture(family, 3, 4, 1), picture(family, 4, 3, 2), picture(family, 3, 4, 3)
    prompts = [
        encode("<image>" + QUESTION, (first,)),
        encode("<image>How many red ones are there?", (first,)),
        encode("<image>" + QUESTION, (first,)),
        encode("<image>The picture was turned. " + QUESTION, (second,)),
        encode("<image><image>" + QUESTION, (first, third)),
        encode("<image><image>Count the red ones, if there are any.", (first, third)),
        encode("<image>" + QUESTION, (third,)),  # as large as the first
    ]
    draw = torch.Generator().manual_seed(0)
    words = torch.tensor([i for i in range(policy.config.text_config.vocab_size) if i not in policy.vision_token_ids])
    lengths = [[6, 1, 9], [2, 7], [6, 1, 9], [5], [4, 3], [8, 2], [3, 3]]
    responses = [[words[torch.randint(len(words), (length,), generator=draw)] for length in group] for group in lengths]
    responses[0].append(responses[0][0])  # given twice
    responses[2][2] = responses[0][2]  # and again where the question is repeated
    return Case(prompts, responses)


def tokens_saved(groups):
    return sum(map(packed_length, groups)) - pack_row(groups).ids_T.numel()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("budget", [ALL, 130], ids=["one row", "several rows"])
def test_they_score_and_learn_like_separate_rows(family, checkpointing, budget):
    policy = tiny_policy(family, dtype=torch.float64, temperature=TEMPERATURE, checkpointing=checkpointing).train()
    case = variants_of_a_problem(policy)
    rows = plan_rows(case.groups(), budget)
    assert all((pack_row(row).scores_S is not None) is any(len(g.responses) == 4 for g in row) for row in rows)
    assert (len(rows) == 1) is (budget == ALL)
    assert sum(map(tokens_saved, rows)) > 30
    assert_equal_to_separate_rows(policy, case, budget)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_vision_tower_with_adapters_learns_from_all_of_them(family):
    policy = tiny_policy(family, dtype=torch.float64, adapt_vision=True).train()
    assert_equal_to_separate_rows(policy, variants_of_a_problem(policy), budget=ALL)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_alike_is_shared(family):
    policy = tiny_policy(family)
    case = variants_of_a_problem(policy)
    question, reworded, repeated, turned, pair, pair_reworded, other = case.groups()
    head = len("<|im_start|>user\n") - len("<|im_start|>") + 2  # a token of its own; and the one before an image
    assert tokens_saved([question, repeated]) == question.prefix.ids_P.numel() + question.responses[2].numel() - 1
    assert tokens_saved([question, reworded]) == head + 12 + 1 + len("How many ")
    assert tokens_saved([question, pair]) == head + 12 + 1
    assert tokens_saved([pair, pair_reworded]) == head + 12 + 1 + 1 + 12 + 1
    # Other pixels, the same words and as many tokens: nothing but the head, which is too short.
    assert tokens_saved([question, turned]) == tokens_saved([question, other]) == 0
    row = pack_row([question, reworded, repeated, turned, pair, pair_reworded])
    keys = case.prompts[0].prefix.image_keys + case.prompts[3].prefix.image_keys + case.prompts[4].prefix.image_keys[1:]
    assert row.image_keys == keys

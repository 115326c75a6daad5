"""Shared-prefix packing: every pair once, within the budget, laid out as the module says."""

from itertools import count, pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sharevl_kernels.prefix_attention import Run

from sharevl_lite.share import Prefix, SegmentGroup, pack_row, packed_length, packing, plan_rows
from sharevl_lite.share.packing import LEAST_SHARED, shared_length
from sharevl_lite.share.row_plan import KEYS_PER_TOKEN


def prefix(length, start=0, images=(), height=3):
    """A prompt whose positions are no plain count: an image of `height` rows makes them fall behind the tokens."""
    ids_P = torch.arange(start, start + length)
    places = torch.arange(length)
    positions_3P = torch.stack([places.clamp(max=height), places // 2, places % height])
    image_P = (places // height).clamp(max=len(images) - 1) if images else None
    return Prefix(ids_P, positions_3P, tuple(images), image_P)


def group(prefix_length, lengths, first_pair=0, start=0, images=()):
    responses = tuple(100 * (b + 1) + torch.arange(length) for b, length in enumerate(lengths))
    return SegmentGroup(
        prefix(prefix_length, start, images), responses, tuple(range(first_pair, first_pair + len(lengths)))
    )


@st.composite
def group_lists(draw, min_groups=0):
    """Groups with unequal prompts, nothing of which is alike, and responses, their pairs numbered through."""
    shapes = draw(
        st.lists(
            st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=6)),
            min_size=min_groups,
            max_size=5,
        )
    )
    numbers = count()
    groups = []
    for place, (prefix_length, lengths) in enumerate(shapes):
        made = group(prefix_length, lengths, start=1000 * (place + 1), images=[f"image {place}"] * (place % 3))
        groups.append(SegmentGroup(made.prefix, made.responses, tuple(next(numbers) for _ in lengths)))
    return groups


def scored(groups):
    """What each pair is: its prompt and its response."""
    return {
        pair: (tuple(g.prefix.ids_P.tolist()), tuple(response.tolist()))
        for g in groups
        for pair, response in zip(g.pairs, g.responses, strict=True)
    }


def gathered_keys(groups, share=True):
    """Keys that attention of a row reads: of each run, those of its prompt and its own."""
    return pack_row(groups, share=share).layout(torch.device("cpu")).sequences.keys[-1]


def tokens(groups, share=True):
    return pack_row(groups, share=share).ids_T.numel()


def assert_rows_fit(rows, budget, share=True):
    """Only a pair that does not fit alone may pass the budget, and then it has the row to itself; so has a group whose
    keys alone are too many."""
    assert all(rows)
    for row in rows:
        assert tokens(row, share) <= budget or len(row) == len(row[0].pairs) == 1
        assert gathered_keys(row, share) <= KEYS_PER_TOKEN * budget or len(row) == 1


# ---------------------------------------------------------------- the plan


@settings(max_examples=300, deadline=None)
@given(group_lists(), st.integers(1, 60))
def test_a_plan_holds_every_pair_once_within_the_budget(groups, budget):
    rows = plan_rows(groups, budget)
    parts = [part for row in rows for part in row]
    planned = [pair for part in parts for pair in part.pairs]
    assert sorted(planned) == sorted(pair for g in groups for pair in g.pairs)
    assert scored(parts) == scored(groups)
    assert_rows_fit(rows, budget)


@settings(max_examples=200, deadline=None)
@given(group_lists(min_groups=1), st.integers(1, 60))
def test_a_group_is_split_only_where_it_must_be(groups, budget):
    parts = [part for row in plan_rows(groups, budget) for part in row]
    for whole in groups:
        mine = sorted((part for part in parts if part.prefix is whole.prefix), key=lambda part: part.pairs)
        # In order, with the same prompt: the images go with it.
        assert [pair for part in mine for pair in part.pairs] == list(whole.pairs)
        if tokens([whole]) <= budget:
            assert len(mine) == 1
        for first, second in pairwise(mine):
            longer = first.responses + second.responses[:1]
            assert tokens([SegmentGroup(first.prefix, longer, tuple(range(len(longer))))]) > budget


def test_small_groups_share_a_row_and_fill_gaps():
    groups = [group(6, [2], 0, 1000), group(8, [2], 1, 2000), group(2, [2], 2, 3000)]  # 7, 9 and 3 tokens
    assert [[part.pairs for part in row] for row in plan_rows(groups, 10)] == [[(0,), (2,)], [(1,)]]


def test_a_longer_group_repeats_its_prefix():
    whole = group(4, [3, 3, 3, 3])
    rows = plan_rows([whole], 8)
    assert [[part.pairs for part in row] for row in rows] == [[(0, 1)], [(2, 3)]]
    assert all(part.prefix is whole.prefix for row in rows for part in row)
    assert plan_rows([], 8) == []


def test_groups_that_hold_nothing_to_score_are_refused():
    with pytest.raises(ValueError, match="pair 1 has an empty response"):
        plan_rows([group(3, [2, 0])], 100)
    with pytest.raises(ValueError, match="needs responses"):
        plan_rows([SegmentGroup(prefix(3), (), ())], 100)
    with pytest.raises(ValueError, match="a key for each"):
        plan_rows([SegmentGroup(prefix(3), (torch.arange(2),), (0, 1))], 100)


# ---------------------------------------------------------------- the row


@settings(max_examples=200, deadline=None)
@given(group_lists(min_groups=1))
def test_a_row_scores_each_response_after_its_own_prefix(groups):
    row = pack_row(groups)
    expected = scored(groups)
    assert row.ids_T.numel() == sum(packed_length(g) for g in groups)
    assert row.pairs == tuple(pair for g in groups for pair in g.pairs)
    assert row.image_keys == tuple(key for g in groups for key in g.prefix.image_keys)
    assert row.cu_seqlens_B1[0] == 0
    assert row.cu_seqlens_B1[-1] == row.targets_U.numel() == row.rows_U.numel()
    mask_TT = row.layout(torch.device("cpu")).mask[0, 0]
    for number, pair in enumerate(row.pairs):
        owned = slice(int(row.cu_seqlens_B1[number]), int(row.cu_seqlens_B1[number + 1]))
        prompt, response = expected[pair]
        assert tuple(row.targets_U[owned].tolist()) == response
        for t, query in enumerate(row.rows_U[owned].tolist()):
            # The token that predicts target t reads the prompt and the response up to t, in order, and nothing else.
            assert tuple(row.ids_T[mask_TT[query]].tolist()) == (*prompt, *response[:t])


@settings(max_examples=100, deadline=None)
@given(group_lists(min_groups=1))
def test_the_mask_is_that_of_a_triple_loop(groups):
    row = pack_row(groups)
    length = row.ids_T.numel()
    expected = torch.zeros(length, length, dtype=torch.bool)
    offset = 0
    for g in groups:
        prefix_length = g.prefix.ids_P.numel()
        for query in range(prefix_length):
            for key in range(query + 1):
                expected[offset + query, offset + key] = True
        start = offset + prefix_length
        for response in g.responses:
            end = start + response.numel() - 1
            for query in range(start, end):
                for key in range(offset, offset + prefix_length):
                    expected[query, key] = True
                for key in range(start, query + 1):
                    expected[query, key] = True
            start = end
        offset = start
    mask = row.layout(torch.device("cpu")).mask
    assert mask.shape == (1, 1, length, length)
    assert mask.dtype == torch.bool
    assert torch.equal(mask[0, 0], expected)


@settings(max_examples=100, deadline=None)
@given(group_lists(min_groups=1))
def test_positions_go_on_from_the_largest_of_the_prefix_on_all_axes(groups):
    row = pack_row(groups)
    expected = []
    for g in groups:
        expected.append(g.prefix.positions_3P)
        first = int(g.prefix.positions_3P.max()) + 1
        for response in g.responses:
            expected.append(torch.tensor([[first + t for t in range(response.numel() - 1)]] * 3).view(3, -1))
    assert torch.equal(row.positions_3T, torch.cat(expected, dim=1).long())


def test_a_row_written_out():
    groups = [
        SegmentGroup(prefix(3, start=10, images=["a"]), (torch.tensor([1, 2, 3]), torch.tensor([4])), (7, 5)),
        SegmentGroup(prefix(2, start=20, images=["b", "a"]), (torch.tensor([6, 8]),), (9,)),
    ]
    row = pack_row(groups)
    assert row.ids_T.tolist() == [10, 11, 12, 1, 2, 20, 21, 6]
    assert row.runs == (Run(3), Run(2, 0, 3), Run(0, 0, 3), Run(2), Run(1, 3, 2))
    assert row.positions_3T[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert row.rows_U.tolist() == [2, 3, 4, 2, 6, 7]
    assert row.targets_U.tolist() == [1, 2, 3, 4, 6, 8]
    assert row.cu_seqlens_B1.tolist() == [0, 3, 4, 6]
    assert row.pairs == (7, 5, 9)
    assert row.image_keys == ("a", "b", "a")


# ---------------------------------------------------------------- prompts that begin alike


@pytest.fixture
def any_start(monkeypatch):
    """One token alike is enough."""
    monkeypatch.setattr(packing, "LEAST_SHARED", 1)


@st.composite
def variants(draw):
    """Groups whose prompts are words of a small alphabet, some with pictures, of two kinds, three tokens each. Their
    responses are of a small alphabet too, and many alike."""
    groups, numbers = [], count()
    for _ in range(draw(st.integers(1, 6))):
        words = draw(st.lists(st.sampled_from([1, 2, "a", "b"]), min_size=1, max_size=5))
        ids, image_P, keys = [], [], []
        for word in words:
            picture = isinstance(word, str)
            ids += [9, 9, 9] if picture else [word]
            image_P += [len(keys)] * 3 if picture else [-1]
            keys += [word] if picture else []
        positions_3P = torch.arange(len(ids)).expand(3, -1)
        answers = st.lists(st.sampled_from([100, 200]), min_size=1, max_size=3)
        responses = tuple(map(torch.tensor, draw(st.lists(answers, min_size=1, max_size=4))))
        prompt = Prefix(torch.tensor(ids), positions_3P, tuple(keys), torch.tensor(image_P))
        groups.append(SegmentGroup(prompt, responses, tuple(next(numbers) for _ in responses)))
    return groups


def content(ids, image_keys, image_P):
    """Tokens with pictures by their names."""
    return [int(i) if place < 0 else image_keys[place] for i, place in zip(ids, image_P, strict=True)]


@pytest.mark.usefixtures("any_start")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(variants())
def test_what_is_alike_stands_in_a_row_once_and_every_response_reads_its_own_prompt(groups):
    row = pack_row(groups)
    which_S = torch.arange(row.targets_U.numel()) if row.scores_S is None else row.scores_S
    assert which_S.unique().numel() == row.targets_U.numel()
    pictures = list(row.image_keys)
    # Pictures are spliced in where the row has their tokens, in order: three each.
    named = [int(i) if i != 9 else None for i in row.ids_T]
    marks = iter([name for name in pictures for _ in range(3)])
    named = [next(marks) if token is None else token for token in named]
    assert next(marks, None) is None
    mask_TT = row.layout(torch.device("cpu")).mask[0, 0]
    number = 0
    for g in groups:
        prompt = content(g.prefix.ids_P, g.prefix.image_keys, g.prefix.images_P)
        first = int(g.prefix.positions_3P.max()) + 1
        for response in g.responses:
            owned = slice(int(row.cu_seqlens_B1[number]), int(row.cu_seqlens_B1[number + 1]))
            assert row.targets_U[which_S[owned]].tolist() == response.tolist()
            for t, query in enumerate(row.rows_U[which_S[owned]].tolist()):
                seen = mask_TT[query].nonzero()[:, 0].tolist()
                assert [named[place] for place in seen] == prompt + response[:t].tolist()
                where = g.prefix.positions_3P[0].tolist() + list(range(first, first + t))
                assert row.positions_3T[0][seen].tolist() == where
            number += 1
    starts = [tuple(content(g.prefix.ids_P, g.prefix.image_keys, g.prefix.images_P)) for g in groups]
    known = {start[:length] for start in starts for length in range(1, len(start) + 1)}
    answers = {
        (start, tuple(response.tolist())) for start, g in zip(starts, groups, strict=True) for response in g.responses
    }
    # Every beginning of a prompt once (pictures whole): a tree of words. And every answer to it once.
    assert row.ids_T.numel() == len(known) + sum(len(answer) - 1 for _, answer in answers)
    assert row.targets_U.numel() == sum(len(answer) for _, answer in answers)


@pytest.mark.usefixtures("any_start")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(variants(), st.integers(1, 40))
def test_rows_with_shared_starts_keep_to_the_budget(groups, budget):
    rows = plan_rows(groups, budget)
    assert scored([part for row in rows for part in row]) == scored(groups)
    assert_rows_fit(rows, budget)
    for row in rows:
        lengths = (pack_row(row).ids_T.numel(), sum(map(packed_length, row)), pack_row(row, share=False).ids_T.numel())
        assert tuple(sorted(lengths)) == lengths
    assert_rows_fit(plan_rows(groups, budget, share=False), budget, share=False)


def test_a_variant_goes_where_its_sibling_is():
    """Prompts of 40 tokens, 38 of them alike, with responses of 11 inputs: 51 and 13 tokens; a stranger takes 51."""
    siblings = [group(40, [12], number, 1000) for number in range(3)]
    siblings[1:] = [
        SegmentGroup(
            Prefix(torch.cat([g.prefix.ids_P[:38], torch.tensor([7, number])]), g.prefix.positions_3P),
            g.responses,
            g.pairs,
        )
        for number, g in enumerate(siblings[1:])
    ]
    stranger = group(40, [12], 3, 5000)
    planned = [[part.pairs for part in row] for row in plan_rows([siblings[0], stranger, *siblings[1:]], 64)]
    assert planned == [[(0,)], [(3,)], [(1,), (2,)]]
    planned = [[part.pairs for part in row] for row in plan_rows([*siblings, stranger], 77)]
    assert planned == [[(0,), (1,), (2,)], [(3,)]]
    assert pack_row(siblings).ids_T.numel() == 51 + 13 + 12  # the third has 39 alike with the second


def test_many_short_responses_do_not_share_a_row_without_end():
    """20 responses of 2 tokens behind a prompt of 100: 120 tokens, but 20 × 101 + 100 keys."""
    groups = [group(100, [2] * 20, 20 * number, 1000 * number) for number in range(2)]
    assert packed_length(groups[0]) == 120
    assert gathered_keys(groups[:1]) == 2120
    assert [len(row) for row in plan_rows(groups, 2 * 530)] == [2]
    assert [len(row) for row in plan_rows(groups, 1059)] == [1, 1]
    assert plan_rows(groups, 200) == [groups[:1], groups[1:]]  # too many keys for one, but its prompt stands there once


def test_an_answer_given_twice_is_scored_once():
    first, second = torch.tensor([5, 6, 7]), torch.tensor([5, 7])
    groups = [
        SegmentGroup(prefix(20), (first, second, first), (0, 1, 2)),
        SegmentGroup(prefix(20), (second, torch.tensor([7])), (3, 4)),  # the same prompt again
        SegmentGroup(prefix(20, start=50), (first,), (5,)),  # another prompt
    ]
    row = pack_row(groups)
    assert row.runs == (Run(20), Run(2, 0, 20), Run(1, 0, 20), Run(0, 0, 20), Run(20), Run(2, 4, 20))
    assert row.targets_U.tolist() == [5, 6, 7, 5, 7, 7, 5, 6, 7]
    assert row.scores_S.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert row.cu_seqlens_B1.tolist() == [0, 3, 5, 8, 10, 11, 14]
    assert row.rows_U.tolist() == [19, 20, 21, 19, 22, 19, 42, 43, 44]
    apart = pack_row(groups, share=False)
    assert apart.scores_S is None
    assert apart.ids_T.numel() == 3 * 20 + 2 + 1 + 2 + 1 + 2


def test_the_names_of_a_chats_roles_are_not_worth_a_cut():
    few, enough = ([group(LEAST_SHARED + 4, [3], 0, 1000), group(LEAST_SHARED + 4, [3], 1, 1000)] for _ in range(2))
    for groups, alike in ((few, LEAST_SHARED - 1), (enough, LEAST_SHARED)):
        ids_P = groups[1].prefix.ids_P.clone()
        ids_P[alike] = 7
        groups[1] = SegmentGroup(Prefix(ids_P, groups[1].prefix.positions_3P), groups[1].responses, (1,))
        assert shared_length(groups[0].prefix, groups[1].prefix) == alike
    assert pack_row(few).ids_T.numel() == sum(map(packed_length, few))
    assert pack_row(enough).ids_T.numel() == sum(map(packed_length, enough)) - LEAST_SHARED


def test_pictures_positions_and_ids_must_agree():
    first = prefix(9, images=["a", "b"])
    assert shared_length(first, prefix(9, images=["a", "b"])) == 9
    assert shared_length(first, prefix(7, images=["a", "b"])) == 7
    assert shared_length(first, prefix(9, images=["a", "c"])) == 3
    assert shared_length(first, prefix(9, images=["c", "b"])) == 0
    assert shared_length(first, prefix(9)) == 0
    assert shared_length(prefix(9), prefix(9, height=5)) == 3
    with pytest.raises(ValueError, match="needs image_P, which tokens are of which of 1"):
        Prefix(torch.arange(3), torch.zeros(3, 3), ("a",))

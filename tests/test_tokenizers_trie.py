from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_agents import allowed
from toy_users import toy_catalog

from feedgym.tokenizers import Trie

# Two items below (0, 0), one below (0, 2), one below (3, 1); code 1 and 2 of level 0 are never used.
CODES = torch.tensor([[3, 1, 0], [0, 0, 1], [0, 2, 1], [0, 0, 0]])


@st.composite
def catalogues(draw):
    """Different tuples in any order, over levels of different sizes."""
    num_codes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    every = np.stack([axis.ravel() for axis in np.indices(num_codes)], axis=1)
    picked = draw(st.permutations(range(len(every))))[: draw(st.integers(1, min(len(every), 30)))]
    return num_codes, torch.from_numpy(every[picked])


def brute_allowed(codes_IL, num_codes, prefix, used):
    """A set of Python tuples, walked item by item."""
    left = [c for item, c in enumerate(codes_IL.tolist()) if item not in used and tuple(c[: len(prefix)]) == prefix]
    following = {c[len(prefix)] for c in left}
    return [code in following for code in range(num_codes[len(prefix)])]


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.integers(0, 2**31))
def test_allowed_equals_brute_force_with_and_without_used_items(catalogue, seed):
    num_codes, codes_IL = catalogue
    trie, rng, num_items = Trie.from_codes(codes_IL, num_codes), np.random.default_rng(seed), len(codes_IL)
    for level in range(len(num_codes)):
        of_row = torch.from_numpy(rng.integers(num_items, size=12))
        prefix_RL = codes_IL[of_row, :level]
        nodes = trie.root(12)
        for before in range(level):
            nodes = trie.child(nodes, prefix_RL[:, before])
        # Repeats and padding on purpose; often every item below a prefix is used.
        used = torch.from_numpy(rng.integers(-1, num_items, size=(12, rng.integers(0, 3 * num_items))))
        for blocked in (None, used):
            got = allowed(trie, nodes, level, blocked)
            sets = [set()] * 12 if blocked is None else [set(row) for row in used.tolist()]
            expected = [
                brute_allowed(codes_IL, num_codes, tuple(p), u) for p, u in zip(prefix_RL.tolist(), sets, strict=True)
            ]
            assert got.tolist() == expected
        blocked_UJ = torch.from_numpy(rng.integers(-1, num_items, size=(3, rng.integers(1, 2 * num_items + 1))))
        others = used.masked_fill((used[..., None] == blocked_UJ.repeat_interleave(4, dim=0)[:, None]).any(2), -1)
        got = allowed(trie, nodes, level, others, None, blocked_UJ)
        both = torch.cat([others, blocked_UJ.repeat_interleave(4, dim=0)], dim=1)
        assert torch.equal(got, allowed(trie, nodes, level, both))


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.integers(0, 2**31))
def test_allowed_at_a_time_equals_brute_force_over_what_exists(catalogue, seed):
    num_codes, codes_IL = catalogue
    rng, num_items = np.random.default_rng(seed), len(codes_IL)
    upload_s_I, withdraw_s_I = rng.integers(0, 4, (2, num_items)).astype(float)  # some are withdrawn before they come
    items = replace(toy_catalog(num_items), upload_s_I=upload_s_I, withdraw_s_I=withdraw_s_I)
    trie, time_s_U = Trie.from_codes(codes_IL, num_codes).dated(items), torch.tensor([0.0, 1.0, 2.5, 9.0]).double()
    exists_UI = (upload_s_I <= time_s_U[:, None].numpy()) & (time_s_U[:, None].numpy() < withdraw_s_I)
    assert trie.num_existing(time_s_U).tolist() == exists_UI.sum(1).tolist()
    assert trie.exists(time_s_U[:, None], torch.arange(num_items)).tolist() == exists_UI.tolist()
    assert not trie.exists(time_s_U, torch.tensor(-1)).any()
    absent_R = [set(np.flatnonzero(~exists_I)) for exists_I in exists_UI.repeat(3, axis=0)]
    for level in range(len(num_codes)):
        nodes, prefix_RL = trie.root(12), codes_IL[torch.from_numpy(rng.integers(num_items, size=12)), :level]
        for before in range(level):
            nodes = trie.child(nodes, prefix_RL[:, before])
        used = torch.from_numpy(rng.integers(-1, num_items, size=(12, rng.integers(0, 3 * num_items))))
        used = used.masked_fill(~trie.exists(time_s_U.repeat_interleave(3)[:, None], used), -1)
        for blocked in (None, used):
            got = allowed(trie, nodes, level, blocked, trie.supply(time_s_U))
            sets = absent_R if blocked is None else [a | set(u) for a, u in zip(absent_R, used.tolist(), strict=True)]
            expected = [
                brute_allowed(codes_IL, num_codes, tuple(p), u) for p, u in zip(prefix_RL.tolist(), sets, strict=True)
            ]
            assert got.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(catalogues(), st.integers(0, 2**31))
def test_following_allowed_codes_generates_every_item_once_and_never_dead_ends(catalogue, seed):
    num_codes, codes_IL = catalogue
    trie, generator = Trie.from_codes(codes_IL, num_codes), torch.Generator().manual_seed(seed)
    used = torch.empty(3, 0, dtype=torch.int64)
    for _ in range(len(codes_IL)):
        nodes = trie.root(3)
        for level in range(len(num_codes)):
            mask = allowed(trie, nodes, level, used)
            assert mask.any(dim=1).all()
            nodes = trie.child(nodes, torch.multinomial(mask.float(), 1, generator=generator)[:, 0])
        used = torch.cat([used, trie.item(nodes)[:, None]], dim=1)
    assert used.sort(dim=1).values.tolist() == [list(range(len(codes_IL)))] * 3
    assert not allowed(trie, trie.root(3), 0, used).any()


@settings(max_examples=40, deadline=None)
@given(catalogues())
def test_decode_inverts_the_table_and_refuses_all_else(catalogue):
    num_codes, codes_IL = catalogue
    trie = Trie.from_codes(codes_IL, num_codes)
    around = np.stack([a.ravel() for a in np.indices([n + 2 for n in num_codes])], axis=1) - 1
    items = {tuple(c): item for item, c in enumerate(codes_IL.tolist())}
    expected = [items.get(tuple(c), -1) for c in around.tolist()]
    assert trie.decode(torch.from_numpy(around)).tolist() == expected


def test_child_and_item_off_the_tree():
    trie = Trie.from_codes(CODES)
    assert trie.num_codes == (4, 3, 2)
    nodes = trie.child(torch.tensor([0, 0, 0, -1, -1]), torch.tensor([0, 1, -1, 0, 4]))
    assert (nodes == -1).tolist() == [False, True, True, True, True]
    assert trie.item(torch.tensor([0, -1])).tolist() == [-1, -1]
    assert not allowed(trie, torch.tensor([-1]), 1).any()
    # A code larger than a level's own must not reach into the next parent's children.
    assert trie.child(trie.child(torch.tensor(0), torch.tensor(0)), torch.tensor(5)).item() == -1


def test_a_prefix_is_masked_only_when_the_last_item_below_it_is_used():
    trie = Trie.from_codes(CODES)
    used = torch.tensor([[1, 1, -1], [1, 3, -1], [1, 3, 2]])
    assert allowed(trie, trie.root(3), 0, used).tolist() == [
        [True, False, False, True],  # item 1 twice is one item: 2 and 3 are left below code 0
        [True, False, False, True],  # item 2 is left
        [False, False, False, True],  # nothing is left
    ]
    below_0 = trie.child(trie.root(3), torch.tensor(0))
    assert allowed(trie, below_0, 1, used).tolist() == [[True, False, True], [False, False, True], [False] * 3]


def test_rows_do_not_touch_each_other():
    trie = Trie.from_codes(CODES)
    used = torch.tensor([[1, 3], [2, -1]])
    whole = allowed(trie, trie.root(2), 0, used)
    alone = torch.cat([allowed(trie, trie.root(1), 0, used[row : row + 1]) for row in range(2)])
    assert torch.equal(whole, alone)


def test_large_catalogue_needs_no_dense_table():
    rng = np.random.default_rng(0)
    codes_IL = torch.from_numpy(np.unique(rng.integers(0, 8192, size=(20_000, 3)), axis=0))
    trie = Trie.from_codes(codes_IL, (8192,) * 3)
    tensors = [v for v in vars(trie).values() if isinstance(v, torch.Tensor)]
    assert sum(t.numel() for t in tensors) < 25 * codes_IL.numel()
    assert torch.equal(trie.decode(codes_IL), torch.arange(len(codes_IL)))


@pytest.mark.parametrize(
    ("codes", "num_codes", "message"),
    [
        ([[0, 1], [1, 1], [0, 1]], None, r"Items 0 and 2 share the codes \[0, 1\]"),
        ([[0, 3]], (1, 3), r"Item 0 has code 3 at level 1, outside 0..2"),
        ([[0, -1]], (1, 3), "outside 0..2"),
        ([[0, 1]], (2,), "names 1 levels, but the codes have 2"),
        (torch.empty(0, 2), None, "at least one item"),
    ],
)
def test_bad_tables_are_refused(codes, num_codes, message):
    with pytest.raises(ValueError, match=message):
        Trie.from_codes(torch.as_tensor(codes), num_codes)


def test_decode_refuses_a_wrong_number_of_codes():
    with pytest.raises(ValueError, match="an item has 3 codes"):
        Trie.from_codes(CODES).decode(torch.zeros(5, 2, dtype=torch.int64))

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_agents import allowed

from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.tokenizers import (
    LSH,
    RQVAE,
    ItemId,
    LSHConfig,
    RandomCodes,
    RandomCodesConfig,
    ResidualKMeans,
    ResidualKMeansConfig,
    RQVAEConfig,
    append_counter,
    check_tokenizer,
)

CONTENT = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 5)))
COPIES = CONTENT.clone()
COPIES[10:30] = COPIES[10]  # items that no content can tell apart


def kmeans(**config):
    return ResidualKMeans(ResidualKMeansConfig(num_codes=(8, 16), **config))


EVERY = {
    "item id": ItemId(),
    "random": RandomCodes(RandomCodesConfig(num_codes=(8, 8))),
    "lsh": LSH(LSHConfig(num_codes=(4, 8))),
    "plain k-means, apart": kmeans(assignment="nearest"),
    "plain k-means, counter": kmeans(assignment="nearest", collisions="counter"),
    "plain k-means, sinkhorn": kmeans(assignment="nearest", collisions="sinkhorn"),
    "greedy k-means, counter": kmeans(assignment="greedy", collisions="counter"),
    "balanced k-means, counter": kmeans(collisions="counter"),
    "balanced k-means, sinkhorn": kmeans(collisions="sinkhorn"),
    "rq-vae": RQVAE(RQVAEConfig(num_codes=(4, 8), latent_width=4, steps=5, collisions="sinkhorn")),
}


@pytest.mark.parametrize("content", [CONTENT, COPIES], ids=["different items", "copies"])
@pytest.mark.parametrize("tokenizer", EVERY.values(), ids=EVERY)
def test_every_tokenizer_keeps_its_promises(tokenizer, content):
    check_tokenizer(tokenizer, content)


@pytest.mark.parametrize("tokenizer", EVERY.values(), ids=EVERY)
def test_an_agent_is_made_from_any_tokenizer(tokenizer):
    tokenizer = type(tokenizer)(tokenizer.config).fit(COPIES)
    config = OneRecConfig(d_model=8, num_heads=2, encoder_layers=1, decoder_layers=1, d_ff=8, profile_sizes=())
    torch.manual_seed(0)
    model = OneRec.from_tokenizer(tokenizer, config)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    tokens = tokenizer.vocabulary.token_ids(tokenizer.codes_IL)
    assert torch.equal(tokenizer.vocabulary.codes(tokens), tokenizer.codes_IL)
    assert int(tokens.max()) < model.config.vocab_size
    nodes = tokenizer.trie().root(60)
    for level in range(tokenizer.num_levels):
        code = tokenizer.codes_IL[:, level]
        assert allowed(tokenizer.trie(), nodes, level)[torch.arange(60), code].all()
        nodes = tokenizer.trie().child(nodes, code)
    assert tokenizer.trie().item(nodes).tolist() == list(range(60))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_counter_makes_tuples_unique_and_counts_from_0_without_a_gap(data):
    num_codes = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = torch.from_numpy(rng.integers(num_codes, size=(data.draw(st.integers(1, 40)), len(num_codes))))
    counted, all_num_codes = append_counter(codes, num_codes)
    groups = {}
    for row in codes.tolist():
        groups[tuple(row)] = [*groups.get(tuple(row), []), len(groups.get(tuple(row), []))]
    assert torch.equal(counted[:, :-1], codes)
    given_out = {key: [row[-1] for row in counted.tolist() if tuple(row[:-1]) == key] for key in groups}
    assert given_out == groups  # in the order of the items
    assert all_num_codes == (*num_codes, max(map(len, groups.values())))
    assert len(counted.unique(dim=0)) == len(codes)
    bare, bare_num_codes = append_counter(codes, num_codes, only_if_needed=True)
    if len(groups) == len(codes):
        assert torch.equal(bare, codes) and bare_num_codes == num_codes
    else:
        assert torch.equal(bare, counted) and bare_num_codes == all_num_codes


def test_an_items_id_is_its_code():
    tokenizer = ItemId().fit(CONTENT)
    assert tokenizer.num_codes == (60,)
    assert tokenizer.encode(torch.tensor([[7, -1]])).tolist() == [[[7], [-1]]]
    assert tokenizer.codebooks == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
def test_random_tuples_are_different_even_where_every_tuple_is_needed(num_codes, seed):
    every = int(np.prod(num_codes))
    tokenizer = RandomCodes(RandomCodesConfig(num_codes=tuple(num_codes), seed=seed)).fit(np.zeros((every, 1)))
    assert len(tokenizer.codes_IL.unique(dim=0)) == every


def test_random_codes_are_even_and_know_nothing_of_content():
    config = RandomCodesConfig(num_codes=(4, 256, 256, 256))
    codes = RandomCodes(config).fit(torch.zeros(4000, 1)).codes_IL
    assert codes[:, 0].bincount().min() > 900
    assert torch.equal(RandomCodes(config).fit(torch.rand(4000, 3)).codes_IL, codes)
    assert not torch.equal(
        RandomCodes(RandomCodesConfig(num_codes=config.num_codes, seed=1)).fit(codes).codes_IL, codes
    )
    with pytest.raises(ValueError, match="makes 16 tuples, too few for 17"):
        RandomCodes(RandomCodesConfig(num_codes=(4, 4))).fit(torch.zeros(17, 1))
    with pytest.raises(ValueError, match=r"2\^63 tuples or more"):
        RandomCodesConfig(num_codes=(2**16,) * 4)


def test_lsh_codes_are_the_sides_of_the_hyperplanes():
    tokenizer = LSH(LSHConfig(num_codes=(8, 2, 1))).fit(CONTENT + 100)  # far from the origin, which must not matter
    hyperplanes, mean = tokenizer.learned["hyperplanes_BE"], tokenizer.learned["mean_E"]
    for item in range(60):
        bits = [float(plane @ (CONTENT[item] + 100 - mean)) > 0 for plane in hyperplanes]
        expected = [bits[0] + 2 * bits[1] + 4 * bits[2], int(bits[3]), 0]
        assert tokenizer.codes_IL[item, :3].tolist() == expected
    assert tokenizer.num_content_levels == 3
    assert len(tokenizer.codes_IL[:, 0].unique()) >= 6
    with pytest.raises(ValueError, match="give powers of two"):
        LSHConfig(num_codes=(8, 6))


def test_lsh_gives_near_items_the_same_code_more_often_than_far_ones():
    near = torch.cat([CONTENT, CONTENT + 0.05 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))])
    codes = LSH(LSHConfig(num_codes=(64,))).fit(near).codes_IL[:, 0]
    same = (codes[:60, None] == codes[60:]).float()
    assert same.diagonal().mean() > 0.7 > 0.2 > same.mean()


def test_plain_kmeans_keeps_apart_what_can_be_and_counts_the_rest():
    apart, counted = (kmeans(assignment="nearest", collisions=how).fit(COPIES) for how in ("apart", "counter"))
    assert apart.num_codes == (8, 16)
    assert counted.num_codes[:2] == (8, 16) and counted.num_codes[2] >= 20  # the copies
    plain = kmeans(assignment="nearest", collisions="counter").fit(CONTENT)
    balanced = kmeans(collisions="counter").fit(CONTENT)
    assert np.ptp(np.bincount(balanced.codes_IL[:, 0])) <= 1 < np.ptp(np.bincount(plain.codes_IL[:, 0]))
    errors = [float((t.reconstruct(t.codes_IL) - CONTENT).square().mean()) for t in (plain, balanced)]
    assert errors[0] < errors[1]  # what balance costs


def test_files_from_before_counters_can_still_be_read(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    tokenizer = kmeans().fit(CONTENT)
    file = tokenizer.save(tmp_path)
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = dict(opened.metadata()), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    del metadata["num_content_levels"]
    save_file(tensors, file, metadata=metadata)
    assert ResidualKMeans.load(file).num_content_levels == 2


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="collisions='ignored' is unknown"):
        kmeans(collisions="ignored")

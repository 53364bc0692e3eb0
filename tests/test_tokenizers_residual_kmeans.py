import json
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment

from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig
from feedgym.tokenizers.assignment import assign, assign_apart, auction
from feedgym.tokenizers.residual_kmeans import fit_centroids


def content(num_items, width=6, seed=0):
    """Uneven clusters, as topics are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, width))
    return torch.from_numpy(centres[rng.geometric(0.5, num_items) % 5] + 0.3 * rng.normal(size=(num_items, width)))


def fitted(num_items, num_codes, **config):
    return ResidualKMeans(ResidualKMeansConfig(num_codes=num_codes, **config)).fit(content(num_items))


def plain_assign(points, centroids, sizes):
    """Algorithm 1's inner loop, as printed, with Python lists."""
    unassigned, clusters = list(range(len(points))), []
    for k in range(len(centroids)):
        unassigned.sort(key=lambda i: float(np.sum((points[i] - centroids[k]) ** 2)))
        clusters.append(unassigned[: sizes[k]])
        unassigned = unassigned[sizes[k] :]
    return clusters


@pytest.mark.parametrize(("num_points", "num_codes"), [(12, 3), (17, 5), (9, 9), (6, 1), (600, 300)])
def test_assignment_equals_the_plain_loop_of_algorithm_1(num_points, num_codes):
    rng = np.random.default_rng(num_points)
    points, centroids = rng.normal(size=(num_points, 3)), rng.normal(size=(num_codes, 3))
    sizes = num_points // num_codes + (np.arange(num_codes) < num_points % num_codes)
    code = assign(points, centroids, sizes, "greedy")
    assert [sorted(c) for c in plain_assign(points, centroids, sizes)] == [
        np.flatnonzero(code == k).tolist() for k in range(num_codes)
    ]


def test_centroids_equal_the_plain_loop_of_algorithm_1():
    points = content(23, width=3).numpy()
    centroids = points[np.random.default_rng(5).permutation(23)[:4]]
    clusters = None
    for _ in range(50):
        before, clusters = clusters, [sorted(c) for c in plain_assign(points, centroids, [6, 6, 6, 5])]
        if clusters == before:
            break
        centroids = np.stack([points[c].mean(axis=0) for c in clusters])
    np.testing.assert_allclose(fit_centroids(points, 4, "greedy", 50, np.random.default_rng(5)), centroids)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_auction_comes_near_the_least_total_distance(data):
    sizes = np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    points, centroids = rng.normal(size=(sizes.sum(), 2)), rng.normal(size=(len(sizes), 2))
    points[: data.draw(st.integers(1, len(points)))] = points[0]  # copies, between which a bid cannot choose
    code = auction(points, centroids, sizes)
    assert np.bincount(code, minlength=len(sizes)).tolist() == sizes.tolist()
    distance = ((points[:, None] - centroids) ** 2).sum(-1)
    places = np.repeat(np.arange(len(sizes)), sizes)
    least = distance[:, places][linear_sum_assignment(distance[:, places])].sum()
    assert distance[np.arange(len(points)), code].sum() <= least + 1e-3 * len(points) * np.ptp(distance) + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sizes_are_within_one_and_tuples_unique_at_any_density(data):
    num_codes = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    lowest = max(num_codes)
    num_items = data.draw(st.integers(lowest, max(lowest, min(prod(num_codes), 120))))
    points = content(num_items, seed=data.draw(st.integers(0, 99)))
    copies = data.draw(st.integers(1, num_items))  # items of the same content, which k-means alone cannot tell apart
    points[:copies] = points[0]
    codes = ResidualKMeans(ResidualKMeansConfig(num_codes=num_codes, max_iterations=3)).fit(points).codes_IL.numpy()
    for level, codes_of_level in enumerate(codes.T):
        sizes = np.bincount(codes_of_level, minlength=num_codes[level])
        assert len(sizes) == num_codes[level]
        assert sizes.max() - sizes.min() <= 1
    assert len(np.unique(codes, axis=0)) == num_items


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_crowded_prefixes_are_spread_within_the_limit(data):
    num_codes, limit = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    groups = data.draw(st.lists(st.integers(1, num_codes * limit), min_size=1, max_size=8))
    prefix = np.repeat(np.arange(len(groups)), groups)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    points, centroids = rng.normal(size=(len(prefix), 2)), rng.normal(size=(num_codes, 2))
    sizes = len(prefix) // num_codes + (np.arange(num_codes) < len(prefix) % num_codes)
    code = assign_apart(points, centroids, sizes, prefix, limit, data.draw(st.sampled_from(["auction", "greedy"])))
    assert np.bincount(code, minlength=num_codes).tolist() == sizes.tolist()
    if sizes.max() > limit:
        assert np.bincount(prefix * num_codes + code).max() <= limit


def test_one_crowded_prefix_gets_the_cheapest_assignment():
    from itertools import permutations

    rng = np.random.default_rng(1)
    points, centroids = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    distance = ((points[:, None] - centroids) ** 2).sum(-1)
    code = assign_apart(points, centroids, np.ones(5, dtype=int), np.zeros(5, dtype=int), 1, "greedy")
    # limit 1 does not bind when each cluster takes one point, so Algorithm 1 decides; two prefixes make it bind
    assert sorted(code) == [0, 1, 2, 3, 4]
    points2 = np.concatenate([points, points + 10])
    code2 = assign_apart(points2, centroids, np.full(5, 2), np.repeat([0, 1], 5), 1, "greedy")
    cheapest = min(permutations(range(5)), key=lambda p: distance[range(5), p].sum())
    assert code2[:5].tolist() == list(cheapest)


def test_reconstruction_improves_with_every_level():
    points = content(300)
    errors = []
    for levels in (1, 2, 3, 4):
        # The last level is padding that makes the tuples suffice; only the levels before it are read.
        tokenizer = fitted(300, (8,) * levels + (300,))
        books = [tokenizer.learned[f"codebook_{level}"] for level in range(levels)]
        sums = sum(book[tokenizer.codes_IL[:, level]] for level, book in enumerate(books))
        errors.append(float((sums - points).square().mean()))
        assert torch.allclose(tokenizer.reconstruct(tokenizer.codes_IL), points.float(), atol=1e-5)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.35 * errors[0]


def test_similar_items_share_prefixes():
    rng = np.random.default_rng(0)
    topic = np.repeat(np.arange(8), 16)
    points = 4 * rng.normal(size=(8, 6))[topic] + 0.1 * rng.normal(size=(128, 6))
    shuffle = rng.permutation(128)
    codes = ResidualKMeans(ResidualKMeansConfig(num_codes=(32, 8))).fit(points[shuffle]).codes_IL[:, 0].numpy()
    same = codes[:, None] == codes
    alike = topic[shuffle][:, None] == topic[shuffle]
    assert (alike & same).sum() / same.sum() > 0.8  # by chance it would be 1 in 8


def test_same_seed_same_codes_and_another_seed_others():
    assert fitted(200, (8, 32)).hash == fitted(200, (8, 32)).hash
    assert fitted(200, (8, 32)).hash != fitted(200, (8, 32), seed=1).hash


def test_encode_and_decode_round_trip_with_padding():
    tokenizer = fitted(100, (8, 16))
    ids = torch.tensor([[5, 99, -1], [0, 5, 42]])
    codes = tokenizer.encode(ids)
    assert codes.shape == (2, 3, 2)
    assert codes[0, 2].tolist() == [-1, -1]
    assert torch.equal(tokenizer.decode(codes), ids)
    assert torch.equal(tokenizer.encode(ids.int()), codes)


@pytest.mark.parametrize("item_id", [100, -2])
def test_encode_refuses_items_of_another_catalogue(item_id):
    with pytest.raises(ValueError, match=f"Item id {item_id} is outside"):
        fitted(100, (8, 16)).encode(torch.tensor([3, item_id]))


def test_save_and_load_keep_codes_codebooks_config_and_hash(tmp_path):
    tokenizer = fitted(60, (4, 16), seed=3)
    file = tokenizer.save(tmp_path / "made" / "here")
    assert file == tmp_path / "made" / "here" / "tokenizer.safetensors"
    assert [f.name for f in file.parent.iterdir()] == [file.name]  # the temporary file is gone
    for path in (file, file.parent):
        loaded = ResidualKMeans.load(path)
        assert loaded.hash == tokenizer.hash
        assert loaded.config == tokenizer.config
        assert torch.equal(loaded.codes_IL, tokenizer.codes_IL)
        assert torch.equal(loaded.reconstruct(loaded.codes_IL), tokenizer.reconstruct(tokenizer.codes_IL))


def rewrite(file, **changes):
    """The same file with other tensors or metadata."""
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = dict(opened.metadata()), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, value in changes.items():
        (metadata if isinstance(value, str) else tensors)[name] = value
    save_file(tensors, file, metadata=metadata)


def test_changed_codes_and_damaged_files_are_refused(tmp_path):
    tokenizer = fitted(60, (4, 16))
    file = tokenizer.save(tmp_path)
    codes = tokenizer.codes_IL.clone()
    codes[[0, 1]] = codes[[1, 0]]
    rewrite(file, codes_IL=codes)
    with pytest.raises(ValueError, match="do not match their hash"):
        ResidualKMeans.load(file)
    for damage, message in (
        ({"class": "Other"}, "holds a 'Other'"),
        ({"config": "{"}, "is damaged"),
        ({"config": json.dumps({"colour": 1})}, "is damaged"),
    ):
        tokenizer.save(tmp_path)
        rewrite(file, **damage)
        with pytest.raises(ValueError, match=message):
            ResidualKMeans.load(file)
    file.write_bytes(tokenizer.save(tmp_path).read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        ResidualKMeans.load(file)
    with pytest.raises(ValueError, match="no tokenizer at"):
        ResidualKMeans.load(tmp_path / "elsewhere")


def test_bad_content_and_configs_are_refused():
    points = content(20)
    points[7, 2], points[11, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"in 2 item\(s\), the first of them item 7"):
        ResidualKMeans(ResidualKMeansConfig(num_codes=(4, 8))).fit(points)
    for num_codes, message in (
        ((4, 21), "a level of 21 codes, but there are only 20 items"),
        ((4, 4), "makes 16 tuples, too few for 20 items"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(20, num_codes)
    with pytest.raises(ValueError, match="one row of embeddings per item"):
        ResidualKMeans().fit(torch.zeros(20))
    with pytest.raises(ValueError, match=r"num_codes\[1\]=0 must be 1 or more"):
        ResidualKMeansConfig(num_codes=(4, 0))
    with pytest.raises(ValueError, match="assignment='best' is unknown"):
        ResidualKMeansConfig(assignment="best")
    with pytest.raises(ValueError, match="max_iterations=0"):
        ResidualKMeansConfig(max_iterations=0)
    with pytest.raises(ValueError, match=r"call fit\(\) or load\(\) first"):
        ResidualKMeans().encode(torch.tensor([0]))


def test_numpy_content_is_not_changed_and_gives_the_same_codes():
    points = content(80)
    array = points.numpy().copy()
    hashes = {ResidualKMeans(ResidualKMeansConfig(num_codes=(8, 16))).fit(p).hash for p in (points, array)}
    assert len(hashes) == 1
    assert np.array_equal(array, points.numpy())

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.tokenizers import (
    LSH,
    CodeTokenizer,
    ItemId,
    LSHConfig,
    ResidualKMeans,
    ResidualKMeansConfig,
    compare_tokenizers,
    quality_report,
)


class Fixed:
    """Codes by hand; items 0 and 1 collide."""

    num_codes = (3, 2)
    codes_IL = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 1]])

    def fit(self, content_IE):
        return self

    def encode(self, item_ids):
        return self.codes_IL[item_ids]

    def decode(self, codes):
        raise NotImplementedError


def test_report_on_codes_by_hand():
    report = quality_report(Fixed(), torch.eye(4), topic_I=np.array([5, 5, 7, 7]))
    assert report["num_items"] == 4
    assert report["items_per_tuple"] == pytest.approx(4 / 6)
    assert report["utilisation"] == [pytest.approx(2 / 3), 1.0]
    # 3 of 4 and 1 of 4 items; then 2 and 2
    assert report["entropy_bits"] == [pytest.approx(0.75 * np.log2(4 / 3) + 0.25 * 2), pytest.approx(1.0)]
    assert (report["cluster_size_min"], report["cluster_size_max"]) == ([0, 2], [3, 2])
    assert report["unique_prefix_ratio"] == [0.5, 0.75]
    assert report["unique_tuple_ratio"] == 0.75
    assert report["max_prefix_group"] == [3, 2]
    assert report["max_collision_group"] == 2
    assert report["reconstruction_error"] is None
    # any two items: 2 of 6 pairs; code 0: 1 of 3 pairs; the colliding pair: 1 of 1
    assert report["same_topic_rate"] == [pytest.approx(1 / 3), pytest.approx(1 / 3), 1.0]


def test_unknown_topics_are_left_out():
    report = quality_report(Fixed(), torch.eye(4), topic_I=np.array([5, -1, 5, -1]))
    assert report["same_topic_rate"] == [1.0, 1.0, None]
    assert quality_report(Fixed(), torch.eye(4))["same_topic_rate"] == [None] * 3


def test_report_of_a_fitted_tokenizer_can_be_written_as_json():
    rng = np.random.default_rng(0)
    topic = rng.integers(4, size=100)
    points = 3 * np.eye(4)[topic] + 0.2 * rng.normal(size=(100, 4))
    tokenizer = ResidualKMeans(ResidualKMeansConfig(num_codes=(8, 25))).fit(points)
    assert isinstance(tokenizer, CodeTokenizer)
    report = json.loads(json.dumps(quality_report(tokenizer, points, topic)))
    assert report["cluster_size_min"] == [12, 4]
    assert report["cluster_size_max"] == [13, 4]
    assert report["utilisation"] == [1.0, 1.0]
    assert report["unique_tuple_ratio"] == 1.0
    assert report["entropy_bits"][1] == pytest.approx(np.log2(25))
    assert 0 < report["reconstruction_error"] < 0.5
    any_two, same_code, same_tuple = report["same_topic_rate"]
    assert same_code > 2 * any_two
    assert same_tuple is None


def test_reconstruction_error_of_the_mean_is_one():
    class Mean(Fixed):
        def reconstruct(self, codes):
            return torch.full((*codes.shape[:-1], 4), 0.25)

    assert quality_report(Mean(), torch.eye(4))["reconstruction_error"] == pytest.approx(1.0)


class Counted(Fixed):
    """The same collisions, told apart by a level that only counts."""

    num_codes = (3, 2, 2)
    num_content_levels = 2
    codes_IL = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0]])


def test_collisions_are_counted_before_the_level_that_tells_them_apart():
    for tokenizer in (Fixed(), Counted()):
        report = quality_report(tokenizer, torch.eye(4))
        assert (report["collision_rate"], report["unique_ratio"], report["max_collision_group"]) == (0.5, 0.75, 2)
        assert report["num_content_levels"] == 2
    assert report["unique_tuple_ratio"] == 1.0
    assert report["perplexity"][1] == pytest.approx(2.0)
    assert report["perplexity"][0] == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_report_equals_brute_force(data):
    num_codes = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    num_items = data.draw(st.integers(1, 25))
    drawn = Fixed()
    drawn.num_codes, drawn.codes_IL = (
        num_codes,
        torch.from_numpy(rng.integers(num_codes, size=(num_items, len(num_codes)))),
    )
    topic = rng.integers(-1, 3, size=num_items)
    report = quality_report(drawn, torch.zeros(num_items, 2), topic)
    rows = [tuple(row) for row in drawn.codes_IL.tolist()]
    for length in range(len(num_codes) + 1):
        tagged, right = 0, 0
        for prefix in {row[:length] for row in rows}:
            topics = [int(t) for row, t in zip(rows, topic, strict=True) if row[:length] == prefix and t >= 0]
            tagged += len(topics)
            right += max(map(topics.count, topics), default=0)
        assert report["topic_purity"][length] == (pytest.approx(right / tagged) if tagged else None)
        pairs = [(a, b) for a in range(num_items) for b in range(a) if topic[a] >= 0 and topic[b] >= 0]
        together = [(a, b) for a, b in pairs if rows[a][:length] == rows[b][:length]]
        alike = sum(topic[a] == topic[b] for a, b in together)
        assert report["same_topic_rate"][length] == (pytest.approx(alike / len(together)) if together else None)
        if length:
            assert report["max_prefix_group"][length - 1] == max(
                sum(row[:length] == other[:length] for other in rows) for row in rows
            )
            assert report["unique_prefix_ratio"][length - 1] == len({row[:length] for row in rows}) / num_items
    assert report["collision_rate"] == pytest.approx(sum(rows.count(row) > 1 for row in rows) / num_items)
    for level, size in enumerate(num_codes):
        share = np.array([sum(row[level] == code for row in rows) for code in range(size)]) / num_items
        assert report["utilisation"][level] == pytest.approx((share > 0).mean())
        entropy = -sum(p * np.log(p) for p in share if p > 0)
        assert report["perplexity"][level] == pytest.approx(np.exp(entropy))


def test_tokenizers_side_by_side():
    rng = np.random.default_rng(0)
    topic = rng.integers(4, size=100)
    points = 3 * np.eye(4)[topic] + 0.2 * rng.normal(size=(100, 4))
    table = compare_tokenizers(
        {
            "balanced": ResidualKMeans(ResidualKMeansConfig(num_codes=(8, 25))).fit(points),
            "hashed": LSH(LSHConfig(num_codes=(8, 2))).fit(points),
            "ids": ItemId().fit(points),
        },
        points,
        topic,
    )
    assert table.index.tolist() == ["balanced", "hashed", "ids"]
    assert table["num_codes"]["balanced"] == "8/25" and table["num_codes"]["hashed"].startswith("8/2/")
    assert table["utilisation"]["balanced"] == "1.000/1.000"
    assert len(table["utilisation"]["hashed"].split("/")) == 2  # the level that counts is left out
    assert table["collision_rate"]["balanced"] == 0 < table["collision_rate"]["hashed"]
    assert np.isnan(table["reconstruction_error"]["ids"]) and table["reconstruction_error"]["balanced"] < 0.5
    assert table["topic_purity"]["balanced"] > 0.8

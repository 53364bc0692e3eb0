import json

import numpy as np
import pytest
import torch

from feedgym.tokenizers import CodeTokenizer, ResidualKMeans, ResidualKMeansConfig, quality_report


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

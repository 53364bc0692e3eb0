"""What MTGR learns from and what judges it in an experiment."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from feedgym.experiments.presets import PRESETS
from feedgym.experiments.rank.agents import new_ranker
from feedgym.experiments.rank.experiment import RankingData
from feedgym.experiments.retrieval.data import read_log


def data_of(preset):
    config = PRESETS[preset]()
    return RankingData.of(config, read_log(config, None))


@pytest.fixture(scope="module")
def windows():
    return data_of("mtgr-smoke")


def exposures(rows):
    """User, item and second of every candidate."""
    real_NK = rows.batch.mask_NK
    user = np.repeat(rows.user_idx_N, real_NK.sum(1).numpy())
    time_s = (torch.from_numpy(rows.start_s_N)[:, None] + rows.batch.time_s_NK)[real_NK]
    return set(zip(user.tolist(), rows.batch.item_ids_NK[real_NK].tolist(), time_s.round().tolist(), strict=True))


def test_mtgr_learns_from_windows_that_end_before_validation(windows):
    train, validation = windows.train, windows.validation
    last_s_N = train.start_s_N + train.batch.time_s_NK.amax(1).numpy()
    assert last_s_N.max() < validation.start_s_N.min()
    assert train.batch.request_NK.max() > 0
    assert not exposures(train) & (exposures(validation) | exposures(windows.judged))


def test_mtgr_is_judged_by_the_requests_that_judge_other_rankers(windows):
    others = data_of("genrank-smoke")
    assert exposures(windows.judged) == exposures(others.judged)
    assert windows.judged.batch.request_NK.max() == 0
    assert exposures(windows.train) == exposures(others.train)


def test_ablations_and_sizes_of_a_preset_reach_the_model(windows):
    config = PRESETS["mtgr-smoke"]()
    ablated = replace(config.model, mask="full", group_layer_norm=False, cross_features=False, num_layers=2)
    net = new_ranker("mtgr", ablated, windows.catalog, windows.facts, config.history_length)
    assert (net.config.mask, net.config.group_layer_norm, net.config.cross_features) == ("full", False, False)
    assert len(net.layers) == 2 and net.layers[0].norm.weight.shape[0] == 1
    assert net.candidate[0].in_features == config.model.d_model
    with pytest.raises(ValueError, match="their own feedback"):
        replace(config, model=replace(ablated, decided="exposure"))
    paper = PRESETS["mtgr-paper-large"]()
    assert (paper.model.num_layers, paper.model.d_model, paper.model.num_heads) == (15, 768, 3)
    assert paper.history_length == 1000 and paper.model.decided == "request"

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_users import ToyUsers

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.data.events import BEHAVIOURS, Event
from feedgym.envs.logging import collect_log
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.truth import RewardWeights
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.configs import JudgeConfig, LogConfig
from feedgym.experiments.controls import references
from feedgym.experiments.evaluate import judge_online
from feedgym.experiments.exposure import (
    FigureOfSums,
    creators_of,
    exposed_so_far,
    exposure_counts,
    exposure_figures,
    gini,
    top_share,
)
from feedgym.experiments.serve import starting
from feedgym.experiments.statistics import interval, resampling_counts

DAY_S = 86_400.0
WEIGHTS = RewardWeights(click=0.3, hate=-2.0)


class Creative(ToyUsers):
    """Toy users of items by several creators, some of them unknown and one without readers."""

    def __init__(self, num_items=40):
        super().__init__(num_items, churn=0.1)
        self.catalog = replace(self.catalog, creator_I=np.arange(num_items) % 7 - 1)


def logs(num_items=40):
    simulator = Creative(num_items)
    earlier = collect_log(simulator, num_users=12, num_visits=2, session_length=4, seed=1)
    log = collect_log(simulator, num_users=15, num_visits=4, session_length=4, seed=2)
    return simulator.catalog, earlier, log


# ---------------------------------------------------------------- the parts


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_mean_absolute_difference_over_the_mean(counts):
    c = np.array(counts, float)
    plain = np.abs(c[:, None] - c).mean() / (2 * c.mean())
    assert gini(c[None])[0] == pytest.approx(plain, abs=1e-12)


def test_gini_knows_its_ends():
    rows = np.array([[5, 5, 5, 5], [0, 0, 0, 9], [0, 0, 0, 0]])
    assert gini(rows).tolist() == pytest.approx([0, 0.75, 0])


def test_the_top_holds_what_it_holds():
    counts = np.array([[5.0, 1, 2, 0, 0, 0, 1, 0, 0, 1], [0.0] * 10])
    assert top_share(counts, 0.2).tolist() == pytest.approx([0.7, 0])
    assert top_share(counts)[0] == pytest.approx(0.5), "at least one item is at the top"


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_exposures_so_far_are_those_of_a_plain_loop(shown):
    item_N = np.array([item for item, _ in shown], np.int64)
    examined_N = np.array([seen for _, seen in shown], bool)
    counts, plain = [3, 0, 1, 0, 7], []
    for item, seen in shown:
        plain.append(counts[item])
        counts[item] += seen
    assert exposed_so_far(item_N, examined_N, np.array([3, 0, 1, 0, 7])).tolist() == plain


def test_spreads_have_the_users_own_figure_in_the_middle_and_narrow_with_more_users():
    rng = np.random.default_rng(0)

    def covered(num_users):
        sums = (rng.random((num_users, 300)) < 2 / num_users).astype(float)
        coverage = FigureOfSums(sums, lambda count_RX: (count_RX > 0).mean(axis=1))
        return sums, coverage, interval(coverage, resampling_counts(num_users, 0))

    sums, coverage, found = covered(200)
    assert coverage.mean() == found["mean"] == (sums.sum(axis=0) > 0).mean()
    assert found["low"] < found["mean"] < found["high"]
    raw = np.mean([(sums[rng.integers(200, size=200)].sum(axis=0) > 0).mean() for _ in range(50)])
    assert raw < found["low"], "a plain percentile interval would lie beside the figure"


# ---------------------------------------------------------------- the figures


def plain_figures(log, catalog, earlier, few):
    """All of it again, exposure by exposure."""
    known = [0] * catalog.num_items
    if earlier is not None:
        for item in earlier.item_id[earlier.examined]:
            known[item] += 1
    shown = [row for row in range(log.num_events) if log.event[row] == Event.IMPRESSION]
    shown.sort(key=lambda row: log.timestamp_s[row])
    so_far, per_item = list(known), [0] * catalog.num_items
    seen, cold, explore, routine = [], [], [], []
    for row in shown:
        if not log.examined[row]:
            continue
        item = log.item_id[row]
        reward = log.watch_s[row] / 60
        reward += sum(getattr(WEIGHTS, name) * log.behaviours[row, b] for b, name in enumerate(BEHAVIOURS))
        seen.append(reward)
        per_item[item] += 1
        if known[item] < few:
            cold.append((reward, log.behaviours[row, 0]))
        (explore if so_far[item] < few else routine).append(reward)
        so_far[item] += 1
    creators = sorted({c for c in catalog.creator_I.tolist() if c >= 0})
    by_creator = [sum(n for n, c in zip(per_item, catalog.creator_I, strict=True) if c == who) for who in creators]
    c, visits = np.array(by_creator, float), (log.event == Event.LOGIN).sum()
    found = {
        "creator_gini": np.abs(c[:, None] - c).mean() / (2 * c.mean()),
        "creators_unseen": (c == 0).mean(),
        "catalog_coverage": sum(n > 0 for n in per_item) / len(per_item),
        "top_1pct_share": max(per_item) / len(seen),
        "cold_share": len(cold) / len(seen),
        "exploration_share": len(explore) / len(seen),
        "item_reward": np.mean(seen),
        "exploration_cost": (len(explore) * np.mean(routine) - sum(explore)) / visits,
    }
    if cold:
        found |= {"cold_reward": np.mean([r for r, _ in cold]), "cold_click_rate": np.mean([c for _, c in cold])}
    return found


@pytest.mark.parametrize("few", [1, 3, 6])
@pytest.mark.parametrize("with_earlier", [True, False])
def test_figures_are_those_of_a_plain_computation(few, with_earlier):
    catalog, earlier, log = logs()
    earlier = earlier if with_earlier else None
    figures = exposure_figures(log, catalog, earlier=earlier, weights=WEIGHTS, few=few)
    expected = plain_figures(log, catalog, earlier, few)
    assert figures.keys() == expected.keys()
    for name, figure in figures.items():
        assert figure.mean() == pytest.approx(expected[name], rel=1e-6), name
        assert figure.num_users == log.num_users
        found = interval(figure, resampling_counts(log.num_users, 0))
        assert found["low"] <= found["mean"] <= found["high"], name


def test_resampled_users_give_the_figures_of_a_log_of_those_users():
    """A ratio under a resampling that leaves users out is the ratio of the log without them."""
    from feedgym.data.splits import take_users

    catalog, earlier, log = logs()
    kept = np.array([0, 2, 3, 7, 11])
    counts_1U = np.isin(np.arange(log.num_users), kept).astype(float)[None]
    whole = exposure_figures(log, catalog, earlier=earlier, weights=WEIGHTS, few=2)
    part = exposure_figures(take_users(log, kept), catalog, earlier=earlier, weights=WEIGHTS, few=2)
    for name in ("cold_share", "cold_reward", "item_reward", "cold_click_rate"):
        assert whole[name].resampled(counts_1U)[0] == pytest.approx(part[name].mean()), name
    of_creators = whole["creator_gini"].of_sums(counts_1U @ whole["creator_gini"].sums_UX)
    assert of_creators[0] == pytest.approx(part["creator_gini"].mean())


def test_unknown_creators_do_not_count_and_a_catalogue_without_any_has_no_figure_of_them():
    catalog, _, log = logs()
    assert creators_of(catalog).shape == (40, 6) and creators_of(catalog).sum() == (catalog.creator_I >= 0).sum()
    nobody = replace(catalog, creator_I=np.full(40, -1))
    assert "creator_gini" not in exposure_figures(log, nobody) and "catalog_coverage" in exposure_figures(log, nobody)


def test_new_and_absent_items_are_told_apart():
    """Item 3 came on day 1 and item 5 is not there yet; the earlier log ended at noon of day 0."""
    catalog, earlier, log = logs()
    upload_s_I = np.zeros(40)
    upload_s_I[3], upload_s_I[5] = DAY_S, 1e9
    catalog = replace(catalog, upload_s_I=upload_s_I)
    earlier = replace(earlier, timestamp_s=np.minimum(earlier.timestamp_s, DAY_S / 2))
    figures = exposure_figures(log, catalog, earlier=earlier, arrivals=True)
    seen = log.item_id[log.examined]
    assert figures["new_item_share"].mean() == pytest.approx(np.isin(seen, [3, 5]).mean())
    clicks = log.behaviours[log.examined & np.isin(log.item_id, [3, 5]), 0]
    assert figures["new_click_rate"].mean() == pytest.approx(clicks.mean())
    shown = log.event == Event.IMPRESSION
    item, time_s = log.item_id[shown], log.timestamp_s[shown]
    absent = ~log.examined[shown] & ((item == 5) | ((item == 3) & (time_s < DAY_S)))
    assert absent.any() and figures["absent_share"].mean() == pytest.approx(absent.mean())
    old = exposure_figures(log, replace(catalog, upload_s_I=np.zeros(40)), earlier=earlier)
    assert "new_item_share" not in old and "absent_share" not in old


# ---------------------------------------------------------------- served agents


def test_judged_agents_tell_what_they_did_for_new_items_and_who_serves_what_does_not_exist():
    config = ShortVideoConfig(
        num_items=150, memory_items=8, arrivals_a_day=4.0, arrival_days=15.0, lifetime_days=40.0, fresh_weight=1.0
    )
    simulator = ShortVideo(config)
    until_s = LogConfig(days=5).until_s
    log = collect_log(simulator, num_users=60, num_visits=8, session_length=4, seed=0, until_s=until_s)
    unaware = RandomRecommender(150, 4, seed=5)
    popular = PopularRecommender(np_counts(log, 150), 4, catalog=simulator.catalog)
    settings = AlignConfig(session_length=4, history_length=8, judge=JudgeConfig(users=40, visits=3, first_day=8.0))
    agents = references(log, simulator.catalog, settings) | {"base": unaware, "aligned": popular}
    found = judge_online(simulator, agents, opinion, log, user_seeds(40, 0, "judge"), settings)["agents"]
    for aware in ("random", "popular", "aligned", "oracle"):
        assert found[aware]["absent_share"]["mean"] == 0, aware
    assert 0.15 < found["base"]["absent_share"]["mean"] < 0.6
    assert found["base"]["session_items"]["mean"] < found["random"]["session_items"]["mean"]
    assert found["random"]["new_item_share"]["mean"] > 0.05 > found["aligned"]["new_item_share"]["mean"]
    assert found["random"]["exploration_share"]["mean"] > found["aligned"]["exploration_share"]["mean"]
    assert found["random"]["creator_gini"]["mean"] < found["aligned"]["creator_gini"]["mean"]


def np_counts(log, num_items):
    import torch

    return torch.from_numpy(exposure_counts(log, num_items))


def opinion(histories, sessions):
    return sessions.item_ids_USK.float().sum(-1)


def test_only_simulators_that_can_begin_later_do():
    with pytest.raises(ValueError, match="give it a method starting"):
        starting(ToyUsers(), 3.0)
    with pytest.raises(ValueError, match="days=-1 must be 0 or more"):
        LogConfig(days=-1)

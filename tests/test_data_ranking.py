"""Rows of candidates against a walk through the log, event by event."""

import numpy as np
import pytest
import torch

from feedgym.data.events import Event
from feedgym.data.ranking import RankingBatch, ranking_requests, ranking_windows
from feedgym.envs.logging import collect_log
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig


@pytest.fixture(scope="module")
def world():
    simulator = ShortVideo(ShortVideoConfig(num_items=60))
    return collect_log(simulator, num_users=12, num_visits=5, session_length=6, seed=3), simulator.catalog


def exposures(log):
    """Per user, in order: (log row, visit, time of its request)."""
    for u in range(log.num_users):
        visit, request_s, found = -1, None, []
        for row in range(log.offsets_U1[u], log.offsets_U1[u + 1]):
            if log.event[row] == Event.LOGIN:
                visit, request_s = visit + 1, log.timestamp_s[row]
            elif log.event[row] == Event.IMPRESSION and log.examined[row]:
                found.append((row, visit, request_s))
        yield u, found


def rows_by_walking(log, most, window_s):
    """(user, rows of the log, number of each one's request, start); ``window_s`` 0 is a row per request."""
    for u, found in exposures(log):
        groups = {}
        for row, visit, request_s in found:
            key = visit if not window_s else int((request_s - found[0][2]) // window_s)
            groups.setdefault(key, []).append((row, visit, request_s))
        for group in groups.values():
            for low in range(0, len(group), most):
                part = group[low : low + most]
                before = [e for e in found if e[0] < part[0][0]]
                opens = not before or before[-1][1] != part[0][1]
                start_s = part[0][2] if opens else log.timestamp_s[part[0][0]]
                visits = sorted({visit for _, visit, _ in part})
                yield u, [e[0] for e in part], [visits.index(e[1]) for e in part], start_s, [e[0] for e in before]


@pytest.mark.parametrize(("most", "window_s"), [(10, 0), (2, 0), (50, np.inf), (7, 86_400.0)])
def test_rows_are_those_of_a_walk_through_the_log(world, most, window_s):
    log, catalog = world
    found = ranking_windows(log, catalog, 6, most, window_s) if window_s else ranking_requests(log, catalog, 6, most)
    expected = list(rows_by_walking(log, most, window_s))
    assert len(found) == len(expected) >= 12
    batch = found.batch
    for n, (user, rows, requests, start_s, before) in enumerate(expected):
        real = len(rows)
        assert found.user_idx_N[n] == user and found.start_s_N[n] == start_s
        assert batch.mask_NK[n].tolist() == [k < real for k in range(batch.mask_NK.shape[1])]
        assert batch.item_ids_NK[n, :real].tolist() == log.item_id[rows].tolist()
        assert batch.behaviours_NKB[n, :real].tolist() == log.behaviours[rows].tolist()
        fraction = np.minimum(log.watch_s[rows] / catalog.duration_s_I[log.item_id[rows]], 5)
        np.testing.assert_allclose(batch.watch_fraction_NK[n, :real], fraction, rtol=1e-6)
        np.testing.assert_allclose(batch.time_s_NK[n, :real], log.timestamp_s[rows] - start_s, atol=1e-6)
        assert batch.request_NK[n, :real].tolist() == requests
        past = batch.histories.rows(slice(n, n + 1))
        assert past.item_ids_UT[past.mask_UT].tolist() == log.item_id[before[-6:]].tolist()
        assert past.gap_s_UT[past.mask_UT].sum().item() == pytest.approx(
            start_s - log.timestamp_s[before[-6:][0]] if before else 0, rel=1e-5
        )
    assert (batch.time_s_NK >= 0).all() and not batch.item_ids_NK[~batch.mask_NK].any()


def test_columns_are_the_batch_again_and_trimming_takes_padding_alone(world):
    rows = ranking_requests(*world, 6, 10).rows(np.array([3, 5]))
    batch = rows.batch.trimmed()
    assert batch.item_ids_NK.shape[1] == int(rows.batch.mask_NK.sum(1).max())
    again = RankingBatch.of_columns(batch.columns())
    assert all(torch.equal(value, batch.columns()[name]) for name, value in again.columns().items())


def test_what_cannot_be_ranked_is_refused(world):
    log, catalog = world
    with pytest.raises(ValueError, match="max_candidates=0 must be at least 1"):
        ranking_requests(log, catalog, 6, 0)
    with pytest.raises(ValueError, match="window_s=0 must be above 0"):
        ranking_windows(log, catalog, 6, 4, 0)

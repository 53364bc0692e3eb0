"""Users who behave as in a table with rows of user, item and the share of the item they watch, as in KuaiRec.

Each simulated user is one of the table's users, drawn by their seed. Pairs that are missing in the table get the item's
mean. The feedback depends on the share watched: half is a click, 90% a long view, more than all of it a like. A user
leaves when their time is used up or after two skipped items in a row, and returns sooner if they watched more.

`feedgym check examples.table_users:TableUsers` tests it; `make("examples/Table-v0", path="my_table.csv")` takes yours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

import feedgym
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS
from feedgym.envs import luck
from feedgym.protocols import Response, checked_slates

VISIT_S = 120.0
"""Longest visit in seconds."""


def invented_table(num_users: int = 60, num_items: int = 90, seed: int = 0) -> pd.DataFrame:
    """A table for trying the example: tastes of rank 3, and a third of the pairs."""
    rng = np.random.default_rng(seed)
    ratio_UI = np.exp(rng.normal(size=(num_users, 3)) @ rng.normal(size=(3, num_items)) / 2 - 1)
    user, item = np.nonzero(rng.random(ratio_UI.shape) < 1 / 3)
    duration_s_I = rng.uniform(5, 60, num_items)
    return pd.DataFrame(
        {"user": user, "item": item, "watch_ratio": ratio_UI[user, item], "duration_s": duration_s_I[item]}
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TableState:
    """The columns of every state; ``profile_UF`` is the user's row of the table."""

    seed_U: np.ndarray
    visit_U: np.ndarray
    time_s_U: np.ndarray
    profile_UF: np.ndarray


class TableUsers:
    """Users of a table.

    Args:
        path: a CSV file with the columns user, item, watch_ratio and duration_s; an invented table if left out.
    """

    profile_names = ("user",)

    def __init__(self, path: str | None = None) -> None:
        table = invented_table() if path is None else pd.read_csv(path)
        ratio = table.pivot_table(index="user", columns="item", values="watch_ratio")
        self.ratio_UI = ratio.fillna(ratio.mean()).to_numpy(np.float32).clip(0, 5)
        self.profile_sizes = (len(ratio),)
        self.duration_s_I = table.groupby("item")["duration_s"].mean().to_numpy(np.float32)
        nothing_I = np.zeros(len(self.duration_s_I), np.int64)
        # Items are similar if the same users watch them: the recommenders' knowledge of them comes from the table too.
        content_IE = np.linalg.svd(self.ratio_UI - self.ratio_UI.mean(axis=0), full_matrices=False)[2].T[:, :8]
        self.catalog = feedgym.Catalog(
            raw_ids_I=ratio.columns.to_numpy(),
            content_IE=content_IE.astype(np.float32),
            topic_I=nothing_I - 1,
            duration_s_I=self.duration_s_I,
            creator_I=nothing_I,
            upload_s_I=nothing_I.astype(np.float64),
        )

    def reset(self, seeds_U: np.ndarray) -> TableState:
        """Users of the table, at some time of the first day."""
        row_U, start_U = luck.draw(luck.traits(seeds_U), 0, np.arange(2)[:, None]).astype(np.float64)
        return TableState(
            seed_U=seeds_U.copy(),
            visit_U=np.zeros(len(seeds_U), np.int64),
            time_s_U=start_U * 86_400,
            profile_UF=(row_U * len(self.ratio_UI)).astype(np.int64)[:, None],
        )

    def respond(self, state: TableState, slates_UK: np.ndarray) -> tuple[Response, TableState]:
        """Responses from the table, with a little noise."""
        slates_UK = checked_slates(slates_UK, len(state.seed_U), len(self.duration_s_I))
        key_U = luck.stream(state.seed_U, state.visit_U)
        noise_UK = luck.draw(key_U[:, None], np.arange(slates_UK.shape[1]), 0)
        ratio_UK = self.ratio_UI[state.profile_UF, slates_UK] * (np.float32(0.8) + np.float32(0.4) * noise_UK)
        wanted_s_UK = ratio_UK * self.duration_s_I[slates_UK]
        skipped_UK = ratio_UK < 0.1
        tired_UK = np.zeros(slates_UK.shape, bool)
        tired_UK[:, 1:] = skipped_UK[:, 1:] & skipped_UK[:, :-1]
        done_UK = tired_UK | (np.cumsum(wanted_s_UK, axis=1) > VISIT_S)
        seen_UK = np.ones(slates_UK.shape, bool)
        seen_UK[:, 1:] = ~np.logical_or.accumulate(done_UK, axis=1)[:, :-1]
        watch_s_UK = wanted_s_UK * seen_UK

        did: dict[str, Any] = {"click": ratio_UK > 0.5, "long_view": ratio_UK > 0.9, "like": ratio_UK > 1}
        behaviours_UKB = np.zeros((*slates_UK.shape, len(BEHAVIOURS)), np.uint8)
        for name, did_UK in did.items():
            behaviours_UKB[..., BEHAVIOUR_IDX[name]] = did_UK & seen_UK
        elapsed_s_U = watch_s_UK.sum(axis=1)
        gap_U, churn_U = luck.draw(key_U, luck.VISIT, np.arange(2)[:, None])
        response = Response(
            behaviours_UKB=behaviours_UKB,
            watch_s_UK=watch_s_UK,
            examined_UK=seen_UK,
            elapsed_s_U=elapsed_s_U,
            left_U=~seen_UK.all(axis=1),
            return_gap_s_U=(luck.exponential(gap_U) * 1e7 / (60 + elapsed_s_U)).astype(np.float32),
            churned_U=churn_U < 0.02,
        )
        next_s_U = state.time_s_U + response.elapsed_s_U + response.return_gap_s_U
        return response, replace(state, visit_U=state.visit_U + 1, time_s_U=next_s_U)


feedgym.register("examples/Table-v0", "examples.table_users:TableUsers", session_length=8)

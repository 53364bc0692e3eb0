"""A tiny user simulator with a hidden mood, by the protocol's book, for tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.envs import luck
from feedgym.protocols import Response


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyState:
    seed_U: NDArray[np.uint64]
    visit_U: NDArray[np.int64]
    time_s_U: NDArray[np.float64]
    profile_UF: NDArray[np.int64]
    mood_U: NDArray[np.float32]


def toy_catalog(num_items: int) -> Catalog:
    rng = np.random.default_rng(0)
    return Catalog(
        raw_ids_I=np.arange(num_items),
        content_IE=rng.normal(size=(num_items, 4)).astype(np.float32),
        topic_I=(np.arange(num_items) % 3).astype(np.int32),
        duration_s_I=rng.uniform(5, 60, num_items).astype(np.float32),
        creator_I=np.zeros(num_items, np.int64),
        upload_s_I=np.zeros(num_items),
    )


class ToyUsers:
    """Users like items by number and mood, and leave at random."""

    profile_names = ("age", "device")
    profile_sizes = (4, 2)

    def __init__(self, num_items: int = 40, churn: float = 0.1) -> None:
        self.catalog = toy_catalog(num_items)
        self.churn = churn
        self.popularity_I = np.arange(num_items, 0, -1).astype(np.float32)

    def reset(self, seeds_U: NDArray[np.uint64]) -> ToyState:
        u_CU = luck.uniform(luck.derive(seeds_U, 0), 0, 0, np.arange(4)[:, None])
        sizes_F1 = np.array(self.profile_sizes)[:, None]
        return ToyState(
            seed_U=seeds_U.copy(),
            visit_U=np.zeros(len(seeds_U), np.int64),
            time_s_U=u_CU[0].astype(np.float64) * 86_400,
            profile_UF=(u_CU[1:3] * sizes_F1).astype(np.int64).T,
            mood_U=u_CU[3],
        )

    def respond(self, state: ToyState, slates_UK: NDArray) -> tuple[Response, ToyState]:
        whole = np.issubdtype(slates_UK.dtype, np.integer) and len(slates_UK) == len(state.seed_U)
        if not whole or slates_UK.min() < 0 or slates_UK.max() >= self.catalog.num_items:
            raise ValueError(
                f"Slates {slates_UK} do not fit; give ids in 0..{self.catalog.num_items - 1}, one row per user."
            )
        key_U = luck.stream(state.seed_U, state.visit_U)
        u_CUK = luck.draw(key_U[:, None], np.arange(slates_UK.shape[1]), np.arange(9)[:, None, None])
        liking_UK = 0.5 * state.mood_U[:, None] + 0.5 * (slates_UK / self.catalog.num_items)
        goes_on_UK = u_CUK[0] < 0.5 + 0.5 * liking_UK
        examined_UK = np.ones(slates_UK.shape, bool)
        examined_UK[:, 1:] = np.logical_and.accumulate(goes_on_UK[:, :-1], axis=1)
        chance_B = np.linspace(0.9, 0.1, len(BEHAVIOURS))[:, None, None]
        behaviours_BUK = (u_CUK[1:8] < chance_B * liking_UK) & examined_UK
        watch_s_UK = (u_CUK[8] * liking_UK * 2 * self.catalog.duration_s_I[slates_UK] * examined_UK).astype(np.float32)
        elapsed_s_U = watch_s_UK.sum(axis=1)
        end_U = luck.draw(key_U, luck.VISIT, np.arange(2)[:, None])
        gap_s_U = (luck.exponential(end_U[0]) * 40_000 * (1.5 - state.mood_U)).astype(np.float32)
        response = Response(
            behaviours_UKB=np.moveaxis(behaviours_BUK, 0, 2).astype(np.uint8),
            watch_s_UK=watch_s_UK,
            examined_UK=examined_UK,
            elapsed_s_U=elapsed_s_U,
            left_U=~examined_UK.all(axis=1),
            return_gap_s_U=gap_s_U,
            churned_U=end_U[1] < self.churn,
        )
        return response, replace(
            state,
            visit_U=state.visit_U + 1,
            time_s_U=state.time_s_U + elapsed_s_U + gap_s_U,
            mood_U=(0.9 * state.mood_U + 0.1 * behaviours_BUK[0].mean(axis=1)).astype(np.float32),
        )

    def ranker_score(self, state: ToyState, items_UC: NDArray) -> NDArray[np.float32]:
        return (3 * state.mood_U[:, None] * items_UC / self.catalog.num_items).astype(np.float32)


def toy_reward(histories, sessions):
    """A reward that is a plain function: the ids of the items, added up."""
    return sessions.item_ids_USK.sum(-1).float()

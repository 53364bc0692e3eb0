"""Your users: replace what is random here by what you know of people.

Every array's name ends in its axes: U users, K items of a session, I items, F profile fields.
"""

from dataclasses import dataclass, replace

import numpy as np

import feedgym
from feedgym.envs import luck
from feedgym.protocols import Response, checked_slates


@dataclass(frozen=True, kw_only=True, eq=False)
class TeenState:
    """The four columns that every state must have, one row per user."""

    seed_U: np.ndarray
    visit_U: np.ndarray
    time_s_U: np.ndarray
    profile_UF: np.ndarray


class Teens:
    """Users who examine all items, click mostly on items they like, and return a day later.

    Args:
        num_items: items of the catalogue.
    """

    profile_names, profile_sizes = ("likes_odd",), (2,)

    def __init__(self, num_items: int = 100) -> None:
        item_I = np.arange(num_items)
        self.catalog = feedgym.Catalog(
            raw_ids_I=item_I,
            content_IE=np.eye(2, dtype=np.float32)[item_I % 2],
            topic_I=item_I % 2,
            duration_s_I=np.full(num_items, 10.0, np.float32),
            creator_I=item_I,
            upload_s_I=np.zeros(num_items),
        )

    def reset(self, seeds_U: np.ndarray) -> TeenState:
        """One fresh user per seed."""
        likes_odd_U = luck.draw(luck.traits(seeds_U), 0, 0) < 0.5
        zero_U = np.zeros(len(seeds_U), np.int64)
        profile_UF = likes_odd_U.astype(np.int64)[:, None]
        return TeenState(seed_U=seeds_U.copy(), visit_U=zero_U, time_s_U=zero_U.astype(float), profile_UF=profile_UF)

    def respond(self, state: TeenState, slates_UK: np.ndarray) -> tuple[Response, TeenState]:
        """Responses to one session of K items per user, and the users at their next visit."""
        slates_UK = checked_slates(slates_UK, len(state.seed_U), self.catalog.num_items)
        visit_key_U = luck.stream(state.seed_U, state.visit_U)
        uniform_UK = luck.draw(visit_key_U[:, None], np.arange(slates_UK.shape[1]), 0)
        click_UK = uniform_UK < np.where(slates_UK % 2 == state.profile_UF, 0.8, 0.2)
        behaviours_UKB = np.zeros((*slates_UK.shape, 7), np.uint8)
        behaviours_UKB[..., 0] = click_UK
        watch_s_UK = np.where(click_UK, 10, 1).astype(np.float32)
        response = Response(
            behaviours_UKB=behaviours_UKB,
            watch_s_UK=watch_s_UK,
            examined_UK=np.ones(slates_UK.shape, bool),
            elapsed_s_U=watch_s_UK.sum(axis=1),
            left_U=np.zeros(len(slates_UK), bool),
            return_gap_s_U=np.full(len(slates_UK), 86_400, np.float32),
            churned_U=np.zeros(len(slates_UK), bool),
        )
        next_s_U = state.time_s_U + response.elapsed_s_U + response.return_gap_s_U
        return response, replace(state, visit_U=state.visit_U + 1, time_s_U=next_s_U)

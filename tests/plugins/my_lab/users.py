"""Users who like either the even or the odd items, and tire of what they see."""

from dataclasses import dataclass, replace

import numpy as np

import feedgym
from feedgym.envs import luck
from feedgym.protocols import Response, checked_slates


@dataclass(frozen=True, kw_only=True)
class UsersConfig:
    """Who they are."""

    num_items: int = 60
    """Items of the catalogue."""
    taste: float = 0.8
    """Probability of a click on an item that a user likes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UsersState:
    """One row per user."""

    seed_U: np.ndarray
    visit_U: np.ndarray
    time_s_U: np.ndarray
    profile_UF: np.ndarray


class Users:
    """They examine everything, click mostly what they like, and come back a day later."""

    Config = UsersConfig
    profile_names, profile_sizes = ("likes_odd",), (2,)

    def __init__(self, config: UsersConfig = UsersConfig()) -> None:
        self.config = config
        item_I = np.arange(config.num_items)
        noise_I2 = np.random.default_rng(0).normal(size=(config.num_items, 6)).astype(np.float32)
        self.catalog = feedgym.Catalog(
            raw_ids_I=item_I,
            content_IE=np.concatenate([np.eye(2, dtype=np.float32)[item_I % 2], 0.3 * noise_I2], axis=1),
            topic_I=item_I % 2,
            duration_s_I=np.full(config.num_items, 10.0, np.float32),
            creator_I=item_I,
            upload_s_I=np.zeros(config.num_items),
        )

    def reset(self, seeds_U):
        likes_odd_U = luck.draw(luck.traits(seeds_U), 0, 0) < 0.5
        zero_U = np.zeros(len(seeds_U), np.int64)
        profile_UF = likes_odd_U.astype(np.int64)[:, None]
        return UsersState(seed_U=seeds_U.copy(), visit_U=zero_U, time_s_U=zero_U.astype(float), profile_UF=profile_UF)

    def respond(self, state, slates_UK):
        slates_UK = checked_slates(slates_UK, len(state.seed_U), self.catalog.num_items)
        key_U = luck.stream(state.seed_U, state.visit_U)
        uniform_UK = luck.draw(key_U[:, None], np.arange(slates_UK.shape[1]), 0)
        liked_UK = slates_UK % 2 == state.profile_UF
        click_UK = uniform_UK < np.where(liked_UK, self.config.taste, 0.2)
        behaviours_UKB = np.zeros((*slates_UK.shape, 7), np.uint8)
        behaviours_UKB[..., 0] = click_UK
        watch_s_UK = np.where(click_UK, 10, 1).astype(np.float32)
        num_users = len(slates_UK)
        response = Response(
            behaviours_UKB=behaviours_UKB,
            watch_s_UK=watch_s_UK,
            examined_UK=np.ones(slates_UK.shape, bool),
            elapsed_s_U=watch_s_UK.sum(axis=1),
            left_U=np.zeros(num_users, bool),
            return_gap_s_U=np.full(num_users, 86_400, np.float32),
            churned_U=np.zeros(num_users, bool),
        )
        next_s_U = state.time_s_U + response.elapsed_s_U + response.return_gap_s_U
        return response, replace(state, visit_U=state.visit_U + 1, time_s_U=next_s_U)

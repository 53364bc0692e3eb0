"""Users from scratch: teens who love one topic, skip the rest, and come back sooner if they enjoyed the visit.

A simulator is one class with a catalogue, ``reset`` (one fresh user per seed) and ``respond`` (one session per user).
Array names end in the letters of their axes: U users, K items of a session, I items, B behaviours, F profile fields;
``_s`` means seconds. The shorter ``minimal_users.py`` has only what every simulator must have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np

import feedgym
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, DAY_S
from feedgym.envs import luck
from feedgym.protocols import Response, checked_slates

NUM_TOPICS = 5
NUM_YEARS = 6

# One number per purpose: random numbers of the same user, visit and position differ only by these channels.
YEAR, LOVED_TOPIC, START = 0, 1, 2  # drawn once, when a user is made
STAY, LIKE = 0, 1  # drawn per item of a visit
GAP, CHURN = 0, 1  # drawn once per visit


@dataclass(frozen=True, kw_only=True, eq=False)
class TeenState:
    """The teens at the beginning of a visit, one row per user. Every state must have the first four columns."""

    seed_U: np.ndarray
    visit_U: np.ndarray
    time_s_U: np.ndarray
    profile_UF: np.ndarray  # what a recommender may know about the user
    loved_topic_U: np.ndarray  # hidden: columns of your own are never shown to a recommender


class Teens:
    """Teens who click items of their loved topic, and may leave after every item.

    Args:
        num_items: items of the catalogue, with alternating topics.
    """

    profile_names = ("school_year",)
    profile_sizes = (NUM_YEARS,)

    def __init__(self, num_items: int = 200) -> None:
        item_ids_I = np.arange(num_items)
        topic_I = item_ids_I % NUM_TOPICS
        self.catalog = feedgym.Catalog(
            raw_ids_I=item_ids_I,
            content_IE=np.eye(NUM_TOPICS, dtype=np.float32)[topic_I],  # what models see of an item: its topic
            topic_I=topic_I,
            duration_s_I=np.full(num_items, 20.0, np.float32),
            creator_I=item_ids_I,
            upload_s_I=np.zeros(num_items),
        )

    def reset(self, seeds_U: np.ndarray) -> TeenState:
        """Fresh teens, each made only from their own seed, so that they are the same in every batch."""
        traits_U = luck.traits(seeds_U)
        year_U = luck.draw(traits_U, 0, YEAR) * NUM_YEARS
        loved_topic_U = luck.draw(traits_U, 0, LOVED_TOPIC) * NUM_TOPICS
        return TeenState(
            seed_U=seeds_U.copy(),
            visit_U=np.zeros(len(seeds_U), np.int64),
            time_s_U=luck.draw(traits_U, 0, START).astype(np.float64) * DAY_S,
            profile_UF=year_U.astype(np.int64)[:, None],
            loved_topic_U=loved_topic_U.astype(np.int64),
        )

    def respond(self, state: TeenState, slates_UK: np.ndarray) -> tuple[Response, TeenState]:
        """Responses of the teens to one session each, and the teens at their next visit."""
        num_users, num_items = len(state.seed_U), self.catalog.num_items
        slates_UK = checked_slates(slates_UK, num_users, num_items)  # refuses unknown items and wrong shapes
        position_K = np.arange(slates_UK.shape[1])

        # Everything random comes from the user's own seed and the visit: no global generator, no order of users.
        key_U = luck.stream(state.seed_U, state.visit_U)
        stay_luck_UK = luck.draw(key_U[:, None], position_K, STAY)
        like_luck_UK = luck.draw(key_U[:, None], position_K, LIKE)
        gap_luck_U = luck.draw(key_U, luck.VISIT, GAP)
        churn_luck_U = luck.draw(key_U, luck.VISIT, CHURN)

        # A user who examines an item has examined the first one and stayed at every item since.
        loved_UK = self.catalog.topic_I[slates_UK] == state.loved_topic_U[:, None]
        stays_UK = stay_luck_UK < np.where(loved_UK, 0.95, 0.7)
        examined_UK = np.ones(slates_UK.shape, bool)
        examined_UK[:, 1:] = np.logical_and.accumulate(stays_UK[:, :-1], axis=1)

        # Behaviours that you do not model remain 0. Nothing happens to items that were not examined.
        clicked_UK = examined_UK & loved_UK
        behaviours_UKB = np.zeros((*slates_UK.shape, len(BEHAVIOURS)), np.uint8)
        behaviours_UKB[..., BEHAVIOUR_IDX["click"]] = clicked_UK
        behaviours_UKB[..., BEHAVIOUR_IDX["long_view"]] = clicked_UK
        behaviours_UKB[..., BEHAVIOUR_IDX["like"]] = clicked_UK & (like_luck_UK < 0.2)

        # A loved item is watched to its end, any other for two seconds.
        watch_s_UK = (examined_UK * np.where(loved_UK, 20, 2)).astype(np.float32)
        elapsed_s_U = watch_s_UK.sum(axis=1)

        # About two days until the next visit, and less with every click.
        num_clicks_U = clicked_UK.sum(axis=1, dtype=np.float32)
        return_gap_s_U = luck.exponential(gap_luck_U) * np.float32(2e5) / (1 + num_clicks_U)

        response = Response(
            behaviours_UKB=behaviours_UKB,
            watch_s_UK=watch_s_UK,
            examined_UK=examined_UK,
            elapsed_s_U=elapsed_s_U,
            left_U=~examined_UK.all(axis=1),
            return_gap_s_U=return_gap_s_U,
            churned_U=churn_luck_U < 0.02,
        )
        next_state = replace(state, visit_U=state.visit_U + 1, time_s_U=state.time_s_U + elapsed_s_U + return_gap_s_U)
        return response, next_state


# An id turns the users into an environment for everyone who imports this module.
feedgym.register("examples/Teens-v0", "examples.own_users:Teens", session_length=6, history_length=20)

if __name__ == "__main__":
    env = gym.make_vec("examples/Teens-v0", 1000, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    _, reward_U, *_ = env.step(env.action_space.sample())
    print("Mean reward per visit:", reward_U.mean())

"""Users from scratch: teens who love one topic, skip the rest, and come back soon when they were pleased."""

from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np

import feedgym
from feedgym.envs import luck
from feedgym.protocols import Response, checked_slates

feedgym.register("examples/Teens-v0", "examples.own_users:Teens", session_length=6, history_length=20)


@dataclass(frozen=True, kw_only=True, eq=False)
class TeenState:  # noqa: D101
    seed_U: np.ndarray
    visit_U: np.ndarray
    time_s_U: np.ndarray
    profile_UF: np.ndarray
    loved_U: np.ndarray  # hidden: nothing but the columns above is ever shown


class Teens:  # noqa: D101
    profile_names, profile_sizes = ("school_year",), (6,)

    def __init__(self, num_items: int = 200) -> None:
        ids_I, topic_I, zero_I = np.arange(num_items), np.arange(num_items) % 5, np.zeros(num_items)
        item = dict(raw_ids_I=ids_I, content_IE=np.eye(5)[topic_I], topic_I=topic_I, creator_I=ids_I)
        self.catalog = feedgym.Catalog(**item, duration_s_I=zero_I + 20, upload_s_I=zero_I)

    def reset(self, seeds_U):  # noqa: D102
        year_U, loved_U, start_U = luck.draw(luck.traits(seeds_U), 0, np.arange(3)[:, None]).astype(float)
        shown = dict(profile_UF=(year_U[:, None] * 6).astype(int), time_s_U=start_U * 86_400)
        return TeenState(seed_U=seeds_U.copy(), visit_U=np.zeros(len(seeds_U), int), loved_U=loved_U * 5 // 1, **shown)

    def respond(self, state, slates_UK):  # noqa: D102
        topic_UK = self.catalog.topic_I[checked_slates(slates_UK, len(state.seed_U), self.catalog.num_items)]
        loved_UK, key_U = topic_UK == state.loved_U[:, None], luck.stream(state.seed_U, state.visit_U)
        stay_UK, like_UK = luck.draw(key_U[:, None], np.arange(topic_UK.shape[1]), np.arange(2)[:, None, None])
        stays_UK = np.insert(stay_UK < np.where(loved_UK, 0.95, 0.7), 0, True, axis=1)[:, :-1]
        seen_UK = np.logical_and.accumulate(stays_UK, axis=1)  # they look at an item if they stayed at all before it
        did_UKB = np.zeros((*topic_UK.shape, 7), np.uint8)  # click, long view, like, follow, comment, forward, hate
        did_UKB[..., :2] = (seen_UK & loved_UK)[..., None]
        did_UKB[..., 2] = did_UKB[..., 0] & (like_UK < 0.2)
        watch_s_UK = (seen_UK * np.where(loved_UK, 20, 2)).astype(np.float32)
        gap_U, churn_U = luck.draw(key_U, luck.VISIT, np.arange(2)[:, None])
        gap_s_U = luck.exponential(gap_U) * np.float32(2e5) / (1 + did_UKB[..., 0].sum(axis=1, dtype=np.float32))
        items = dict(behaviours_UKB=did_UKB, watch_s_UK=watch_s_UK, examined_UK=seen_UK, left_U=~seen_UK.all(axis=1))
        end = dict(elapsed_s_U=watch_s_UK.sum(axis=1), return_gap_s_U=gap_s_U, churned_U=churn_U < 0.02)
        next_s_U = state.time_s_U + end["elapsed_s_U"] + gap_s_U
        return Response(**items, **end), replace(state, visit_U=state.visit_U + 1, time_s_U=next_s_U)


if __name__ == "__main__":
    env = gym.make_vec("examples/Teens-v0", 1000, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    print("Mean reward of a visit:", env.step(env.action_space.sample())[1].mean())

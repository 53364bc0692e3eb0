import os
import signal

import pytest
import torch

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.experiments.rollouts import RolloutConfig, Rollouts

NUM_ITEMS, K, USERS = 50, 4, 22


class Agent:
    """Samples different items by a softmax over a random user-item matrix: enough work to notice another order."""

    session_length = K

    def __init__(self, weight=1.0):
        self.taste_FI = torch.randn(3, NUM_ITEMS, generator=torch.Generator().manual_seed(0)) * weight

    def sample(self, histories, n, generator):
        logits_UI = histories.profile_UF.float() @ self.taste_FI
        noise_UNI = -torch.empty(len(histories), n, NUM_ITEMS).exponential_(generator=generator).log()
        items = (logits_UI[:, None] + noise_UNI).topk(K).indices
        return SessionBatch(item_ids_USK=items, logp_US=items[..., 0].float())

    def recommend(self, histories):
        return self.sample(histories, 1, torch.Generator().manual_seed(0))


class Reward:
    def __call__(self, histories, sessions):
        return sessions.item_ids_USK.float().mean(dim=-1) + histories.profile_UF[:, :1]


class MurderousReward(Reward):
    """Kills its own actor the first time it meets user 7."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, histories, sessions):
        if (histories.profile_UF[:, 0] == 7).any() and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(histories, sessions)


@pytest.fixture(scope="module")
def histories():
    return EventBatch(
        item_ids_UT=torch.zeros(USERS, 2, dtype=torch.long),
        behaviours_UTB=torch.zeros(USERS, 2, 7),
        watch_fraction_UT=torch.zeros(USERS, 2),
        gap_s_UT=torch.zeros(USERS, 2),
        mask_UT=torch.zeros(USERS, 2, dtype=torch.bool),
        profile_UF=torch.arange(USERS)[:, None] % 11 + torch.arange(3),
        time_of_day_U=torch.zeros(USERS),
    )


def rollout(histories, reward, agent=None, ray="local", **options):
    with Rollouts(RolloutConfig(users_per_task=4, **options), ray) as rollouts:
        agents = [agent or Agent()] if not isinstance(agent, list) else agent
        return [rollouts(a, reward, histories, 16, (3, 1)) for a in agents]


@pytest.fixture(scope="module")
def in_process(histories):
    return rollout(histories, Reward(), agent=[Agent(), Agent(0.1)], ray="off")


def same(left, right):
    (sessions, scores), (other_sessions, other_scores) = left, right
    return torch.equal(sessions.item_ids_USK, other_sessions.item_ids_USK) and torch.equal(scores, other_scores)


@pytest.mark.parametrize("num_actors", [1, 2])
def test_the_number_of_actors_changes_nothing_even_when_the_agent_changes(histories, in_process, num_actors):
    answers = rollout(histories, Reward(), agent=[Agent(), Agent(0.1)], num_actors=num_actors)
    assert all(same(answer, expected) for answer, expected in zip(answers, in_process, strict=True))
    assert not same(*in_process)


def test_a_killed_actor_loses_nothing(histories, in_process, tmp_path):
    (answer,) = rollout(histories, MurderousReward(tmp_path / "killed"), num_actors=2)
    assert (tmp_path / "killed").exists()
    assert same(answer, in_process[0])


def test_another_seed_gives_other_sessions_and_progress_is_told(histories, in_process):
    heard = []
    with Rollouts(RolloutConfig(users_per_task=4), ray="off") as rollouts:
        answer = rollouts(
            Agent(), Reward(), histories, 16, (3, 2), step=lambda done, total: heard.append((done, total))
        )
    assert not same(answer, in_process[0])
    assert heard == [(done, 6) for done in range(1, 7)]


def test_an_address_where_no_cluster_answers_is_said_in_one_line(histories):
    with pytest.raises(ValueError, match=r"No Ray cluster answers at '127.0.0.1:1'"):
        rollout(histories, Reward(), ray="127.0.0.1:1")

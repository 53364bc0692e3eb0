import os
import signal
import sys
from colorsys import rgb_to_hls

import pytest
import torch

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.experiments.rollouts import RolloutConfig, Rollouts, ray_running

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


def some_histories():
    return EventBatch(
        item_ids_UT=torch.zeros(USERS, 2, dtype=torch.long),
        behaviours_UTB=torch.zeros(USERS, 2, 7),
        watch_fraction_UT=torch.zeros(USERS, 2),
        gap_s_UT=torch.zeros(USERS, 2),
        mask_UT=torch.zeros(USERS, 2, dtype=torch.bool),
        profile_UF=torch.arange(USERS)[:, None] % 11 + torch.arange(3),
        time_of_day_U=torch.zeros(USERS),
    )


@pytest.fixture(scope="module")
def histories():
    return some_histories()


def rollout(histories, reward, agent=None, ray="local", **options):
    with Rollouts(RolloutConfig(users_per_task=4, **options), ray) as rollouts:
        agents = [agent or Agent()] if not isinstance(agent, list) else agent
        return [rollouts(a, reward, histories, 16, (3, 1)) for a in agents]


@pytest.fixture(scope="module")
def in_process(histories):
    return rollout(histories, Reward(), agent=[Agent(), Agent(0.1)], ray="off")


@pytest.fixture(scope="module")
def running():
    """One Ray for all tests that do not ask how it starts, which takes longer than their work."""
    with ray_running() as ray:
        yield ray


def imported(name):
    return name in sys.modules


@pytest.fixture(scope="module", params=[1, 2])
def actors(running, request):
    """A pool of so many actors, started ahead; any that is lost has another in its place afterwards."""
    with Rollouts(RolloutConfig(users_per_task=4, num_actors=request.param)) as workers:
        workers.start(rgb_to_hls)
        assert all(workers.map(imported, (), [("colorsys",)] * 2)), "actors import what the first call needs"
        yield workers


def same(left, right):
    (sessions, scores), (other_sessions, other_scores) = left, right
    return torch.equal(sessions.item_ids_USK, other_sessions.item_ids_USK) and torch.equal(scores, other_scores)


def test_the_number_of_actors_changes_nothing_even_when_the_agent_changes(histories, in_process, actors):
    answers = [actors(agent, Reward(), histories, 16, (3, 1)) for agent in (Agent(), Agent(0.1))]
    assert all(same(answer, expected) for answer, expected in zip(answers, in_process, strict=True))
    assert not same(*in_process)


def test_a_killed_actor_loses_nothing(histories, in_process, actors, tmp_path):
    answer = actors(Agent(), MurderousReward(tmp_path / "killed"), histories, 16, (3, 1))
    assert (tmp_path / "killed").exists()
    assert same(answer, in_process[0])


def seconds(unit, number):
    return unit * number, torch.get_num_threads()


def check_any_work(workers):
    heard = []
    answers = workers.map(seconds, (60,), [(number,) for number in range(5)], lambda *told: heard.append(told))
    assert answers == [(60 * number, 1) for number in range(5)]
    assert heard == [(done, 5) for done in range(1, 6)]


def test_any_work_comes_back_in_order_from_one_thread_each(actors):
    check_any_work(actors)
    check_any_work(Rollouts(RolloutConfig(), "off"))


def test_another_seed_gives_other_sessions_and_progress_is_told(histories, in_process):
    heard = []
    with Rollouts(RolloutConfig(users_per_task=4), ray="off") as rollouts:
        answer = rollouts(
            Agent(), Reward(), histories, 16, (3, 2), step=lambda done, total: heard.append((done, total))
        )
    assert not same(answer, in_process[0])
    assert heard == [(done, 6) for done in range(1, 7)]


def test_a_device_takes_a_share_of_a_gpu_and_is_refused_where_there_is_none(monkeypatch):
    with pytest.raises(ValueError, match="does nothing with device=cpu"):
        RolloutConfig(gpus_per_actor=0.5)
    config = RolloutConfig(device="cuda", gpus_per_actor=0.5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no GPU"):
        Rollouts(config, "local")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"set rollouts.gpus_per_actor"):
        Rollouts(RolloutConfig(device="cuda"), "local")
    with Rollouts(config, "off") as workers:
        assert workers.map(place_of, (Placed(),), [(7,)]) == [("cuda", 7)]


class Placed:
    device = "cpu"

    def to(self, device):
        moved = Placed()
        moved.device = device
        return moved


def place_of(agent, number):
    return agent.device, number


def test_an_address_where_no_cluster_answers_is_said_in_one_line(histories):
    with pytest.raises(ValueError, match=r"No Ray cluster answers at '127.0.0.1:1'"):
        rollout(histories, Reward(), ray="127.0.0.1:1")


def recommenders():
    """Agents that decode in different ways, with large weights."""
    from toy_agents import toy_model, toy_tokenizer

    from feedgym.agents.hstu import HSTU, HSTUConfig, HSTURecommender
    from feedgym.agents.session_model import SessionRecommender
    from feedgym.agents.tiger import Tiger, TigerConfig

    sizes = dict(num_heads=2, session_length=3, history_length=6, profile_sizes=(3, 2))
    torch.manual_seed(0)
    tiger = Tiger.from_tokenizer(toy_tokenizer(), TigerConfig(d_model=16, d_ff=24, head_width=8, **sizes))
    hstu = HSTU(HSTUConfig(d_model=16, num_items=6, **sizes))
    for parameter in (*tiger.parameters(), *hstu.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    yield SessionRecommender(toy_model(d_model=16, d_ff=24), toy_tokenizer())
    yield SessionRecommender(tiger, toy_tokenizer())
    yield HSTURecommender(hstu)


def test_products_in_bfloat16_leave_log_probabilities_in_float32_and_close():
    from toy_agents import toy_histories

    from feedgym.agents.generation import score_sessions

    histories = toy_histories(6)
    for agent in recommenders():
        with Rollouts(RolloutConfig(users_per_task=4, dtype="bfloat16"), "off") as workers:
            sessions, _ = workers(agent, lambda _, sessions: sessions.logp_US.bfloat16(), histories, 8, (0,))
            scores = workers(agent, lambda _, sessions: sessions.logp_US, histories, 8, (0,))[1]
        exact = score_sessions(agent.model, agent.trie, histories, sessions.item_ids_USK)
        for name in ("logp_US", "logp_legal_US", "logp_allowed_US", "logp_drawn_US"):
            assert getattr(sessions, name).dtype == torch.float32
        assert scores.dtype == torch.float32 and torch.equal(scores, sessions.logp_US)
        away_US = (sessions.logp_US - exact.logp_US).abs()
        assert 1e-4 < away_US.median() < 0.1 and away_US.max() < 2  # rounding may choose another expert

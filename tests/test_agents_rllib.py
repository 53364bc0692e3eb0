import json

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium.vector import AutoresetMode
from toy_agents import toy_histories
from toy_users import ToyUsers

import feedgym
from feedgym.agents.check import check_recommender
from feedgym.agents.plackett_luce import PlackettLuce
from feedgym.agents.rl_recommender import RLlibRecommender
from feedgym.agents.rl_settings import TrainConfig
from feedgym.agents.rllib.checkpoints import _joined, _split
from feedgym.agents.rllib.feeds import TrainingFeed, TrainingItems, make_env, write_rows
from feedgym.agents.rllib.modules import (
    MODULE_OF,
    NoCatalog,
    SACModule,
    SlateDistribution,
    SlatePolicyModule,
    explored,
)
from feedgym.agents.rllib.task import Task
from feedgym.agents.rllib.training import train
from feedgym.agents.slates.layers import SlateNetConfig
from feedgym.agents.slates.proto import ProtoPolicy
from feedgym.agents.slates.world import flat_observation, read_histories
from feedgym.envs.feed import FeedVectorEnv, event_batch
from feedgym.envs.logging import collect_log
from feedgym.envs.recorder import transitions
from feedgym.envs.registration import ENVIRONMENTS
from feedgym.experiments.rollouts import ray_running

ITEMS, K, T = 15, 3, 6
SIZES = SlateNetConfig(width=8, heads=2, hidden=16)
FEW = {"iterations": 1, "num_envs": 4, "steps": 32, "batch_size": 16, "epochs": 1, "checkpoints": 1}
feedgym.register("toys/Users-v0", "toy_users:ToyUsers", session_length=K, history_length=T, horizon=5)


def task(env_id="toys/Users-v0", **options):
    return Task.of(env_id, {"num_items": ITEMS, **options} if env_id == "toys/Users-v0" else options, SIZES, axes=2)


@pytest.fixture(scope="module")
def ray():
    with ray_running() as running:
        yield running


# ---------------------------------------------------------------- without Ray


def test_the_distribution_is_plackett_luce_for_rllib():
    kind = SlateDistribution.of(lambda inputs: 2 * inputs, K)
    inputs_UI = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    slates = PlackettLuce(2 * inputs_UI, K)
    found = kind.from_logits(inputs_UI)
    slates_UK = found.sample()
    torch.testing.assert_close(found.logp(slates_UK.float()), slates.log_prob(slates_UK))
    assert torch.equal(found.to_deterministic().sample(), slates.mode())
    drawn_SUK, logp_SU = found.sample(sample_shape=(4,), return_logp=True)
    assert drawn_SUK.shape == (4, 5, K) and logp_SU.shape == (4, 5)
    torch.testing.assert_close(logp_SU[2], slates.log_prob(drawn_SUK[2]))
    assert float(found.kl(kind.from_logits(inputs_UI)).abs().max()) < 1e-5
    assert ((found.entropy() >= 0) & (found.entropy() <= np.log(8 * 7 * 6) + 1e-5)).all()


def test_explored_slates_hold_no_item_twice_and_keep_what_is_not_explored():
    torch.manual_seed(0)
    best_UK = torch.stack([torch.randperm(9)[:4] for _ in range(2000)])
    assert torch.equal(explored(best_UK, 9, 0.0), best_UK)
    for chance in (0.3, 1.0):
        slates_UK = explored(best_UK, 9, chance)
        assert all(len(set(slate)) == 4 for slate in slates_UK.tolist())
    item_I = torch.bincount(explored(torch.zeros_like(best_UK) + torch.arange(4), 9, 1.0).flatten(), minlength=9)
    assert (item_I.float() / item_I.sum() - 1 / 9).abs().max() < 0.02
    kept = (explored(best_UK, 9, 0.3)[:, :, None] == best_UK[:, None]).any(2).float().mean()
    assert 0.7 < float(kept) < 0.9  # replaced ones come back by chance


def test_training_feeds_show_the_feed_flat_without_infos():
    feed = FeedVectorEnv(3, ToyUsers(ITEMS), session_length=K, history_length=T, horizon=5)
    env = TrainingFeed(FeedVectorEnv(3, ToyUsers(ITEMS), session_length=K, history_length=T, horizon=5))
    plain, _ = feed.reset(seed=1)
    flat, info = env.reset(seed=1)
    for _ in range(12):
        assert np.array_equal(flat, flat_observation(plain)) and info == {} and flat in env.observation_space
        slates_UK = np.tile(np.arange(K), (3, 1))
        plain, *expected, _ = feed.step(slates_UK)
        flat, *found, info = env.step(slates_UK)
        for one, two in zip(expected, found, strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize(("algorithm", "each"), [("sac", False), ("cql", True)])
def test_proto_items_are_actions(algorithm, each):
    config = TrainConfig(algorithm=algorithm, proto_each=each)
    env = make_env(task(), config, {"num_envs": 2})
    env.reset(seed=0)
    observation, reward_U, *_ = env.step(env.action_space.sample())
    assert observation.shape == (2, 11 * T + 3) and np.isfinite(reward_U).all()
    assert env.single_action_space.shape == ((K if each else 1) * 2,)


def test_items_are_placed_one_by_one_with_the_session_so_far_in_sight():
    env = make_env(task(), TrainConfig(algorithm="dqn"), {"num_envs": 2})
    assert isinstance(env, TrainingItems)
    observation_UX, _ = env.reset(seed=0)
    assert observation_UX[:, -K:].tolist() == [[-1] * K] * 2
    observation_UX, reward_U, *_, info = env.step(np.array([4, 5]))
    assert observation_UX[:, -K:].tolist() == [[4, -1, -1], [5, -1, -1]] and not reward_U.any() and info == {}


@pytest.mark.parametrize("length", [1, 2, 3])
def test_item_by_item_new_users_keep_step_and_their_histories_begin_anew(length):
    users, visits = 6, 4
    feed = FeedVectorEnv(
        users, ToyUsers(ITEMS), session_length=length, history_length=T, horizon=visits,
        autoreset_mode=AutoresetMode.DISABLED,
    )  # fmt: skip
    env, rng = TrainingItems(feed), np.random.default_rng(0)
    observation_UX, _ = env.reset(seed=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    over_U, met_U = np.zeros(users, bool), np.zeros(users, int)
    for step in range(40):
        before_UX = observation_UX
        observation_UX, reward_U, terminated_U, truncated_U, _ = env.step(rng.integers(ITEMS, size=users))
        assert observation_UX in env.observation_space
        placed_U = (observation_UX[:, -length:] >= 0).sum(axis=1)
        assert (placed_U == (step + 1) % length).all()
        seen_U = read_histories(torch.from_numpy(observation_UX[:, :-length]), T).mask_UT.sum(1).numpy()
        assert not reward_U[over_U].any() and not (terminated_U | truncated_U)[over_U].any()
        assert (seen_U[over_U] <= (1 if length == 1 else 0)).all()
        if length > 1 and (step + 1) % length:
            same_U = ~over_U
            assert np.array_equal(before_UX[same_U, :-length], observation_UX[same_U, :-length])
        over_U = terminated_U | truncated_U
        met_U += over_U
    assert (met_U >= 2).all()


FRESH = {"session_length": K, "history_length": T, "num_items": 40, "arrivals_a_day": 2.0, "arrival_days": 10.0}
"""A small feed in which half of the items arrive over the first ten days."""


def fresh():
    return task("feedgym/ShortVideoFresh-v1", **FRESH, lifetime_days=0.0)


def test_flat_observations_tell_the_time_to_the_microsecond_where_items_come_and_go():
    here = fresh()
    observation, _ = here.feed(4).reset(seed=0)
    later_s = np.array([0.0, 1 / 3, 3e7 + 0.1, 9e9 + 0.7]).reshape(observation["time_s"].shape)
    observation["time_s"] = observation["time_s"] + later_s
    time_s_U = observation["time_s"].reshape(-1)
    assert here.world.dated and not task().world.dated
    network, flat = here.network(TrainConfig()), torch.from_numpy(flat_observation(observation))
    for histories in (network.read(flat), network.read({n: torch.from_numpy(c) for n, c in observation.items()})):
        np.testing.assert_allclose(histories.time_s_U, time_s_U, rtol=0, atol=1e-4)
        np.testing.assert_allclose(histories.time_s_U[:3], time_s_U[:3], rtol=0, atol=1e-6)
        np.testing.assert_allclose(network.times(histories).double().sum(1), time_s_U, rtol=0, atol=1e-4)
        assert histories.profile_UF.tolist() == observation["profile"].tolist()


@pytest.mark.parametrize("algorithm", ["ppo", "slateq", "dqn", "sac"])
def test_while_they_train_no_algorithm_chooses_or_explores_what_does_not_exist(algorithm):
    torch.manual_seed(0)
    here, config, served = fresh(), TrainConfig(algorithm=algorithm), []
    feed = here.feed(6, AutoresetMode.DISABLED if algorithm == "dqn" else AutoresetMode.NEXT_STEP)
    step = feed.step

    def watched(slates_UK):
        served.append(here.simulator.catalog.exists(feed.state.time_s_U[:, None], slates_UK).all())
        return step(slates_UK)

    feed.step = watched
    network = here.network(config)
    env = TrainingItems(feed) if algorithm == "dqn" else TrainingFeed(feed, network if algorithm == "sac" else None)
    observation_UX, _ = env.reset(seed=0)
    settings = {"steps_ahead": 10.0, "exploration": [[0, 1.0], [1000, 0.0]], "twin_q": False}
    module = MODULE_OF[algorithm](
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        model_config={"kind": type(network), "world": here.world, "sizes": SIZES, "more": here.more(config)} | settings,
        catalog_class=NoCatalog,
    )
    for t in range(60):
        step_of = {"t": 20 * t} if algorithm in ("slateq", "dqn") else {}
        with torch.no_grad():
            out = module.forward_exploration({"obs": torch.from_numpy(observation_UX)}, **step_of)
        if "actions" not in out:
            out["actions"] = module.action_dist_cls.from_logits(out["action_dist_inputs"]).sample()
        observation_UX, *_ = env.step(np.asarray(out["actions"]))
    assert len(served) >= 20 and all(served)


@pytest.mark.parametrize("algorithm", ["ppo", "slateq", "dqn", "sac"])
def test_a_training_minds_too_few_items_where_a_user_asks_and_not_where_the_last_visit_is_over(algorithm):
    here, config = fresh(), TrainConfig(algorithm=algorithm)
    network = here.network(config)
    feed = here.feed(3, AutoresetMode.DISABLED if algorithm == "dqn" else AutoresetMode.NEXT_STEP)
    env = TrainingItems(feed) if algorithm == "dqn" else TrainingFeed(feed, network if algorithm == "sac" else None)
    env.reset(seed=0)
    items = {"ppo": np.arange(K), "slateq": np.arange(K), "dqn": np.zeros((), int), "sac": np.zeros(2, np.float32)}
    actions = np.tile(items[algorithm], (3, 1)) if algorithm != "dqn" else np.arange(3)
    env._known["time_s"][1] = -1e9  # nothing is uploaded yet
    dated = {name: torch.from_numpy(column) for name, column in env._known.items()}
    histories = network.read(dated)
    exists_UI = network.exists(network.times(histories))
    assert exists_UI[1].all() and not exists_UI[0].all() and not exists_UI[2].all()
    with pytest.raises(ValueError, match="when only 0 exist"):
        env.step(actions)
    with pytest.raises(ValueError, match="when only 0 exist"):
        RLlibRecommender(network).recommend(histories)
    env._over_U = np.array([False, True, False])
    if algorithm != "dqn":
        feed._over_U = env._over_U.copy()
    env.step(actions)


def test_random_items_in_explored_slates_exist():
    exists_UI = torch.rand(200, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    exists_UI[:, :4] = True
    slates_UK = explored(torch.arange(4).repeat(200, 1), 9, 1.0, exists_UI)
    assert exists_UI.gather(1, slates_UK).all() and (slates_UK >= 4).any()
    assert all(len(set(slate)) == 4 for slate in slates_UK.tolist())


def test_rows_hold_the_logs_transitions(tmp_path):
    here = task()
    log = collect_log(here.simulator, num_users=12, num_visits=4, session_length=K, seed=0)
    found = transitions(log, here.simulator.catalog, T, K, here.reward)
    table = pq.read_table(write_rows(found, here, TrainConfig(algorithm="bc"), tmp_path / "rows.parquet")).to_pydict()
    assert np.array_equal(table["actions"], found["actions"]) and np.allclose(table["rewards"], found["rewards"])
    assert np.array_equal(np.array(table["obs"], np.float32), flat_observation(found["observations"]))
    assert np.array_equal(np.array(table["new_obs"], np.float32), flat_observation(found["next_observations"]))
    assert table["terminateds"] == found["terminateds"].tolist() and set(table["module_id"]) == {"default_policy"}
    config = TrainConfig(algorithm="cql", proto_each=True)
    points = pq.read_table(write_rows(found, here, config, tmp_path / "cql.parquet")).to_pydict()["actions"]
    network = here.network(config)
    new = toy_histories(2, num_items=ITEMS, length=T).rows([0] * len(points))
    served_NK = network.items(torch.tensor(points, dtype=torch.float32), K, new).numpy()
    assert np.array_equal(served_NK, found["actions"])


def test_states_of_learners_survive_files_without_pickles():
    state = {"module": {"w": np.arange(3.0)}, "optimiser": {0: {"step": torch.tensor(2), "on": True}}, "list": [1, "x"]}
    tensors = {}
    rest = json.loads(json.dumps(_split(state, "", tensors)))
    again = _joined(rest, tensors)
    assert np.array_equal(again["module"]["w"], state["module"]["w"]) and again["list"] == [1, "x"]
    assert again["optimiser"][0]["step"] == 2 and again["optimiser"][0]["on"] is True


@pytest.mark.parametrize("env_id", ["feedgym/Nothing-v1", "CartPole-v1"])
def test_ids_that_are_no_feeds_are_refused(env_id):
    with pytest.raises(ValueError, match="feed"):
        Task.of(env_id, {}, SIZES)


def test_the_module_reads_the_environments_own_dictionaries():
    here, config = task(), TrainConfig()
    env = gym.make_vec("toys/Users-v0", num_envs=3, vectorization_mode="vector_entry_point", num_items=ITEMS)
    observation, _ = env.reset(seed=0)
    model_config = {"kind": type(here.network(config)), "world": here.world, "sizes": SIZES, "more": {}}
    module = SlatePolicyModule(
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        model_config=model_config | {"steps_ahead": 10.0},
    )
    batch = {"obs": {name: torch.from_numpy(column) for name, column in observation.items()}}
    whole = module.forward_inference(batch)["action_dist_inputs"]
    flat = module.forward_inference({"obs": torch.from_numpy(flat_observation(observation))})["action_dist_inputs"]
    torch.testing.assert_close(whole, flat)
    assert module.compute_values(batch).shape == (3,)


def test_sacs_optimisers_hold_each_weight_once():
    here, config = task(), TrainConfig(algorithm="sac")
    model_config = {"kind": ProtoPolicy, "world": here.world, "sizes": SIZES, "more": here.more(config)}
    env = make_env(here, config, {"num_envs": 2})
    module = SACModule(
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        model_config=model_config | {"twin_q": True},
    )
    groups = [("pi_encoder", "pi"), ("qf_encoder", "qf"), ("qf_twin_encoder", "qf_twin")]
    held = [id(one) for group in groups for name in group for one in getattr(module, name).parameters()]
    assert len(held) == len(set(held))
    assert {id(one) for one in module.net.parameters()} <= set(held)


# ---------------------------------------------------------------- with Ray


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "slateq", "dqn", "sac", "bc", "marwil", "cql"])
def test_every_algorithm_trains_and_leaves_a_recommender(algorithm, ray, tmp_path):
    here, config = task(), TrainConfig(algorithm=algorithm, proto_each=algorithm == "cql", **FEW)
    log = collect_log(here.simulator, num_users=30, num_visits=4, session_length=K, seed=0)
    found = transitions(log, here.simulator.catalog, T, K, here.reward)
    rows = write_rows(found, here, config, tmp_path / "rows.parquet") if algorithm in ("bc", "marwil", "cql") else None
    untrained = here.network(config)
    metrics = []
    network, _ = train(here, config, 0, tmp_path, rows, log=lambda found, iteration: metrics.append(found))
    assert len(metrics) == 1 and all(np.isfinite(value) for value in metrics[0].values())
    if rows is None:  # an iteration is as many requests as it is said to be, not RLlib's thousand or a second's
        assert FEW["steps"] <= metrics[0]["requests"] < 2 * FEW["steps"]
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), untrained.parameters(), strict=True))
    agent = RLlibRecommender(network)
    agent.save(tmp_path / "agent")
    histories = toy_histories(6, num_items=ITEMS, length=T)
    check_recommender(RLlibRecommender.load(tmp_path / "agent"), histories, ITEMS)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "slateq", "dqn", "sac", "bc", "marwil", "cql"])
def test_what_every_algorithm_leaves_serves_only_what_exists(algorithm, ray, tmp_path):
    here, config = fresh(), TrainConfig(algorithm=algorithm, **FEW)
    log = collect_log(here.simulator, num_users=30, num_visits=4, session_length=K, seed=0)
    found = transitions(log, here.simulator.catalog, T, K, here.reward, dated=True)
    rows = write_rows(found, here, config, tmp_path / "rows.parquet") if algorithm in ("bc", "marwil", "cql") else None
    network, _ = train(here, config, 0, tmp_path, rows)
    RLlibRecommender(network, draws=algorithm == "bc").save(tmp_path / "agent")
    agent, env = RLlibRecommender.load(tmp_path / "agent"), here.feed(20)
    observation, _ = env.reset(seed=5)
    for _ in range(8):
        slates_UK = agent.recommend(event_batch(observation)).item_ids_USK[:, 0].numpy()
        assert here.simulator.catalog.exists(env.state.time_s_U[:, None], slates_UK).all()
        observation, *_ = env.step(slates_UK)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["slateq", "sac"])
def test_trainings_from_replay_repeat_under_a_seed(algorithm, ray, tmp_path):
    here, config = task(), TrainConfig(algorithm=algorithm, **FEW | {"updates": 0.5})
    weights = []
    for n, seed in enumerate((3, 3, 4)):
        torch.manual_seed(seed)
        weights.append(torch.cat([w.flatten() for w in train(here, config, seed, tmp_path / str(n))[0].parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [*ENVIRONMENTS, "toys/Users-v0"])
def test_ppo_trains_on_every_registered_feed(env_id, ray, tmp_path):
    options = {"session_length": 2, "history_length": 4}
    if env_id.startswith("feedgym/ShortVideo"):
        options["num_items"] = 40
    if env_id == "feedgym/ShortVideoFresh-v1":
        options["arrivals_a_day"] = 0.2
    network, _ = train(task(env_id, **options), TrainConfig(**FEW), 0, tmp_path)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_checkpoint(ray, tmp_path):
    here, config = task(), TrainConfig(**FEW | {"iterations": 4, "checkpoints": 4})

    class Killed(Exception):
        pass

    def kill(metrics, iteration):
        seen.append(iteration)
        if iteration == 3 and len(seen) == 3:
            raise Killed

    seen = []
    with pytest.raises(Killed):
        train(here, config, 0, tmp_path, log=kill)
    _, curve = train(here, config, 0, tmp_path, log=kill)
    assert seen == [1, 2, 3, 3, 4] and [row["iteration"] for row in curve] == [1, 2, 3, 4]

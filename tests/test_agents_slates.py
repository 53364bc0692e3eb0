from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from toy_agents import toy_histories
from toy_users import ToyUsers, toy_catalog

from feedgym.agents.check import check_recommender, scribbled
from feedgym.agents.plackett_luce import PlackettLuce
from feedgym.agents.rl_recommender import RLlibRecommender
from feedgym.agents.slates.layers import SlateNetConfig, Wide, event_numbers
from feedgym.agents.slates.policy import SlatePolicy
from feedgym.agents.slates.proto import ProtoPolicy
from feedgym.agents.slates.values import ItemQ, SlateQ, choice_loss, outcomes, slate_value
from feedgym.agents.slates.world import SlateWorld, flat_observation, read_histories
from feedgym.data.batches import HISTORY_COLUMNS
from feedgym.data.events import BEHAVIOUR_IDX
from feedgym.envs.feed import FeedVectorEnv, event_batch

ITEMS, K, T = 12, 3, 6
SIZES = SlateNetConfig(width=8, heads=2, hidden=16)
NETWORKS = [(SlatePolicy, {}), (SlateQ, {}), (ItemQ, {}), (ProtoPolicy, {"points": 1}), (ProtoPolicy, {"points": K})]


def world(items=ITEMS, length=K, profile=(3, 2)):
    return SlateWorld.of(toy_catalog(items), profile, length, T, axes=3)


def network(kind, more=None, seed=0, **kwargs):
    """Untrained, but with every weight in play."""
    torch.manual_seed(seed)
    net = kind(world(**kwargs), SIZES, **(more or {}))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net.eval()


@pytest.mark.parametrize(("kind", "more", "draws"), [(*known, False) for known in NETWORKS] + [(SlatePolicy, {}, True)])
def test_agents_keep_the_promises_of_recommenders_and_come_back_from_disk_as_they_were(kind, more, draws, tmp_path):
    histories = toy_histories(7, num_items=ITEMS, length=T)
    agent = RLlibRecommender(network(kind, more), draws)
    check_recommender(agent, histories, ITEMS)
    agent.save(tmp_path)
    again = RLlibRecommender.load(tmp_path)
    check_recommender(again, histories, ITEMS)
    for one, two in ((agent.recommend(histories), again.recommend(histories)), (sampled(agent), sampled(again))):
        assert torch.equal(one.item_ids_USK, two.item_ids_USK)
        torch.testing.assert_close(one.logp_US, two.logp_US, equal_nan=True)


def sampled(agent):
    return agent.sample(toy_histories(7, num_items=ITEMS, length=T), 5, torch.Generator().manual_seed(3))


def test_a_clone_serves_sessions_as_often_as_it_holds_them_likely():
    net, many = network(SlatePolicy, items=4, length=2), 3000
    one = toy_histories(3, num_items=4, length=T).rows([0] * many)
    requests = replace(one, time_of_day_U=torch.arange(many) * 1e-3)  # almost alike, each with its own random numbers
    served_UK = RLlibRecommender(net, draws=True).recommend(requests).item_ids_USK[:, 0]
    slates_XK = torch.tensor(list(permutations(range(4), 2)))
    share_X = (served_UK[:, None] == slates_XK).all(2).float().mean(0)
    with torch.no_grad():
        logits_UI = net.logits(requests)
        prob_X = torch.stack([PlackettLuce(logits_UI, 2).log_prob(s.expand(many, -1)).exp().mean() for s in slates_XK])
    assert ((share_X - prob_X).abs() < 4.5 * (prob_X * (1 - prob_X) / many).sqrt()).all()


def test_a_folder_without_a_whole_agent_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no complete agent"):
        RLlibRecommender.load(tmp_path)


@pytest.mark.parametrize("kind", [SlatePolicy, SlateQ])
def test_scores_depend_on_each_users_events_and_on_nothing_else(kind):
    net, histories = network(kind), toy_histories(9, num_items=ITEMS, length=T)
    with torch.no_grad():
        score_UI = net.logits(histories)
        torch.testing.assert_close(net.logits(scribbled(histories)), score_UI)
        torch.testing.assert_close(net.logits(histories.rows([4, 0])), score_UI[[4, 0]])
        short = histories.rows(histories.mask_UT.sum(1) < T)
        torch.testing.assert_close(net.logits(short.events(slice(T - 1))), net.logits(short))
        liked = replace(histories, behaviours_UTB=1 - histories.behaviours_UTB)
        knows_U = histories.mask_UT.any(1)
        assert ((net.logits(liked) - score_UI).abs().amax(1) > 1e-4).equal(knows_U)


def test_flat_observations_read_as_the_dictionaries_do():
    env = FeedVectorEnv(5, ToyUsers(ITEMS), session_length=K, history_length=T, horizon=9)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        observation, *_ = env.step(np.tile(np.arange(K), (5, 1)))
    flat = read_histories(torch.from_numpy(flat_observation(observation)), T)
    whole = read_histories({name: torch.from_numpy(column) for name, column in observation.items()}, T)
    batch = event_batch(observation)
    for name in HISTORY_COLUMNS:
        column = getattr(batch, name)
        assert torch.equal(getattr(flat, name), column) and torch.equal(getattr(whole, name), column), name


def test_item_by_item_log_probabilities_are_those_of_every_ordered_session():
    net, histories = network(ItemQ, items=4, length=2), toy_histories(2, num_items=4, length=T)
    slates_XK = torch.tensor(list(permutations(range(4), 2)))
    drawn_USK, logp_US = net.choose(histories, 2, 400, torch.Generator().manual_seed(0))
    for user in range(2):
        found = {tuple(s): float(p) for s, p in zip(drawn_USK[user].tolist(), logp_US[user].tolist(), strict=True)}
        total = 0.0
        for slate in slates_XK.tolist():
            empty = torch.full((1, 2), -1)
            row = histories.rows([user])
            state = net.encoder(row)
            first = net.values(net(state, row, empty)).log_softmax(1)[0, slate[0]]
            one = torch.tensor([[slate[0], -1]])
            second = net.values(net(state, row, one)).log_softmax(1)[0, slate[1]]
            total += float((first + second).exp())
            if tuple(slate) in found:
                assert found[tuple(slate)] == pytest.approx(float(first + second), abs=1e-4)
        assert total == pytest.approx(1, abs=1e-4)


def test_outcomes_are_read_off_the_next_history():
    env = FeedVectorEnv(6, ToyUsers(ITEMS, churn=0.0), session_length=K, history_length=T, horizon=9)
    observation, _ = env.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(6):
        slates_UK = np.stack([rng.permutation(ITEMS)[:K] for _ in range(6)])
        observation, _, _, _, info = env.step(slates_UK)
        examined_UK, clicked_UK = outcomes(torch.from_numpy(slates_UK), event_batch(observation))
        assert np.array_equal(examined_UK.numpy(), info["examined"])
        clicks_UK = info["behaviours"][:, :, BEHAVIOUR_IDX["click"]] * info["examined"]
        assert np.array_equal(clicked_UK.numpy(), clicks_UK)


def test_the_value_of_a_slate_is_the_mean_over_the_choices():
    advantage_UK, choice_UK = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.3, 1.1]])
    weight = np.exp([0.3, 1.1, 0.0])
    by_hand = 0.5 + (weight[0] * 2.0 - weight[1]) / weight.sum()
    assert float(slate_value(advantage_UK, choice_UK, torch.tensor([0.5]))) == pytest.approx(by_hand)


def test_the_choice_model_learns_the_shares_of_clicks_among_what_was_seen():
    choice_UK = torch.zeros(1, 3, requires_grad=True)
    seen_UK = torch.tensor([[True, True, False]])
    optimiser = torch.optim.Adam([choice_UK], lr=0.05)
    for _ in range(400):  # half the visits click the first item, a quarter the second, a quarter nothing
        clicks = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
        loss = choice_loss(choice_UK.expand(4, 3), clicks, seen_UK.expand(4, 3)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(choice_UK[0, :2].exp(), torch.tensor([2.0, 1.0]), atol=0.02, rtol=0)
    assert float(choice_UK[0, 2]) == 0  # never seen, nothing learned


def test_proto_items_of_served_items_are_served_as_them_unless_just_seen():
    net, slates_NK = network(ProtoPolicy, {"points": K}), np.array([[3, 1, 7], [0, 11, 5]])
    new = toy_histories(2, num_items=ITEMS, length=T)
    new = replace(new, mask_UT=torch.zeros_like(new.mask_UT))
    action_NA = torch.from_numpy(net.proto(slates_NK))
    assert np.array_equal(net.items(action_NA, K, new).numpy(), slates_NK)
    middle = network(ProtoPolicy, {"points": 1}).proto(slates_NK)
    np.testing.assert_allclose(middle, world().points_IE[slates_NK].mean(1), rtol=1e-6)
    ids_UT, mask_UT = torch.zeros(2, T, dtype=torch.int64), torch.zeros(2, T, dtype=torch.bool)
    ids_UT[:, 0], mask_UT[:, 0] = torch.tensor([1, 5]), True
    seen_NK = net.items(action_NA, K, replace(new, item_ids_UT=ids_UT, mask_UT=mask_UT)).numpy()
    assert not (seen_NK == np.array([[1], [5]])).any() and (seen_NK[:, 0] == slates_NK[:, 0]).all()


def test_sessions_longer_than_the_catalogue_are_refused():
    with pytest.raises(ValueError, match="lower session_length"):
        world(items=2)


def test_the_wide_part_sums_profile_values_and_what_was_met_and_knows_nothing_at_first():
    values_IX = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(1))
    wide, histories = Wide(values_IX, (3, 2), 5), toy_histories(5, num_items=ITEMS, length=T)
    assert torch.equal(wide(histories), torch.zeros(5, 4))
    torch.manual_seed(0)
    for parameter in wide.parameters():
        torch.nn.init.normal_(parameter)
    number_UT = wide.event(event_numbers(histories))[..., 0]
    for u in range(5):
        fields = histories.profile_UF[u].tolist()
        by_hand = wide.profile.weight[fields[0]] + wide.profile.weight[3 + fields[1]]
        real = int(histories.mask_UT[u].sum())
        for t in range(real):
            by_hand = by_hand + number_UT[u, t] * values_IX[histories.item_ids_UT[u, t]] / (1 + real) ** 0.5
        torch.testing.assert_close(wide(histories)[u], by_hand)
    torch.testing.assert_close(wide(scribbled(histories)), wide(histories))


@pytest.mark.parametrize("kind", [SlatePolicy, ItemQ])
def test_profiles_bear_on_the_items_that_have_the_feature_they_speak_of(kind):
    net, histories = network(kind), toy_histories(4, num_items=ITEMS, length=T)
    inputs_UX = net.scores.inputs(torch.zeros(4, net.scores.query.in_features), histories)
    with torch.no_grad():
        before_UI = net.scores(inputs_UX)
        inputs_UX[:, SIZES.width + 1] += 1  # one more of the second feature's weight
        gain_UI = net.scores(inputs_UX) - before_UI
    unit_IF = net.world.features_IF / np.linalg.norm(net.world.features_IF, axis=1, keepdims=True)
    torch.testing.assert_close(gain_UI, torch.from_numpy(unit_IF[:, 1]).expand(4, -1))


def test_points_have_no_axis_along_which_nothing_varies():
    catalog = toy_catalog(ITEMS)
    flat = replace(catalog, content_IE=np.eye(3, dtype=np.float32)[np.arange(ITEMS) % 3])
    assert SlateWorld.of(flat, (), K, T).points_IE.shape == (ITEMS, 2)
    assert SlateWorld.of(flat, (), K, T, axes=1).points_IE.shape == (ITEMS, 1)


@pytest.mark.parametrize("points", [1, K])
@pytest.mark.parametrize("fresh", [True, False])
def test_actions_equal_what_is_served_and_are_drawn_towards_better_items(points, fresh):
    net, histories = (
        network(ProtoPolicy, {"points": points, "fresh": fresh}),
        toy_histories(7, num_items=ITEMS, length=T),
    )
    generator = torch.Generator().manual_seed(2)
    action_UA = (torch.rand(7, net.action_width, generator=generator) * 2 - 1).requires_grad_()
    served_UA = net.served(action_UA, histories)
    items_UK = net.items(action_UA, K, histories)
    torch.testing.assert_close(served_UA.detach(), torch.from_numpy(net.proto(items_UK.numpy())))
    worth_E = torch.tensor([1.0, -0.5, 0.2])
    (served_UA.reshape(7, points, 3) @ worth_E).sum().backward()
    # The gradient is that of the mean worth of items drawn by their nearness, here by hand for one user and place.
    near_I = 2 * net.points_IE @ action_UA[3, :3].detach() - net.points_IE.square().sum(1)
    if fresh:
        near_I[histories.item_ids_UT[3][histories.mask_UT[3]][-((ITEMS - K) // 2) :]] = -torch.inf
    prob_I, worth_I = near_I.softmax(0), net.points_IE @ worth_E
    by_hand = 2 * ((prob_I * (worth_I - (prob_I * worth_I).sum()))[:, None] * net.points_IE).sum(0)
    torch.testing.assert_close(action_UA.grad[3, :3], by_hand)

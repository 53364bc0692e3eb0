import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch.nn.functional import rms_norm, silu

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, LoggedSessions
from feedgym.envs.truth import RewardWeights
from feedgym.rewards.answers import TOWERS, Answers
from feedgym.rewards.check import check_reward
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.measures import auc_per_tower
from feedgym.rewards.model import RewardModel
from feedgym.rewards.network import RelationAttention, Sizes
from feedgym.rewards.training import fit_reward_model

NUM_ITEMS, T, K = 30, 6, 4
SMALL = RewardModelConfig(width=16, heads=2, epochs=1, batch_size=16)


def catalog(num_items=NUM_ITEMS):
    rng = np.random.default_rng(0)
    return Catalog(
        raw_ids_I=np.arange(num_items),
        content_IE=rng.normal(size=(num_items, 5)).astype(np.float32),
        topic_I=rng.integers(-1, 3, num_items).astype(np.int32),
        duration_s_I=rng.uniform(5, 60, num_items).astype(np.float32),
        creator_I=rng.integers(100, 104, num_items),
        upload_s_I=np.zeros(num_items),
    )


def histories(num_users, seed=0):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, T + 1, (num_users,), generator=rng)
    mask_UT = torch.arange(T) < lengths[:, None]
    return EventBatch(
        item_ids_UT=torch.randint(NUM_ITEMS, (num_users, T), generator=rng) * mask_UT,
        behaviours_UTB=torch.randint(2, (num_users, T, len(BEHAVIOURS)), generator=rng).float() * mask_UT[..., None],
        watch_fraction_UT=torch.rand(num_users, T, generator=rng) * mask_UT,
        gap_s_UT=torch.rand(num_users, T, generator=rng) * 1e5 * mask_UT,
        mask_UT=mask_UT,
        profile_UF=torch.randint(3, (num_users, 2), generator=rng),
        time_of_day_U=torch.rand(num_users, generator=rng) * 24,
    )


def sessions(num_users, num_samples, seed=0, length=K):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(NUM_ITEMS, generator=rng)[:length] for _ in range(num_users * num_samples)])
    return SessionBatch(item_ids_USK=ids.view(num_users, num_samples, -1), logp_US=torch.zeros(num_users, num_samples))


def logged(num_sessions, seed=0, **columns):
    """Random answers of users who leave at random; the last item of some sessions is missing."""
    rng = np.random.default_rng(seed)
    ids_NK = sessions(num_sessions, 1, seed).item_ids_USK[:, 0].numpy().astype(np.int32)
    ids_NK[rng.random(num_sessions) < 0.2, -1] = -1
    examined_NK = (np.arange(K) < rng.integers(1, K + 1, num_sessions)[:, None]) & (ids_NK >= 0)
    values = dict(
        user_idx_N=np.arange(num_sessions),
        row_N=np.arange(num_sessions),
        start_s_N=np.zeros(num_sessions),
        item_ids_NK=ids_NK,
        examined_NK=examined_NK,
        watch_s_NK=(rng.exponential(20, (num_sessions, K)) * examined_NK).astype(np.float32),
        behaviours_NKB=(rng.random((num_sessions, K, 7)) < 0.2).astype(np.uint8) * examined_NK[..., None],
        propensity_NK=np.full((num_sessions, K), np.nan, np.float32),
        return_gap_s_N=np.where(rng.random(num_sessions) < 0.2, np.nan, rng.exponential(86_400, num_sessions)),
    )
    return LoggedSessions(**values | columns)


def lively_model(config=SMALL):
    """An untrained model whose every weight matters."""
    torch.manual_seed(1)
    model = RewardModel(config, Sizes.of(catalog(), histories(50), K))
    model.prepare(catalog(), Answers.of(logged(50), config.watch_cap_s))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def test_the_batched_scores_are_those_of_the_equations_written_plainly():
    model, h, s = lively_model(), histories(4), sessions(4, 3)
    s.item_ids_USK[1, 2, -1] = -1
    want = [[plain_score(model, h.rows([u]), s.item_ids_USK[u, n]) for n in range(3)] for u in range(4)]
    assert h.mask_UT.sum(1).tolist() != [T] * 4
    torch.testing.assert_close(model(h, s), torch.tensor(want), rtol=1e-4, atol=1e-4)


def plain_score(model, history, item_ids):
    """One session of one user, without padding, an item after the other."""
    item_ids = item_ids[item_ids >= 0]
    t = int(history.mask_UT.sum())
    cut = {n: getattr(history, n)[:, :t] for n in ("item_ids_UT", "behaviours_UTB", "watch_fraction_UT", "gap_s_UT")}
    history = dataclasses.replace(history, mask_UT=history.mask_UT[:, :t], **cut)
    state, catalogue = dict(model.named_parameters()), catalog()
    content = torch.from_numpy(catalogue.content_IE - catalogue.content_IE.mean(0))
    content = content / content.square().mean().sqrt()
    log_s = np.log(catalogue.duration_s_I)
    log_s = torch.from_numpy((log_s - log_s.mean()) / log_s.std())

    def norm(x, name):
        return rms_norm(x, x.shape[-1:], state[f"{name}.weight"], 1e-6)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)

    def network(x, name, first=0, last=2):
        return linear(silu(linear(x, f"{name}.{first}")), f"{name}.{last}")

    def vector(i):
        return (
            linear(content[i], "items.content")
            + network(log_s[[i]], "items.duration")
            + state["items.topic.weight"][catalogue.topic_I[i] + 1]
            + state["items.creator.weight"][catalogue.creator_I[i] - 100]
            + state["items.id.weight"][i]
        )

    def attend(x, item, keys, key_items, name):
        heads, width = model.config.heads, model.config.width // model.config.heads
        empty_k, empty_v = state[f"{name}.empty"][:, 0, :, 0].flatten(1)
        kv = [linear(key, f"{name}.kv") for key in keys]
        k = torch.stack([empty_k, *[x[: heads * width] for x in kv]])
        v = torch.stack([empty_v, *[x[heads * width :] for x in kv]])
        q, found = linear(x, f"{name}.q"), []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = k[:, part] @ q[part] / width**0.5
            for n, other in enumerate(key_items):
                same_item, same_topic, same_creator = state[f"{name}.relation_H3"][h]
                logits[n + 1] += same_item * (item == other)
                known = catalogue.topic_I[item] >= 0
                logits[n + 1] += same_topic * bool(known and catalogue.topic_I[item] == catalogue.topic_I[other])
                logits[n + 1] += same_creator * bool(catalogue.creator_I[item] == catalogue.creator_I[other])
            found.append(logits.softmax(0) @ v[:, part])
        return linear(torch.cat(found), f"{name}.out")

    with torch.no_grad():
        seen = history.item_ids_UT[0].tolist()
        extra = model.events(history)[0]  # tested with the agents
        events = [norm(vector(i) + extra[n], "norm_events") for n, i in enumerate(seen)]
        mean = torch.stack(events).mean(0) if events else torch.zeros(model.config.width)
        user = linear(torch.cat([mean, model.request(history)[0].sum(0)]), "user")
        xs = []
        for k, i in enumerate(item_ids.tolist()):
            item = norm(vector(i), "norm_items")
            found = attend(item, i, events, seen, "attention")
            joined = linear(torch.cat([item, found, item * found]), "fuse_item") + linear(user, "fuse_user")
            xs.append(item + linear(silu(joined), "fuse.2") + state["position.weight"][k])
        normed = [norm(x, "layers.0.norm_attention") for x in xs]
        ids = item_ids.tolist()
        xs = [
            x + attend(normed[k], ids[k], normed[: k + 1], ids[: k + 1], "layers.0.attention") for k, x in enumerate(xs)
        ]
        xs = [x + network(norm(x, "layers.0.norm_ff"), "layers.0.ff") for x in xs]
        reach, score, pooled = 1.0, 0.0, torch.zeros(model.config.width)
        for x in xs:
            prob = network(norm(x, "towers.0"), "towers", 1, 4).sigmoid()
            b, w = {name: prob[o] for o, name in enumerate(TOWERS)}, model.weights
            score += reach * sum(getattr(w, name) * b[name] for name in BEHAVIOURS)
            score += reach * w.watch_minutes * b["watch"] * model.config.watch_cap_s / 60
            pooled += reach * x
            reach = reach * b["next"]
        both = torch.cat([pooled, user])
        score += w.return_24h * network(norm(both, "return_tower.0"), "return_tower", 1, 4).sigmoid()[0]
    return float(score)


def test_it_keeps_the_promises_of_a_reward():
    check_reward(lively_model(), histories(5), sessions(5, 4))


def test_the_order_of_a_session_matters_and_later_items_do_not_touch_earlier_ones():
    model, h, ids = lively_model(), histories(3), sessions(3, 2).item_ids_USK
    whole = model.predict(h, ids)
    swapped = ids[..., [1, 0, 2, 3]]
    assert ((model.score(model.predict(h, swapped)) - model.score(whole)).abs() > 1e-3).all()
    changed = ids.clone()
    changed[..., 2:] = (changed[..., 2:] + 1) % NUM_ITEMS
    other = model.predict(h, changed)
    torch.testing.assert_close(other.logit_USKO[:, :, :2], whole.logit_USKO[:, :, :2])
    torch.testing.assert_close(other.prob_reach_USK[..., :3], whole.prob_reach_USK[..., :3])
    assert ((other.logit_USKO[:, :, 2:] - whole.logit_USKO[:, :, 2:]).abs().amax(-1) > 1e-3).all()


def test_an_item_of_the_history_is_recognised():
    model, h = lively_model(), histories(8)
    with torch.no_grad():
        before = model(h, sessions(8, 2))
        model.attention.relation_H3[:, 0] += 3.0
    seen_US = sessions(8, 2).item_ids_USK[..., None] == torch.where(h.mask_UT, h.item_ids_UT, -2)[:, None, None]
    changed_US = (model(h, sessions(8, 2)) - before).abs() > 1e-5
    assert torch.equal(changed_US, seen_US.any(-1).any(-1))


def test_relation_attention_with_nothing_to_see_answers_with_the_empty_value():
    torch.manual_seed(0)
    layer = RelationAttention(8, 2)
    torch.nn.init.normal_(layer.empty)
    out = layer(torch.randn(1, 3, 8), torch.randn(1, 2, 8), torch.zeros(1, 3, 3, 2), torch.zeros(1, 1, 1, 2).bool())
    torch.testing.assert_close(out, layer.out(layer.empty[1].flatten()).expand(1, 3, 8))


def test_the_labels_of_logged_sessions():
    sessions_1 = logged(1).rows(np.zeros(4, int))
    columns = dict(
        item_ids_NK=np.array([[1, 2, 3, 4], [1, 2, 3, -1], [1, 2, 3, 4], [1, -1, -1, -1]], np.int32),
        examined_NK=np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool),
        watch_s_NK=np.array([[10, 200, 0, 0], [0, 0, 50, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32),
        return_gap_s_N=np.array([86_400, 86_401, np.nan, 0]),
    )
    answers = Answers.of(dataclasses.replace(sessions_1, **columns), watch_cap_s=100)
    nan = float("nan")
    goes_on = [
        [1, 0, nan, nan],  # left at the third item: nobody knows whether they would have gone on from there
        [1, 1, nan, nan],  # the session has three items
        [1, 1, 1, nan],
        [nan] * 4,
    ]
    watch = [[0.1, 1, nan, nan], [0, 0, 0.5, nan], [0.01] * 4, [0, nan, nan, nan]]
    for column, want in (("next", goes_on), ("watch", watch)):
        labels = answers.labels_NKO[..., TOWERS.index(column)]
        torch.testing.assert_close(labels, torch.tensor(want, dtype=torch.float32), equal_nan=True)
    torch.testing.assert_close(answers.return_N, torch.tensor([1.0, 0.0, nan, 1.0]), equal_nan=True)


def test_what_the_log_never_shows_is_left_out_of_the_score(tmp_path):
    s = logged(40, return_gap_s_N=np.full(40, np.nan))
    s.behaviours_NKB[..., BEHAVIOUR_IDX["hate"]] = 0
    s.examined_NK[:] = s.item_ids_NK >= 0
    model = fit_reward_model(catalog(), histories(40), s, SMALL, tmp_path)
    every = model(histories(40), sessions(40, 3))
    some = model.with_weights(RewardWeights(hate=0, return_24h=0))
    assert torch.equal(every, some(histories(40), sessions(40, 3)))
    none = model.with_weights(RewardWeights(watch_minutes=0, like=0, follow=0, comment=0, forward=0))
    assert (none(histories(40), sessions(40, 3)) == 0).all()
    assert model.predict(histories(40), sessions(40, 3).item_ids_USK).prob_reach_USK.min() > 0.95  # nobody ever left
    auc = auc_per_tower(model, histories(40), s)
    assert not {"hate", "return_24h", "next"} & set(auc) and all(np.isfinite(list(auc.values())))


def planted(num_sessions, seed):
    """Users watch for a minute what has the topic of their newest event, else 1 s and leave two times out of three."""
    h, s, topic_I = histories(num_sessions, seed), logged(num_sessions, seed), catalog().topic_I
    newest_N = h.item_ids_UT[torch.arange(num_sessions), (h.mask_UT.sum(1) - 1).clamp_min(0)].numpy()
    match_NK = (topic_I[s.item_ids_NK] == topic_I[newest_N][:, None]) & (h.mask_UT[:, :1].numpy())
    goes_on_NK = match_NK | (np.random.default_rng(seed).random(match_NK.shape) < 1 / 3)
    reached_NK = np.cumprod(np.pad(goes_on_NK[:, :-1], ((0, 0), (1, 0)), constant_values=True), axis=1).astype(bool)
    examined_NK = reached_NK & (s.item_ids_NK >= 0)
    watch_s_NK = np.where(match_NK, 60, 1) * examined_NK
    return h, dataclasses.replace(s, examined_NK=examined_NK, watch_s_NK=watch_s_NK.astype(np.float32))


def test_it_learns_a_planted_signal_and_where_in_the_session_it_is_worth_most(tmp_path):
    h, s = planted(3000, seed=5)
    config = RewardModelConfig(width=32, heads=2, epochs=5, batch_size=64, lr=5e-3, watch_cap_s=60)
    minutes = RewardWeights(like=0, follow=0, comment=0, forward=0, hate=0, return_24h=0)
    model = fit_reward_model(catalog(), h, s, config, tmp_path).with_weights(minutes)
    h, s = planted(500, seed=6)
    score = model(h, SessionBatch(item_ids_USK=torch.from_numpy(s.item_ids_NK)[:, None].long(), logp_US=torch.zeros(1)))
    watched = s.watch_s_NK.sum(1) / 60
    assert np.corrcoef(score[:, 0], watched)[0, 1] > 0.85
    assert abs(score.mean() - watched.mean()) < 0.1  # minutes are minutes
    auc = auc_per_tower(model, h, s)
    assert auc["watch"] > 0.97 and auc["next"] > 0.7 and abs(auc["like"] - 0.5) < 0.1


def test_auc_is_the_chance_that_a_positive_outranks_a_negative():
    model, h, s = lively_model(), histories(30), logged(30)
    got = auc_per_tower(model, h, s, batch_size=7)
    logits = model.predict(h, torch.from_numpy(s.item_ids_NK)[:, None].long())
    for name, labels in (("like", s.behaviours_NKB[..., 2]), ("watch", s.watch_s_NK)):
        y, x = labels[s.examined_NK], logits.logit_USKO[:, 0, :, TOWERS.index(name)].detach().numpy()[s.examined_NK]
        positive = y > np.float32(y.mean())
        pairs = x[positive][:, None] - x[~positive]
        assert got[name] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-6)
    known = ~np.isnan(s.return_gap_s_N)
    back = s.return_gap_s_N[known] <= 86_400
    assert got["return_24h"] == pytest.approx(roc_auc_score(back, logits.logit_return_US[known, 0].detach()))


def test_auc_over_some_items_counts_their_answers_alone():
    model, h, s = lively_model(), histories(60), logged(60)
    only_I = np.arange(NUM_ITEMS) % 2 == 0
    got = auc_per_tower(model, h, s, only_I=only_I)
    counted_NK = s.examined_NK & only_I[s.item_ids_NK]
    logits = model.predict(h, torch.from_numpy(s.item_ids_NK)[:, None].long()).logit_USKO[:, 0].detach().numpy()
    like = TOWERS.index("like")
    expected = roc_auc_score(s.behaviours_NKB[..., 2][counted_NK], logits[..., like][counted_NK])
    assert got["like"] == pytest.approx(expected) and "return_24h" not in got
    assert auc_per_tower(model, h, s, only_I=np.zeros(NUM_ITEMS, bool)) == {}
    everything = auc_per_tower(model, h, s)
    everything.pop("return_24h")
    assert auc_per_tower(model, h, s, only_I=np.ones(NUM_ITEMS, bool)) == everything


def test_saving_and_loading_keeps_every_bit(tmp_path):
    model = lively_model(RewardModelConfig(width=16, heads=2)).with_weights(RewardWeights(like=7.0))
    model.save_pretrained(tmp_path)
    loaded = RewardModel.load(tmp_path)
    assert torch.equal(loaded(histories(4), sessions(4, 3)), model(histories(4), sessions(4, 3)))
    assert loaded.config == model.config and loaded.sizes == model.sizes and not loaded.training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "reward_model.json"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x10"),
        ("model.safetensors", None),
        ("reward_model.json", b"{"),
        ("reward_model.json", b"{}"),
        ("reward_model.json", b"[]"),
        ("reward_model.json", None),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, file, content):
    lively_model().save_pretrained(tmp_path)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} .*train the reward model again") as found:
        RewardModel.load(tmp_path)
    assert "\n" not in str(found.value)


def test_weights_of_other_sizes_are_refused_in_one_line(tmp_path):
    lively_model().save_pretrained(tmp_path)
    path = tmp_path / "reward_model.json"
    saved = json.loads(path.read_text())
    saved["sizes"]["num_items"] += 1
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"model.safetensors .*again") as found:
        RewardModel.load(tmp_path)
    assert "\n" not in str(found.value)


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    config = dataclasses.replace(SMALL, epochs=3, checkpoint_steps=4, dropout=0.1)
    arguments = catalog(), histories(80), logged(80), config

    def dies_at_step_10(step, steps, metrics):
        if step == 10:
            raise KeyboardInterrupt

    fit_reward_model(*arguments, tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        fit_reward_model(*arguments, tmp_path / "killed", dies_at_step_10)
    torch.rand(7)  # whatever else has drawn random numbers meanwhile
    fit_reward_model(*arguments, tmp_path / "killed")
    calm, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("calm", "killed"))
    assert calm.keys() == killed.keys() and all(torch.equal(calm[name], killed[name]) for name in calm)


@pytest.mark.parametrize(
    ("length", "item_id", "message"),
    [(K + 1, 0, "Sessions of 5 items exceed"), (K, NUM_ITEMS, r"Item id 30 is outside the reward model's 0\.\.29")],
)
def test_sessions_it_cannot_score_are_refused(length, item_id, message):
    ids = torch.full((2, 1, length), item_id)
    with pytest.raises(ValueError, match=message):
        lively_model()(histories(2), SessionBatch(item_ids_USK=ids, logp_US=torch.zeros(2, 1)))


def test_a_profile_value_the_training_never_met_is_scored():
    model, h = lively_model(), histories(4)
    new = [model(dataclasses.replace(h, profile_UF=torch.full((4, 2), v)), sessions(4, 2)) for v in (7, 99)]
    assert torch.equal(*new) and new[0].isfinite().all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("width", 0, "must be 1 or more"), ("dropout", 1.0, "must be below 1"), ("heads", 3, "not a multiple of heads=3")],
)
def test_impossible_configurations_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        RewardModelConfig(**{field: value})

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from scipy import stats
from toy_agents import CODES, NUM_CODES, NUM_ITEMS, K, T, toy_histories, toy_model, toy_tokenizer

from feedgym.agents import generation
from feedgym.agents.generation import (
    GenerativeRecommender,
    SamplingConfig,
    beam_sessions,
    draw_sessions,
    sample_sessions,
    score_sessions,
    seen_items,
)
from feedgym.agents.hstu import HSTU, HSTUConfig, HSTURecommender
from feedgym.agents.session_model import SessionRecommender, history_columns, session_logp
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.tokenizers.vocabulary import Vocabulary

TRIE = toy_tokenizer().trie()
LEVELS = len(NUM_CODES)
EVERY = [list(session) for session in permutations(range(NUM_ITEMS), K)]
PLAIN = SamplingConfig()


pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the same by hand, one user and one code at a time


def plain_blocked(history, length, block_seen=True):
    """The newest different items of one user, as many as leave enough for a session."""
    real = history.item_ids_UT[0][history.mask_UT[0]].tolist()
    newest_first = list(dict.fromkeys(reversed(real)))
    return set(newest_first[: NUM_ITEMS - length]) if block_seen else set()


def plain_choices(written, prefix, barred):
    """Codes that lead somewhere: to any item, and to an item that may still be written."""
    below = [item for item, codes in enumerate(CODES.tolist()) if codes[: len(prefix)] == prefix]
    level = len(prefix)
    left = [item for item in below if item not in barred and item not in written]
    return {CODES[item, level].item() for item in below}, {CODES[item, level].item() for item in left}


def plain_weights(logp, sampling):
    """Unnormalised chances of the codes of a dict."""
    ranked = sorted(logp, key=lambda code: -logp[code])[: sampling.top_k or None]
    weights = {code: math.exp(logp[code] / sampling.temperature) for code in ranked}
    kept, total = {}, sum(weights.values())
    for code in ranked:
        if sum(kept.values()) < sampling.top_p * total:
            kept[code] = weights[code]
    return kept


def logsum(values):
    return math.log(sum(math.exp(v) for v in values)) if values else -math.inf


def plain_sessions(model, history, sessions, sampling=PLAIN):
    """For each session of one user: its logp, logp_legal, logp_allowed, and the probability with which it is drawn."""
    history, vocabulary = history.trimmed(), model.vocabulary
    with torch.no_grad():
        tokens = model.session_tokens(torch.tensor(sessions))
        logp_NMV = model(input_ids=tokens, **history_columns(history)).logits.log_softmax(-1)
    barred = plain_blocked(history, len(sessions[0]), sampling.block_seen)
    found = {}
    for n, session in enumerate(sessions):
        total = legal = allowed = 0.0
        drawn = 1.0
        for k, item in enumerate(session):
            for level, code in enumerate(CODES[item].tolist()):
                offset = vocabulary.level_offset(level)
                row = logp_NMV[n, k * (LEVELS + 1) + level, offset : offset + NUM_CODES[level]].tolist()
                some, free = plain_choices(session[:k], CODES[item, :level].tolist(), barred)
                total += row[code]
                legal += logsum([row[c] for c in some])
                allowed += logsum([row[c] for c in free])
                weights = plain_weights({c: row[c] for c in free}, sampling)
                drawn *= weights.get(code, 0.0) / sum(weights.values()) if weights else 0.0
        found[tuple(session)] = total, legal, allowed, drawn
    return found


def plain_beam(model, history, width, length):
    """Beam search over codes with Python lists; also the number of prefixes there were to choose from at each step."""
    history, vocabulary = history.trimmed(), model.vocabulary
    barred, beam, sizes = plain_blocked(history, length), [(0.0, [], [])], []
    for step in range(length * LEVELS):
        level, longer = step % LEVELS, []
        for score, written, prefix in beam:
            tokens = [t for item in written for t in (1, *vocabulary.token_ids(CODES[item]).tolist())]
            tokens += [1] + [code + vocabulary.level_offset(at) for at, code in enumerate(prefix)]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([tokens]), **history_columns(history)).logits[0, -1]
            logp = logits.log_softmax(-1).tolist()
            for code in plain_choices(written, prefix, barred)[1]:
                longer.append((score + logp[vocabulary.level_offset(level) + code], written, [*prefix, code]))
        sizes.append(len(longer))
        beam = sorted(longer, key=lambda row: -row[0])[:width]
        if level == LEVELS - 1:
            beam = [(score, [*written, CODES.tolist().index(codes)], []) for score, written, codes in beam]
    return [(score, written) for score, written, _ in beam], sizes


# ---------------------------------------------------------------- beam search


@pytest.mark.parametrize("block_seen", [True, False])
def test_a_beam_wider_than_the_catalogue_finds_every_session_best_first(block_seen):
    model, histories = toy_model(), toy_histories(6)
    for u in range(6):
        history = histories.rows([u])
        exact = plain_sessions(model, history, EVERY, SamplingConfig(block_seen=block_seen))
        possible = {session: logp for session, (logp, _, _, drawn) in exact.items() if drawn > 0}
        found = beam_sessions(model, TRIE, history, 1000, K, block_seen)
        ranked = sorted(possible, key=lambda session: -possible[session])
        assert found.item_ids_USK[0].tolist() == [list(session) for session in ranked]
        torch.testing.assert_close(found.logp_US[0], torch.tensor([possible[s] for s in ranked]))


def test_a_narrow_beam_is_that_of_a_plain_search_whoever_shares_the_batch():
    model, histories = toy_model(2), toy_histories(12, seed=3)
    found = beam_sessions(model, TRIE, histories, 5, K)
    prefixes = []
    for u in range(12):
        beam, sizes = plain_beam(model, histories.rows([u]), 5, K)
        assert found.item_ids_USK[u].tolist() == [written for _, written in beam]
        torch.testing.assert_close(found.logp_US[u], torch.tensor([score for score, _ in beam]))
        prefixes.append(sizes[0])
    # Some users have fewer prefixes to begin with than a beam is wide, and others more than those: the case in which
    # a batch that shares one width would cut the others' beams short.
    assert min(prefixes) == 2 < max(prefixes) < 5


def test_there_are_as_many_sessions_as_the_poorest_user_has():
    model, histories = toy_model(), toy_histories(5)
    seen_all = replace(histories, item_ids_UT=torch.arange(T).expand(5, -1).clone(), mask_UT=histories.mask_UT.clone())
    seen_all.mask_UT[3] = True
    found = beam_sessions(model, TRIE, seen_all, 50, K)
    assert found.item_ids_USK.shape == (5, 6, K)  # three items are left to user 3, in any order
    assert found.logp_US.isfinite().all() and (found.logp_US.diff(dim=1) <= 0).all()
    for u in (0, 3):
        alone = beam_sessions(model, TRIE, seen_all.rows([u]), 50, K)
        assert torch.equal(alone.item_ids_USK[0, :6], found.item_ids_USK[u])
        assert alone.item_ids_USK.shape[1] == (6 if u == 3 else 50)


# ---------------------------------------------------------------- sampling

WAYS = [
    SamplingConfig(),
    SamplingConfig(block_seen=False),
    SamplingConfig(temperature=0.6),
    SamplingConfig(temperature=3.0),
    SamplingConfig(top_k=1),
    SamplingConfig(top_k=2),
    SamplingConfig(top_p=0.7),
    SamplingConfig(temperature=2.0, top_k=2, top_p=0.8),
    SamplingConfig(temperature=2.0, top_k=100, top_p=1.0),
]


def fits(counts, chances):
    """The p-value of a chi-square test, cells of fewer than 5 expected counts pooled; what has no chance never came."""
    total = sum(counts.values())
    assert set(counts) <= {session for session, chance in chances.items() if chance > 0}
    assert sum(chances.values()) == pytest.approx(1.0, abs=1e-5)
    cells = [(counts.get(s, 0), total * chance) for s, chance in chances.items() if chance > 0]
    large = [cell for cell in cells if cell[1] >= 5]
    small = [sum(column) for column in zip(*(cell for cell in cells if cell[1] < 5), strict=True)]
    observed, expected = zip(*(large + ([tuple(small)] if small and small[1] > 0 else [])), strict=True)
    return 1.0 if len(observed) == 1 else stats.chisquare(observed, expected, sum_check=False).pvalue


def counted(sessions):
    rows, counts = torch.as_tensor(sessions).unique(dim=0, return_counts=True)
    return {tuple(row): n for row, n in zip(rows.tolist(), counts.tolist(), strict=True)}


@pytest.mark.parametrize("sampling", WAYS, ids=str)
def test_sessions_are_drawn_with_their_exact_probabilities(sampling):
    model, histories = toy_model(), toy_histories(3, seed=2)
    pairs = [list(session) for session in permutations(range(NUM_ITEMS), 2)]
    drawn = sample_sessions(model, TRIE, histories, 8000, 2, seeded(), sampling)
    for u in range(3):
        exact = plain_sessions(model, histories.rows([u]), pairs, sampling)
        chances = {session: values[3] for session, values in exact.items()}
        assert fits(counted(drawn.item_ids_USK[u]), chances) > 1e-3


def test_how_codes_are_chosen_leaves_the_log_probabilities_alone():
    model, histories = toy_model(), toy_histories(4)
    sampling = SamplingConfig(temperature=4.0, top_k=3, top_p=0.95)
    drawn = sample_sessions(model, TRIE, histories, 20, K, seeded(), sampling)
    torch.testing.assert_close(drawn.logp_US, session_logp(model, histories, drawn.item_ids_USK).detach())
    for u in range(4):
        exact = plain_sessions(model, histories.rows([u]), drawn.item_ids_USK[u].tolist(), sampling)
        for s, session in enumerate(drawn.item_ids_USK[u].tolist()):
            logp, legal, allowed, _ = exact[tuple(session)]
            assert drawn.logp_US[u, s].item() == pytest.approx(logp, abs=1e-4)
            assert drawn.logp_legal_US[u, s].item() == pytest.approx(legal, abs=1e-4)
            assert drawn.logp_allowed_US[u, s].item() == pytest.approx(allowed, abs=1e-4)
            assert logp <= allowed <= legal < -0.1  # the model wastes some probability on codes that do not exist
    assert len(drawn.logp_US.unique()) > 40


def test_the_extreme_draws_choose_the_first_and_the_last_code_that_is_allowed():
    model, histories = toy_model(), toy_histories(40)
    lowest, highest = torch.zeros(40, 1, K * LEVELS), torch.full((40, 1, K * LEVELS), 1 - 2.0**-24)
    by_code = sorted(range(NUM_ITEMS), key=lambda item: CODES[item].tolist())
    for noise, order in ((lowest, by_code), (highest, by_code[::-1])):
        for top_p in (1.0, 1 - 1e-7):
            drawn = draw_sessions(model, TRIE, histories, noise, SamplingConfig(top_p=top_p))
            for u in range(40):
                barred = plain_blocked(histories.rows([u]), K)
                assert drawn.item_ids_USK[u, 0].tolist() == [i for i in order if i not in barred][:K]


# ---------------------------------------------------------------- what may not be served


def test_no_item_comes_twice_and_what_was_seen_never():
    model, histories = toy_model(), toy_histories(30)

    def sampled(block_seen):
        return sample_sessions(model, TRIE, histories, 50, K, seeded(), SamplingConfig(block_seen=block_seen))

    for way in (sampled, lambda block_seen: beam_sessions(model, TRIE, histories, 6, K, block_seen)):
        for block_seen in (True, False):
            ids_USK = way(block_seen).item_ids_USK
            assert all(len(set(session)) == K for user in ids_USK.tolist() for session in user)
            barred = [plain_blocked(histories.rows([u]), K) for u in range(30)]
            served_again = [bool(barred[u] & set(ids_USK[u].flatten().tolist())) for u in range(30)]
            assert any(served_again) != block_seen
    agent = GenerativeRecommender(model, TRIE, K, SamplingConfig(block_seen=False))
    assert torch.equal(
        agent.beams(histories, 3).item_ids_USK, beam_sessions(model, TRIE, histories, 3, K, False).item_ids_USK
    )


def test_where_too_much_was_seen_the_oldest_comes_back():
    history = toy_histories(2).rows([1])
    history = replace(history, item_ids_UT=torch.tensor([[4, 2, 5, 5, 0, 2]]), mask_UT=torch.ones(1, T).bool())
    every = sample_sessions(toy_model(), TRIE, history, 400, K, seeded(), SamplingConfig(temperature=5.0))
    assert set(every.item_ids_USK.flatten().tolist()) == {1, 3, 4}  # 2, 0 and 5 were the last three
    pairs = sample_sessions(toy_model(), TRIE, history, 400, 2, seeded(), SamplingConfig(temperature=5.0))
    assert set(pairs.item_ids_USK.flatten().tolist()) == {1, 3}
    single = sample_sessions(toy_model(), TRIE, history, 400, 1, seeded(), SamplingConfig(temperature=5.0))
    assert set(single.item_ids_USK.flatten().tolist()) == {1, 3}


def test_sessions_as_long_as_the_catalogue_hold_all_of_it():
    model = toy_model(session_length=NUM_ITEMS)
    drawn = sample_sessions(model, TRIE, toy_histories(4), 30, NUM_ITEMS, seeded())
    assert drawn.item_ids_USK.sort(-1).values.unique(dim=0).tolist() == [[list(range(NUM_ITEMS))] * 30]
    assert len(drawn.item_ids_USK.flatten(0, 1).unique(dim=0)) > 20
    torch.testing.assert_close(drawn.logp_US, session_logp(model, toy_histories(4), drawn.item_ids_USK).detach())


@pytest.mark.parametrize("limit", range(8))
def test_seen_items_are_the_newest_different_ones(limit):
    histories = toy_histories(50, seed=limit)
    scribbled = histories.item_ids_UT.masked_fill(~histories.mask_UT, 3)
    found = seen_items(replace(histories, item_ids_UT=scribbled), limit)
    for u in range(50):
        real = scribbled[u][histories.mask_UT[u]].tolist()
        newest = list(dict.fromkeys(reversed(real)))[:limit]
        assert set(found[u].tolist()) - {-1} == set(newest)


# ---------------------------------------------------------------- scoring


def test_scoring_says_what_sampling_and_searching_said():
    model, histories = toy_model(), toy_histories(5)
    for sessions in (
        sample_sessions(model, TRIE, histories, 9, K, seeded(), SamplingConfig(temperature=2.0)),
        beam_sessions(model, TRIE, histories, 4, K),
    ):
        scored = score_sessions(model, TRIE, histories, sessions.item_ids_USK)
        assert torch.equal(scored.item_ids_USK, sessions.item_ids_USK)
        for name in ("logp_US", "logp_legal_US", "logp_allowed_US"):
            torch.testing.assert_close(getattr(scored, name), getattr(sessions, name), msg=name)
        torch.testing.assert_close(scored.logp_US, session_logp(model, histories, sessions.item_ids_USK).detach())


@pytest.mark.parametrize("block_seen", [True, False])
def test_the_chances_of_all_sessions_sum_to_one(block_seen):
    model, histories = toy_model(), toy_histories(6)
    every = torch.cartesian_prod(*[torch.arange(NUM_ITEMS)] * K)  # sessions with an item twice among them
    scored = score_sessions(model, TRIE, histories, every.expand(6, -1, -1), block_seen)
    chance_US = (scored.logp_US - scored.logp_allowed_US).exp()
    torch.testing.assert_close(chance_US.sum(1), torch.ones(6))
    twice_S = torch.tensor([len(set(session)) < K for session in every.tolist()])
    assert (chance_US[:, twice_S] == 0).all()
    for u in range(6):
        barred = plain_blocked(histories.rows([u]), K, block_seen)
        hit_S = torch.tensor([bool(barred & set(session)) for session in every.tolist()])
        assert torch.equal(chance_US[u] > 0, ~(hit_S | twice_S))
    assert scored.logp_US.isfinite().all() and scored.logp_legal_US.isfinite().all()


# ---------------------------------------------------------------- invariances


def ways(model, histories, sessions_USK):
    return {
        "sampled": sample_sessions(model, TRIE, histories, 7, K, seeded(), SamplingConfig(temperature=1.5)),
        "beams": beam_sessions(model, TRIE, histories, 3, K),
        "scored": score_sessions(model, TRIE, histories, sessions_USK),
    }


def assert_same(left: SessionBatch, right: SessionBatch):
    assert torch.equal(left.item_ids_USK, right.item_ids_USK)
    for name in ("logp_US", "logp_legal_US", "logp_allowed_US"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), msg=name)


@pytest.mark.parametrize("rows", [1, 7, 20, 10_000])
def test_users_decoded_in_blocks_get_the_same(rows, monkeypatch):
    model, histories = toy_model(), toy_histories(11)
    ids_USK = sample_sessions(model, TRIE, histories, 7, K, seeded()).item_ids_USK
    whole = ways(model, histories, ids_USK)
    monkeypatch.setattr(generation, "ROWS_PER_BLOCK", rows)
    for name, sessions in ways(model, histories, ids_USK).items():
        assert_same(sessions, whole[name])


def test_blocks_whose_users_have_different_numbers_of_sessions_can_be_joined(monkeypatch):
    model, histories = toy_model(), toy_histories(8)
    whole = beam_sessions(model, TRIE, histories, 100, K)
    monkeypatch.setattr(generation, "ROWS_PER_BLOCK", 100)
    assert_same(beam_sessions(model, TRIE, histories, 100, K), whole)


def test_a_users_sessions_do_not_depend_on_the_other_users():
    model, histories, others = toy_model(), toy_histories(9), toy_histories(9, seed=5)
    ids_USK = sample_sessions(model, TRIE, histories, 7, K, seeded()).item_ids_USK
    mixed = EventBatch.cat([others.rows(slice(0, 4)), histories.rows([4]), others.rows(slice(5, 9))])
    before, after = ways(model, histories, ids_USK), ways(model, mixed, ids_USK)
    for name, sessions in before.items():
        assert_same(sessions.rows([4]), after[name].rows([4]))
        assert not torch.equal(sessions.logp_US, after[name].logp_US)
    fewer = ways(model, histories.rows(slice(0, 5)), ids_USK[:5])
    for name, sessions in before.items():
        assert_same(sessions.rows(slice(0, 5)), fewer[name])


def scribbled(histories, more=0):
    """Nonsense in the padding, and more of it."""
    pad_UT = ~histories.mask_UT
    noise = replace(
        histories,
        item_ids_UT=histories.item_ids_UT.masked_fill(pad_UT, 10**6),
        behaviours_UTB=histories.behaviours_UTB.masked_fill(pad_UT[..., None], torch.nan),
        watch_fraction_UT=histories.watch_fraction_UT.masked_fill(pad_UT, torch.inf),
        gap_s_UT=histories.gap_s_UT.masked_fill(pad_UT, -1e9),
    )
    return noise.events(slice(int(histories.mask_UT.sum(1).max()) + more))


def test_padding_changes_nothing():
    model, histories = toy_model(), toy_histories(9)
    histories = replace(histories, mask_UT=histories.mask_UT & (torch.arange(T) < T - 2))
    ids_USK = sample_sessions(model, TRIE, histories, 7, K, seeded()).item_ids_USK
    want = ways(model, histories, ids_USK)
    for more in range(3):
        for name, sessions in ways(model, scribbled(histories, more), ids_USK).items():
            assert_same(sessions, want[name])


# ---------------------------------------------------------------- the agent


def test_what_is_recommended_is_the_best_beam_or_the_greedy_choice():
    model, histories = toy_model(), toy_histories(6)
    for num_beams in (1, 4):
        served = GenerativeRecommender(model, TRIE, K, num_beams=num_beams).recommend(histories)
        assert_same(served, beam_sessions(model, TRIE, histories, num_beams, K).rows((slice(None), slice(1))))
    one = beam_sessions(model, TRIE, histories, 1, K)
    greedy = sample_sessions(model, TRIE, histories, 1, K, seeded(), SamplingConfig(top_k=1))
    assert_same(one, greedy)


def test_a_drawn_recommendation_belongs_to_the_request_alone():
    model, histories = toy_model(), toy_histories(12)
    histories = replace(histories, mask_UT=histories.mask_UT & (torch.arange(T) < T - 2))
    agent = GenerativeRecommender(model, TRIE, K, SamplingConfig(temperature=2.0), num_beams=0)
    served = agent.recommend(histories)
    assert served.item_ids_USK.shape == (12, 1, K) and served.logp_US.shape == (12, 1)
    torch.rand(3)
    assert_same(agent.recommend(histories), served)
    order = torch.randperm(12, generator=seeded())
    assert_same(agent.recommend(histories.rows(order)), served.rows(order))
    for u in range(12):
        assert_same(agent.recommend(histories.rows([u])), served.rows([u]))
    for more in range(3):
        assert_same(agent.recommend(scribbled(histories, more)), served)
    later = agent.recommend(replace(histories, time_of_day_U=(histories.time_of_day_U + 0.01) % 24))
    assert not torch.equal(later.item_ids_USK, served.item_ids_USK)


def test_drawn_recommendations_follow_the_distribution_that_is_sampled_from():
    model = toy_model()
    torch.nn.init.zeros_(model.model.encoder.request.time_of_day.weight)  # the time tells requests apart, no more
    num, sampling = 6000, SamplingConfig(temperature=1.5)
    histories = toy_histories(8).rows(torch.full((num,), 5))
    histories = replace(histories, time_of_day_U=torch.arange(num) / num * 24)
    served = GenerativeRecommender(model, TRIE, 2, sampling, num_beams=0).recommend(histories)
    pairs = [list(session) for session in permutations(range(NUM_ITEMS), 2)]
    exact = plain_sessions(model, histories.rows([0]), pairs, sampling)
    assert fits(counted(served.item_ids_USK[:, 0]), {session: values[3] for session, values in exact.items()}) > 1e-3


def test_one_seed_one_set_of_sessions():
    model, histories = toy_model(), toy_histories(5)
    agent = GenerativeRecommender(model, TRIE, K)
    first, again, other = (agent.sample(histories, 6, seeded(seed)).item_ids_USK for seed in (1, 1, 2))
    torch.rand(5)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(map(tuple, user)) for user in first.tolist()}) == 5  # no two users share random numbers


def test_a_recommender_leaves_the_model_where_it_is_unless_told_otherwise():
    elsewhere = toy_model().to("meta")  # in place of a GPU: a model in training must not be moved off it
    agents = (
        GenerativeRecommender(elsewhere, TRIE, K),
        SessionRecommender(elsewhere, toy_tokenizer()),
        HSTURecommender(HSTU(HSTUConfig(num_items=NUM_ITEMS, d_model=8, session_length=K)).to("meta")),
    )
    for agent in agents:
        assert agent.device.type == agent.model.device.type == agent.trie.codes_IL.device.type == "meta"
    here = toy_model()
    moved = GenerativeRecommender(here, TRIE, K, device="meta")
    assert moved.device.type == moved.model.device.type == here.device.type == "meta"


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_decoding_and_the_mode_is_restored(training):
    model, histories = toy_model(dropout=0.5), toy_histories(5)
    ids_USK = sample_sessions(model, TRIE, histories, 7, K, seeded()).item_ids_USK
    want = ways(model.eval(), histories, ids_USK)
    model.train(training)
    for name, sessions in ways(model, histories, ids_USK).items():
        assert_same(sessions, want[name])
    with pytest.raises(ValueError):
        sample_sessions(model, TRIE, histories, 7, K + 1, seeded())
    assert all(module.training == training for module in model.modules())
    assert not any(v.requires_grad for v in vars(want["scored"]).values())


# ---------------------------------------------------------------- the cached path


def test_cached_decoding_is_the_full_forward_pass():
    model, histories, samples = toy_model(), toy_histories(4), 3
    ids_USK = torch.tensor(EVERY[:: len(EVERY) // 12][:12]).view(4, samples, K)
    tokens_USM = torch.stack([model.session_tokens(ids_USK[u]) for u in range(4)])
    # Row r of a forward pass reads history r mod U, so samples come first there.
    rows = tokens_USM.transpose(0, 1).flatten(0, 1)
    with torch.no_grad():
        full = model(input_ids=rows, **history_columns(histories)).logits.unflatten(0, (samples, 4)).transpose(0, 1)
    for sizes in ([1] * 9, [1, 2, 1, 2, 1, 2], [3, 3, 3], [9]):
        with torch.no_grad():
            state = model.start(histories, K * (LEVELS + 1))
            state.select(torch.zeros(4, samples, dtype=torch.long))
            end = 0
            for size in sizes:
                logits = model.step(tokens_USM[:, :, end : end + size], state)
                end += size
                torch.testing.assert_close(logits, full[:, :, end - 1], rtol=1e-4, atol=1e-5)
            assert state.length == end == 9


def test_selected_rows_go_on_from_their_parents():
    model, histories = toy_model(), toy_histories(4)
    parents = torch.tensor([[2, 0, 2, 1, 1], [0, 0, 0, 0, 0], [1, 2, 0, 1, 2], [2, 2, 1, 0, 0]])
    first = torch.tensor(EVERY[::10]).view(4, 3, K)[..., :2]
    last = torch.tensor([[5, 4, 3, 2, 1]]).expand(4, -1)
    codes = model.vocabulary.token_ids(CODES[first]).flatten(2)
    bos = Vocabulary.bos_id
    with torch.no_grad():
        state = model.start(histories, K * (LEVELS + 1))
        state.select(torch.zeros(4, 3, dtype=torch.long))
        begun = torch.stack([torch.full((4, 3), bos), *codes[..., :2].unbind(2)], 2)
        model.step(begun, state)
        state.select(parents)
        going_on = torch.stack([torch.full((4, 5), bos), model.vocabulary.token_ids(CODES[last])[..., 0]], 2)
        logits = model.step(going_on, state)
        whole = torch.cat([begun.gather(1, parents[..., None].expand(-1, -1, 3)), going_on], 2)
        for u in range(4):
            alone = model(input_ids=whole[u], **history_columns(histories.rows([u]))).logits[:, -1]
            torch.testing.assert_close(logits[u], alone, rtol=1e-4, atol=1e-5)


def test_a_history_is_encoded_once_a_user_and_its_keys_are_shared_by_the_rows(monkeypatch):
    model, histories, encoded, states = toy_model(), toy_histories(10), [], []
    model.model.encoder.register_forward_hook(lambda module, args, out: encoded.append(len(args[0])))
    start = model.start
    monkeypatch.setattr(model, "start", lambda *args: states.append(start(*args)) or states[-1])
    monkeypatch.setattr(generation, "ROWS_PER_BLOCK", 200)
    for run in (
        lambda: sample_sessions(model, TRIE, histories, 50, K, seeded()),
        lambda: beam_sessions(model, TRIE, histories, 50, K),
        lambda: score_sessions(model, TRIE, histories, torch.arange(K).expand(10, 50, -1)),
    ):
        encoded.clear(), states.clear()
        run()
        assert encoded == [4, 4, 2]
        for num_users, state in zip(encoded, states, strict=True):
            for keys, values in state.memory:
                assert keys.shape == values.shape == (num_users, 2, T * LEVELS + 3, 4)
            assert state.cache.shape[:3] == (2, 2, K * (LEVELS + 1)) and state.cache.shape[3] <= num_users * 50
            assert state.length == K * (LEVELS + 1) - 1  # nothing is asked after the last code


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0; raise it"),
        ({"temperature": -1.0}, "temperature=-1.0 must be above 0"),
        ({"top_k": -1}, "top_k=-1 must be 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.1}, "top_p=1.1 must be 1 or less"),
        ({"temperature": math.nan}, "temperature=nan is not a finite number"),
        ({"top_p": math.nan}, "top_p=nan is not a finite number"),
    ],
)
def test_bad_sampling_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (K + 1, f"Sessions of {K + 1} items exceed the model's session_length={K}; ask for fewer"),
        (NUM_ITEMS + 1, f"session_length={NUM_ITEMS + 1} exceeds the {NUM_ITEMS} items"),
    ],
)
def test_sessions_that_are_too_long_are_refused(length, message):
    with pytest.raises(ValueError, match=message):
        sample_sessions(toy_model(), TRIE, toy_histories(3), 2, length, seeded())
    with pytest.raises(ValueError, match=message):
        beam_sessions(toy_model(), TRIE, toy_histories(3), 2, length)


def test_a_negative_number_of_beams_is_refused():
    with pytest.raises(ValueError, match=r"num_beams=-1 must be 0 \(draw a session\), 1 \(greedy\) or more"):
        GenerativeRecommender(toy_model(), TRIE, K, num_beams=-1)


def test_an_agent_of_another_tokenizer_is_refused():
    other = toy_tokenizer(CODES.flip(0))
    with pytest.raises(ValueError, match="The model was trained with tokenizer"):
        SessionRecommender(toy_model(), other)

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from feedgym.data.build import assemble_log
from feedgym.data.content import _ppmi, attribute_embeddings, collaborative_embeddings, default_cutoff_s
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Event

FOREVER = np.inf


def views(rows, users=None):
    """A log of (user, time, item, behaviours) or (user, time, item, behaviours, examined), sorted by user and time."""
    rows = [(*row, True)[:5] for row in rows]
    behaviours = np.zeros((len(rows), len(BEHAVIOURS)), np.uint8)
    for r, row in enumerate(rows):
        behaviours[r, [BEHAVIOUR_IDX[name] for name in row[3]]] = 1
    user, time_s, item = (np.array([row[c] for row in rows]) for c in range(3))
    users = user.max() + 1 if users is None else users
    return assemble_log(
        user_ids_U=np.arange(users),
        profile_UF=np.zeros((users, 0), np.int64),
        profile_names=(),
        profile_sizes=(),
        user_idx=user,
        timestamp_s=time_s.astype(np.float64),
        item_id=item,
        watch_s=np.ones(len(rows), np.float32),
        behaviours=behaviours,
        new_visit=np.zeros(len(rows), dtype=bool),
        examined=np.array([row[4] for row in rows]),
    )


def likes(*baskets):
    """A log whose users like the items of their basket, in that order, one a second."""
    return views([(u, t, item, ("like",)) for u, basket in enumerate(baskets) for t, item in enumerate(basket)])


def plain_ppmi(baskets, num_items):
    """PPMI from its definition, pair by pair, over the users' sets of items."""
    pairs = np.zeros((num_items, num_items))
    for basket in baskets:
        for i in set(basket):
            for j in set(basket) - {i}:
                pairs[i, j] += 1
    ppmi = np.zeros_like(pairs)
    for i in range(num_items):
        for j in range(num_items):
            if pairs[i, j]:
                ppmi[i, j] = max(0, np.log(pairs[i, j] * pairs.sum() / (pairs[i].sum() * pairs[:, j].sum())))
    return pairs, ppmi


def cosines(rows):
    """All pairs' cosines; 0 where a row is 0."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros(rows.shape), where=length > 0)
    return unit @ unit.T


baskets_of_6 = st.lists(st.lists(st.integers(0, 5), max_size=7), min_size=1, max_size=6).filter(any)


@settings(max_examples=60, deadline=None)
@given(baskets_of_6)
def test_ppmi_equals_the_plain_loop(baskets):
    pairs, expected = plain_ppmi(baskets, 6)
    actual = _ppmi(sparse.csr_matrix(pairs.astype(np.float32))).toarray()
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(baskets_of_6)
def test_collaborative_embeddings_keep_the_ppmis_cosines(baskets):
    """As many dimensions as items lose nothing, so the whole path from the log can be checked against the loop."""
    actual = collaborative_embeddings(likes(*baskets), 6, 8, before_s=FOREVER)
    assert actual.shape == (6, 8) and actual.dtype == np.float32
    _, ppmi = plain_ppmi(baskets, 6)
    np.testing.assert_allclose(actual @ actual.T, cosines(ppmi), atol=1e-5)


def test_what_counts_as_liking():
    def embedded(behaviours, examined=True):
        rows = [(0, 0, 0, ("click",)), (0, 1, 1, ("like",)), (0, 2, 2, behaviours, examined)]
        return collaborative_embeddings(views(rows), 3, 4, before_s=FOREVER)

    for name in BEHAVIOURS[:-1]:
        assert embedded((name,))[2].any(), name
    assert BEHAVIOURS[-1] == "hate" and not embedded(("hate",))[2].any()
    assert embedded(("click", "hate"))[2].any()
    assert not embedded(())[2].any() and not embedded(("like",), examined=False)[2].any()


def test_items_liked_alone_or_never_are_0_and_the_others_have_length_1():
    actual = collaborative_embeddings(likes([0, 1, 1, 1], [2], [0, 1, 3]), 5, 4, before_s=FOREVER)
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), [1, 1, 0, 1, 0], atol=1e-6)
    assert not collaborative_embeddings(likes([0], [1]), 2, 4, before_s=FOREVER).any()


def test_only_a_users_last_positives_count():
    baskets = [[0, 1, 2, 3], [4, 5, 1]]
    last_two = collaborative_embeddings(likes(*baskets), 6, 6, before_s=FOREVER, per_user=2)
    np.testing.assert_allclose(last_two @ last_two.T, cosines(plain_ppmi([[2, 3], [5, 1]], 6)[1]), atol=1e-6)
    # Exposures that were not liked take no place among them.
    rows = [(0, 0, 0, ("like",)), (0, 1, 1, ("like",)), (0, 2, 2, ()), (0, 3, 3, ())]
    assert collaborative_embeddings(views(rows), 4, 4, before_s=FOREVER, per_user=2)[:2].any(axis=1).all()


def random_likes(seed, users=12, items=15):
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(users):
        for t in np.sort(rng.integers(0, 100, 12)):
            rows.append((u, t, rng.integers(items), ("like",) if rng.random() < 0.7 else ()))
    return views(rows)


def test_events_from_the_cutoff_on_teach_nothing():
    log, cutoff_s = random_likes(0), 50.0
    before = collaborative_embeddings(log, 15, 6, before_s=cutoff_s)
    late = (log.timestamp_s >= cutoff_s) & (log.event == Event.IMPRESSION)
    assert (log.timestamp_s[late] == cutoff_s).any()  # the moment itself is not before it
    changed = replace(
        log,
        item_id=np.where(late, 14 - log.item_id, log.item_id),
        behaviours=np.where(late[:, None], 1 - log.behaviours, log.behaviours),
    )
    np.testing.assert_array_equal(before, collaborative_embeddings(changed, 15, 6, before_s=cutoff_s))
    # The same change is seen by one who looks later, so the line above is no accident.
    assert not np.array_equal(*(collaborative_embeddings(x, 15, 6, before_s=51.0) for x in (log, changed)))
    assert not collaborative_embeddings(log, 15, 6, before_s=0.0).any()


def test_the_embeddings_depend_on_no_order_of_users():
    baskets = [[0, 1, 2], [2, 3], [1, 3, 4], [0, 4]]
    one, other = (collaborative_embeddings(likes(*b), 5, 5, before_s=FOREVER) for b in (baskets, baskets[::-1]))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-6)


def test_the_default_cutoff_leaves_four_fifths_before_it():
    log = views([(0, t, 0, ()) for t in range(10)] + [(1, 1000 + t, 0, ()) for t in range(10)])
    cutoff_s = default_cutoff_s(log)
    before = (log.timestamp_s < cutoff_s) & (log.event == Event.IMPRESSION)
    assert before.sum() == 16
    # Logins, logouts and profiles are no exposures: many of them early must not pull the moment back.
    assert cutoff_s == pytest.approx(np.quantile([*range(10), *range(1000, 1010)], 0.8))


def plain_attributes(words_I, numbers_IX):
    """TF-IDF by its formula (smoothed idf, rows of length 1) of words that two items share, beside the numbers."""
    items = [w.split() for w in words_I]
    shared = sorted({w for words in items for w in words if sum(w in other for other in items) > 1})
    table = np.array([[words.count(w) for w in shared] for words in items], dtype=float).reshape(len(items), -1)
    frequency = (table > 0).sum(axis=0)
    table *= np.log((1 + len(items)) / (1 + frequency)) + 1
    length = np.linalg.norm(table, axis=1, keepdims=True)
    table = np.divide(table, length, out=np.zeros_like(table), where=length > 0)
    spread = numbers_IX.std(axis=0)
    scaled = (numbers_IX - numbers_IX.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.concatenate([table, 0.3 * scaled], axis=1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_attribute_embeddings_keep_the_cosines_of_tf_idf_and_numbers(data):
    count = data.draw(st.integers(1, 7))
    word = st.sampled_from(["a", "b", "A", "tag=1", "tag=2", "solo", "x_y"])
    sentence = st.lists(word, max_size=4).map(" ".join)
    words_I = data.draw(st.lists(sentence, min_size=count, max_size=count))
    width_X = data.draw(st.integers(0, 2))
    numbers_IX = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(count, width_X))
    actual = attribute_embeddings(words_I, numbers_IX, 16)
    assert actual.shape == (count, 16) and actual.dtype == np.float32
    np.testing.assert_allclose(actual @ actual.T, cosines(plain_attributes(words_I, numbers_IX)), atol=1e-5)


def test_narrow_embeddings_are_the_best_of_their_width():
    rng = np.random.default_rng(0)
    words_I = [" ".join(rng.choice([f"w{n}" for n in range(30)], 6)) for _ in range(80)]
    matrix = plain_attributes(words_I, np.zeros((80, 0)))
    left, value, _ = np.linalg.svd(matrix, full_matrices=False)
    actual = attribute_embeddings(words_I, np.zeros((80, 0)), 8)
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-6)
    # TruncatedSVD is a randomised one: near, not equal.
    assert np.abs(actual @ actual.T - cosines(left[:, :8] * value[:8])).mean() < 0.02


def test_two_numbers_keep_both_of_their_dimensions():
    numbers_IX = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    actual = attribute_embeddings([""] * 4, numbers_IX, 8)
    np.testing.assert_allclose(
        actual @ actual.T, [[1, 0, -1, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, -1, 0, 1]], atol=1e-6
    )


@pytest.mark.parametrize(
    ("words_I", "numbers_IX"),
    [
        (["one", "two", "three"], np.zeros((3, 0))),  # words of one item each, which are dropped
        (["", "", ""], np.zeros((3, 0))),
        (["  ", "\t", ""], np.zeros((3, 0))),
        (["one", "two", ""], np.full((3, 1), 7.0)),  # and a number that is the same for all
    ],
)
def test_items_that_nothing_tells_apart_are_0(words_I, numbers_IX):
    actual = attribute_embeddings(words_I, numbers_IX, 5)
    assert actual.shape == (3, 5) and not actual.any()


def test_attribute_embeddings_repeat_and_take_a_series():
    words_I = ["a b", "b c", "a c", "c"]
    numbers_IX = np.arange(4.0)[:, None]
    first = attribute_embeddings(words_I, numbers_IX, 3)
    np.testing.assert_array_equal(first, attribute_embeddings(pd.Series(words_I), numbers_IX, 3))

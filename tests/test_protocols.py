from dataclasses import dataclass

import numpy as np
import pytest

from feedgym.protocols import load, put_users, take_users


@dataclass(frozen=True)
class State:
    seed_U: np.ndarray
    taste_UD: np.ndarray


def state(users):
    return State(np.arange(users, dtype=np.uint64), np.arange(users * 2.0).reshape(users, 2))


def test_take_users_copies():
    whole = state(4)
    part = take_users(whole, np.array([2, 0]))
    part.taste_UD[:] = -1
    assert whole.taste_UD.min() == 0
    assert part.seed_U.tolist() == [2, 0]


def test_put_users_replaces_rows_and_leaves_the_input():
    whole = state(4)
    merged = put_users(whole, np.array([1, 3]), take_users(whole, np.array([0, 0])))
    assert merged.taste_UD.tolist() == [[0, 1], [0, 1], [4, 5], [0, 1]]
    assert whole.taste_UD[1].tolist() == [2, 3]


def test_load_finds_a_class_by_path():
    assert load("feedgym.data.events:Catalog").__name__ == "Catalog"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("feedgym.data.events", "package.module:Name"),
        ("no_such_module:X", "Cannot import"),
        ("feedgym.data.events:Nope", "has no 'Nope'"),
    ],
)
def test_load_says_what_is_wrong(path, message):
    with pytest.raises(ValueError, match=message):
        load(path)

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from my_lab.codes import Buckets
from my_lab.users import Users
from toy_users import ToyUsers

from feedgym.agents.baselines import RandomRecommender
from feedgym.experiments.conformance import BUILT_IN, check_path
from feedgym.plugins import BUILT_IN as REGISTRY
from feedgym.rewards.compose import Diversity

PROTOCOLS = {
    "ShortVideo": "UserSimulator",
    "ShortVideoCalibrated": "UserSimulator",
    "InterestEvolution": "UserSimulator",
    "InterestExploration": "UserSimulator",
    "LongTermSatisfaction": "UserSimulator",
    "learned_users": "UserSimulator",
    "ResidualKMeans": "ItemTokenizer",
    "plain_kmeans": "ItemTokenizer",
    "rqvae": "ItemTokenizer",
    "LSH": "ItemTokenizer",
    "RandomCodes": "ItemTokenizer",
    "ItemId": "ItemTokenizer",
    "OneRec": "GenerativeAgent",
    "Tiger": "GenerativeAgent",
    "HSTU": "GenerativeAgent",
    **{path.partition(":")[2]: "AlignmentMethod" for path in REGISTRY["method"].values()},
    "random_agent": "Recommender",
    "popular_agent": "Recommender",
    "item_knn": "Recommender",
    "onerec": "Recommender",
    "tiger": "Recommender",
    "sasrec": "Recommender",
    "hstu": "Recommender",
    "hstu_events": "Recommender",
    "cascade": "Recommender",
    "cascade_of_drawn": "Recommender",
    "Diversity": "SessionReward",
    "item_average": "SessionReward",
    "reward_model": "SessionReward",
    "ensemble": "SessionReward",
    "WorstCase": "SessionReward",
    "Cautious": "SessionReward",
}
NAMES = {
    "interest_evolution": "UserSimulator",
    "item_id": "ItemTokenizer",
    "hstu": "GenerativeAgent",
    "clicks": "SessionReward",
    "diverse": "SessionReward",
    "cautious": "SessionReward",
    "mixed": "SessionReward",
}
"""Names of the registry."""
MY_LAB = {
    "users:Users": "UserSimulator",
    "codes:Buckets": "ItemTokenizer",
    "model:Recurrent": "GenerativeAgent",
    "reward:ClickRates": "SessionReward",
    "method:BestSession": "AlignmentMethod",
}
"""What somebody else's package has."""
HERE = "test_conformance_plugins"


@pytest.fixture
def check(monkeypatch):
    """Checks an object as if it stood in a module of its own."""

    def checked(plugin):
        monkeypatch.setitem(sys.modules, HERE, SimpleNamespace(plugin=plugin))
        return check_path(f"{HERE}:plugin")

    return checked


# The tokenizer's default codes are far more than 300 items need, which takes its fit a while; methods import TRL.
SLOW = {path: pytest.mark.slow for path in ("feedgym.tokenizers:ResidualKMeans", *REGISTRY["method"].values())}


@pytest.mark.parametrize("path", [pytest.param(path, marks=SLOW.get(path, ())) for path in BUILT_IN])
def test_what_is_built_in_keeps_its_promises(path):
    assert check_path(path) == PROTOCOLS[path.partition(":")[2]]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_registry_mean_their_paths(name):
    assert check_path(name) == NAMES[name]


@pytest.mark.parametrize("name", MY_LAB)
def test_a_package_of_somebody_elses_passes(name):
    assert check_path(f"my_lab.{name}") == MY_LAB[name]


def test_every_protocol_has_something_built_in():
    assert {PROTOCOLS[path.partition(":")[2]] for path in BUILT_IN} == set(PROTOCOLS.values())


def with_options(kind, options):
    return type(kind.__name__, (kind,), {"Config": options})


@dataclass
class Changeable:
    num_items: int = 60


@dataclass(frozen=True)
class Unread:
    """The type says text, and the default is a number."""

    num_buckets: str = 6


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (with_options(Users, Changeable), r"Users.Config \(Changeable\) can be changed; declare it"),
        (with_options(Buckets, Unread), "cannot be read back from a run's config.json"),
        (with_options(Diversity, dict), "Config is <class 'dict'>; set it to a frozen dataclass"),
    ],
)
def test_options_that_a_run_could_not_keep_are_told_so(check, plugin, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(plugin)
    assert "\n" not in str(caught.value)


def lowness(histories, sessions):
    return -sessions.item_ids_USK.clamp_min(0).float().sum(-1)


def shortness(catalog):
    duration_I1 = torch.from_numpy(np.append(catalog.duration_s_I, np.float32(0)))
    return lambda histories, sessions: -duration_I1[sessions.item_ids_USK].sum(-1)


def toy_users():
    return ToyUsers(num_items=50)


@pytest.mark.parametrize(
    ("plugin", "protocol"),
    [
        (lowness, "SessionReward"),
        (shortness, "SessionReward"),
        (toy_users, "UserSimulator"),
        (ToyUsers(), "UserSimulator"),
        (RandomRecommender(300, 4), "Recommender"),
    ],
    ids=["reward", "maker of a reward", "maker of users", "users", "agent"],
)
def test_functions_makers_and_objects_are_told_apart(check, plugin, protocol):
    assert check(plugin) == protocol


def guess(histories, sessions):
    return torch.rand(sessions.item_ids_USK.shape[:2])


def speechless(catalog):
    agent = RandomRecommender(catalog.num_items, 4)
    agent.sample = lambda histories, n, generator: None
    return agent


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (7, "is a int that follows none of the protocols .*: it has neither respond"),
        (lambda: None, "is a NoneType that follows none"),
        (lambda colour: colour, "colour.*give its parameters defaults, or name a function that makes one"),
        (guess, "draw no random numbers"),
        (speechless, "return a SessionBatch"),
        (SimpleNamespace(encode=len), r"no fit\(\); see feedgym.protocols"),
        (SimpleNamespace(recommend=len), "set it to the number of items a session has"),
    ],
    ids=["number", "nothing", "unknown parameter", "dice", "no sessions", "half a tokenizer", "half an agent"],
)
def test_what_follows_no_protocol_or_breaks_its_own_is_told_so_in_one_line(check, plugin, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(plugin)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("feedgym.tokenizers", "write it as 'package.module:Name'"),
        ("feedgym.nowhere:X", "Cannot import 'feedgym.nowhere'.*is its package installed"),
        ("feedgym.tokenizers:Nope", "has no 'Nope'; check the part"),
    ],
)
def test_a_path_that_leads_nowhere_is_told_so(path, message):
    with pytest.raises(ValueError, match=message):
        check_path(path)

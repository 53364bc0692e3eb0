import hashlib
import inspect
import json
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from toy_users import ToyUsers

import feedgym
from feedgym.envs.check_environment import check_environment
from feedgym.envs.feed import FeedEnv, FeedVectorEnv
from feedgym.envs.levels import RetentionVectorEnv, SessionEnv
from feedgym.envs.registration import ENVIRONMENTS, LEVELS
from feedgym.protocols import load

TESTS = Path(__file__).parent


def small(env_id):
    """Keywords that keep the tests short; the ids' own defaults are checked too, by the slow test."""
    if "arrivals_a_day" in gym.spec(env_id).kwargs:  # such a catalogue must hold what arrives
        return {"history_length": 12, "session_length": 3}
    return {"num_items": 60, "history_length": 12, "session_length": 3}


def native(env_id, num_envs, **kwargs):
    return gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **kwargs)


# ---------------------------------------------------------------- the built-in ids


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_id_keeps_gymnasiums_promises_single_and_vector(env_id):
    check_environment(env_id, **small(env_id))


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_id_keeps_them_with_its_own_defaults(env_id):
    check_environment(env_id)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_an_ids_defaults_are_in_its_spec_and_in_its_environments(env_id):
    """So that a version says what it is: nothing is left to defaults elsewhere, and specs go through JSON."""
    spec = gym.spec(env_id)
    env, many = gym.make(env_id).unwrapped, native(env_id, 2)
    written = json.loads(spec.to_json())
    assert written["kwargs"] == spec.kwargs
    for feed in (env._feed, many):
        for name, value in spec.kwargs.items():
            if name == "simulator":
                assert type(feed.simulator) is load(value)
            elif name == "reward":
                assert feed.reward is load(value)
            elif hasattr(feed, name):
                assert getattr(feed, name) == value, name
    level = ENVIRONMENTS[env_id][0]
    assert {"session_length", "history_length", *LEVELS[level][1]} <= set(spec.kwargs)


def test_the_first_id_is_what_it_always_was():
    assert gym.spec("feedgym/ShortVideo-v1").kwargs == {
        "simulator": "feedgym.envs.short_video:ShortVideo",
        "session_length": 10,
        "history_length": 50,
        "horizon": 30,
    }


def test_an_id_of_before_says_which_one_took_its_place():
    with pytest.warns(DeprecationWarning), pytest.raises(gym.error.DeprecatedEnv, match="use `feedgym/ShortVideo-v1`"):
        gym.make("feedgym/ShortVideo-v0")


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_gymnasiums_own_vector_environments_run_every_id(env_id, mode):
    env = gym.make_vec(env_id, 2, vectorization_mode=mode, **small(env_id))
    many = native(env_id, 2, **small(env_id))
    try:
        assert data_equivalence(env.reset(seed=4)[0], many.reset(seed=4)[0], exact=True)
        env.action_space.seed(0)
        for _ in range(3):
            actions = env.action_space.sample()
            for ours, theirs in zip(many.step(actions), env.step(actions), strict=True):
                assert data_equivalence(ours, theirs, exact=True)
    finally:
        env.close()


def digest(env_id):
    """Of all that a short run of an environment gives, under a seed."""
    env, told = native(env_id, 9, autoreset_mode="SameStep", **small(env_id)), hashlib.sha256()

    def tell(value):
        if isinstance(value, dict):
            for key in sorted(value):
                told.update(key.encode())
                tell(value[key])
        elif isinstance(value, tuple):
            for part in value:
                tell(part)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            told.update(np.ascontiguousarray(value).tobytes())

    env.action_space.seed(1)
    tell(env.reset(seed=6))
    for _ in range(4):
        tell(env.step(env.action_space.sample()))
    return told.hexdigest()


def test_another_process_gives_the_same_bits():
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); from test_envs_registration import digest, ENVIRONMENTS; "
        "print(*map(digest, ENVIRONMENTS))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [digest(env_id) for env_id in ENVIRONMENTS]
    assert run.stdout.split() == ours and len(set(ours)) == len(ours)


# ---------------------------------------------------------------- nothing hidden


def leaves(value, name=""):
    """Names and arrays of everything inside an observation or info."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{name}.{key}")
    else:
        yield name, np.asarray(value)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_no_hidden_state_is_told_or_can_be_reached(env_id):
    """No array is the state's, none has the values of a hidden column, and hidden columns move no observation."""
    env = native(env_id, 30, autoreset_mode="Disabled", **small(env_id))
    env.action_space.seed(0)
    told = [env.reset(seed=1)]
    for _ in range(2):
        env._over_U[:] = False  # whoever is gone answers all the same
        observation, _, _, _, info = env.step(env.action_space.sample())
        told.append((observation, info))
    state = env.state
    hidden = [f.name for f in fields(state) if f.name not in ("profile_UF", "time_s_U", "visit_U")]
    for observation, info in told:
        for name, column in [*leaves(observation), *leaves(info)]:
            for field in hidden:
                secret = getattr(state, field)
                assert not np.shares_memory(column, secret), f"{name} is {field}"
                if secret.ndim == 1 and len(np.unique(secret)) > 20:
                    for told_U in column.reshape(len(column), -1).T:
                        assert not np.array_equal(told_U, secret), f"{name} tells {field}"
    env._state = replace(state, **{field: np.ones_like(getattr(state, field)) for field in hidden})
    assert data_equivalence(env._observation(), told[-1][0], exact=True)


def test_a_leak_would_be_found(monkeypatch):
    class Leaky(ToyUsers):
        def respond(self, state, slates_UK):
            response, after = super().respond(state, slates_UK)
            return replace(response, elapsed_s_U=response.elapsed_s_U * 0 + after.mood_U), after

    monkeypatch.setitem(ENVIRONMENTS, "leaky/Leaky-v0", ("visit", Leaky, {}))
    feedgym.register("leaky/Leaky-v0", Leaky)
    with pytest.raises(AssertionError, match="elapsed_s tells mood_U"):
        test_no_hidden_state_is_told_or_can_be_reached("leaky/Leaky-v0")


# ---------------------------------------------------------------- one's own


@pytest.fixture
def fresh_registry(monkeypatch):
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)


def test_register_makes_single_and_vector_environments_of_any_level(fresh_registry):
    feedgym.register("lab/Toy-v0", "toy_users:ToyUsers", session_length=4, horizon=3, num_items=12)
    feedgym.register("lab/Toy-v0", "toy_users:ToyUsers", session_length=4, horizon=3, num_items=12)  # again, the same
    assert isinstance(gym.make("lab/Toy-v0").unwrapped, FeedEnv)
    many = native("lab/Toy-v0", 3)
    assert isinstance(many, FeedVectorEnv) and many.action_space.shape == (3, 4) and many.horizon == 3
    assert many.simulator.catalog.num_items == 12
    assert native("lab/Toy-v0", 3, session_length=2).action_space.shape == (3, 2)
    feedgym.register("lab/ToySession-v0", ToyUsers, level="session")
    assert isinstance(gym.make("lab/ToySession-v0").unwrapped, SessionEnv)
    feedgym.register("lab/ToyDays-v0", ToyUsers(), level="retention", horizon_days=3)
    assert isinstance(native("lab/ToyDays-v0", 2), RetentionVectorEnv)
    check_environment("lab/ToyDays-v0")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feedgym.register("lab/Toy-v0", "toy_users:ToyUsers", level="page"), "no task level 'page'"),
        (lambda: feedgym.register("lab/Toy-v0", "toy_users"), "'toy_users' is not an import path"),
        (lambda: feedgym.register("lab/Toy v0", "toy_users:ToyUsers"), "'lab/Toy v0' is not a valid id"),
        (lambda: feedgym.register("feedgym/ShortVideo-v1", "toy_users:ToyUsers"), "is registered already"),
        (lambda: feedgym.register("feedgym/ShortVideo-v1", "toy_users:ToyUsers", level="session"), "another name"),
        (lambda: check_environment("lab/Nowhere-v0"), "Cannot find lab/Nowhere-v0"),
        (lambda: check_environment("lab/Nowhere-v0"), "Name the module that registers it"),
        (
            lambda: check_environment("toy_users:lab/Gone-v0"),
            "toy_users was imported but does not register lab/Gone-v0",
        ),
        (lambda: check_environment("nowhere:lab/Toy-v0"), "Cannot import 'nowhere'"),
        (lambda: check_environment("Taxi-v3"), "no vector_entry_point"),
    ],
)
def test_user_faults_are_named(fresh_registry, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def install(folder, name, entries):
    """A package's metadata as pip leaves it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "\n".join(f"{env_id} = {path}" for env_id, path in entries.items())
    (info / "entry_points.txt").write_text(f"[feedgym.simulators]\n{lines}\n")


def python(code, *folders):
    path = "; ".join(f"sys.path.insert(0, {str(folder)!r})" for folder in folders)
    return subprocess.run(
        [sys.executable, "-c", f"import sys; {path}; {code}"], capture_output=True, text=True, check=True
    )


def test_installed_packages_are_found_and_broken_ones_break_nothing(tmp_path):
    install(tmp_path, "good_lab", {"good_lab/Toy-v0": "toy_users:ToyUsers"})
    install(
        tmp_path,
        "bad_lab",
        {"not an id": "toy_users:ToyUsers", "feedgym/ShortVideo-v1": "toy_users:ToyUsers", "bad/Toy-v0": "gone.away:X"},
    )
    code = (
        "import feedgym, gymnasium as gym; assert 'toy_users' not in sys.modules; "
        "env = gym.make('feedgym:good_lab/Toy-v0'); print(type(env.unwrapped.simulator).__name__, "
        "gym.spec('feedgym/ShortVideo-v1').kwargs['simulator'])\n"
        "try:\n    gym.make('bad/Toy-v0')\nexcept ValueError as error:\n    print(error)"
    )
    run = python(code, TESTS, tmp_path)
    assert run.stdout.splitlines()[0] == "ToyUsers feedgym.envs.short_video:ShortVideo"
    assert "gone.away" in run.stdout.splitlines()[1]
    assert run.stderr.count("feedgym leaves out the simulator of bad_lab") == 2
    assert "'not an id' is not a valid id" in run.stderr and "registered already" in run.stderr


def test_a_process_that_knows_nothing_makes_it_by_module_and_id(tmp_path):
    (tmp_path / "lab.py").write_text(
        "import feedgym\nfeedgym.register('lab/Toy-v0', 'toy_users:ToyUsers', session_length=3)\n"
    )
    code = "import gymnasium as gym; print(gym.make('lab:lab/Toy-v0').action_space.shape)"
    assert python(code, TESTS, tmp_path).stdout.strip() == "(3,)"


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_its_page_in_its_docstring(level):
    path = LEVELS[level][0]
    page = inspect.getdoc(load(f"{path}Env"))
    titles = ("Action space", "Observation space", "Reward", "Starting state", "Episode end", "Info", "Arguments")
    for title in (*titles, "References", "Version history"):
        assert f"### {title}\n" in page, title


def test_a_broken_environment_is_told_so(fresh_registry):
    class TwoFaced(ToyUsers):
        """Other users in small batches than in large ones."""

        def reset(self, seeds_U):
            state = super().reset(seeds_U)
            return replace(state, mood_U=1 - state.mood_U) if len(seeds_U) == 64 else state

    feedgym.register("lab/TwoFaced-v0", TwoFaced, session_length=4)
    with pytest.raises(ValueError, match="get other results among 1 users than among 64"):
        check_environment("lab/TwoFaced-v0")


def test_check_env_takes_a_registered_environment_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("feedgym/ShortVideoSession-v1", num_items=60).unwrapped)
    assert AutoresetMode.NEXT_STEP is native("feedgym/ShortVideoSession-v1", 2).metadata["autoreset_mode"]

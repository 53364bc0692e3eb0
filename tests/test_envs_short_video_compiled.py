"""The compiled visit against the same equations in NumPy, and how kernels are compiled."""

import os
import pickle
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from feedgym.envs import luck
from feedgym.envs.compiling import HAS_NUMBA
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import CalibratedConfig, ShortVideo, ShortVideoCalibrated, ShortVideoConfig
from feedgym.protocols import take_users

pytestmark = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")

SMALL = {"num_items": 300, "memory_items": 12}
EXTREME = {
    **{"satiation_hours": 0.05, "satisfaction_rate": 0.5, "interest_weight": 30.0, "next_logit": 6.0},
    **{"feedback_logit": (-1.0,) * 5, "drift_rate": 0.3, "budget_s": 900.0},
}
WORLDS = {
    "default": ShortVideo(ShortVideoConfig(**SMALL)),
    "extreme": ShortVideo(ShortVideoConfig(**SMALL | EXTREME)),
    "narrow": ShortVideo(ShortVideoConfig(num_items=20, memory_items=1, latent_dim=3, num_topics=2, content_dim=5)),
    "calibrated": ShortVideoCalibrated(CalibratedConfig(**SMALL)),
    "strong": ShortVideoCalibrated(
        CalibratedConfig(
            **SMALL | EXTREME,
            **{"drift_core": 0.02, "drift_limit": 0.9, "week": (0.1, 3.0, 1.0, 0.2, 1.0, 0.5, 2.0)},
        )
    ),
    "arrivals": ShortVideo(
        ShortVideoConfig(**SMALL, arrivals_a_day=8.0, arrival_days=20.0, lifetime_days=15.0, fresh_weight=1.0)
    ),
}
DECIDED = ("behaviours_UKB", "examined_UK", "left_U", "churned_U", "seen_UR", "num_seen_U", "visit_U", "seed_U")


def both(simulator, state, slates):
    """Response and next state by the kernel and by NumPy, as dictionaries of columns."""
    plain = pickle.loads(pickle.dumps(simulator))
    plain.compiled = False
    ways = [one.respond(state, slates) for one in (simulator, plain)]
    return [{f.name: getattr(part, f.name) for part in way for f in fields(part)} for way in ways]


def lived(simulator, num_users, visits, length=8):
    state, rng = simulator.reset(user_seeds(num_users, 0, "compiled")), np.random.default_rng(0)
    for _ in range(visits):
        _, state = simulator.respond(state, rng.integers(simulator.config.num_items, size=(num_users, length)))
    return state


@pytest.mark.parametrize("name", WORLDS)
def test_the_kernel_decides_as_numpy_does(name):
    simulator, rng = WORLDS[name], np.random.default_rng(1)
    state = lived(simulator, 2000, visits=5)
    slates = rng.integers(simulator.config.num_items, size=(2000, 12))
    slates[::3, 5] = slates[::3, 1]
    kernel, plain = both(simulator, state, slates)
    differs = np.zeros(2000, bool)
    for column in DECIDED:
        differs |= (kernel[column] != plain[column]).reshape(2000, -1).any(axis=1)
    differs |= abs(kernel["time_s_U"] - plain["time_s_U"]) > 60
    assert differs.sum() <= 3, "a decision that hangs on the last bit of a float is rare"
    for column, of_kernel in kernel.items():
        of_numpy = plain[column]
        assert of_kernel.dtype == of_numpy.dtype and of_kernel.shape == of_numpy.shape, column
        np.testing.assert_allclose(of_kernel[~differs], of_numpy[~differs], rtol=3e-4, atol=2e-5, err_msg=column)
    assert kernel["examined_UK"].sum() > 1000 and 0 < kernel["churned_U"].sum() < 2000


@pytest.mark.parametrize("name", WORLDS)
def test_a_user_alone_is_the_user_among_many_to_the_bit(name):
    simulator = WORLDS[name]
    state = lived(simulator, 40, visits=2)
    slates = np.random.default_rng(2).integers(simulator.config.num_items, size=(40, 9))
    response, after = simulator.respond(state, slates)
    for u in (0, 17, 39):
        alone = simulator.respond(take_users(state, np.array([u])), slates[[u]])
        for part, whole in zip(alone, (response, after), strict=True):
            for f in fields(part):
                assert getattr(part, f.name).tobytes() == getattr(whole, f.name)[[u]].tobytes(), f.name


def test_the_state_before_is_not_changed_and_may_be_read_only_or_strided():
    simulator = WORLDS["default"]
    state = lived(simulator, 30, visits=2)
    slates = np.random.default_rng(3).integers(300, size=(30, 6))
    expected = simulator.respond(state, slates)[1]
    awkward = {}
    for f in fields(state):
        column = np.repeat(getattr(state, f.name), 2, axis=0)[::2]
        column.flags.writeable = False
        awkward[f.name] = column
    kept = {name: column.copy() for name, column in awkward.items()}
    _, after = simulator.respond(replace(state, **awkward), slates.astype(np.uint16)[:, ::1])
    for f in fields(after):
        assert np.array_equal(getattr(after, f.name), getattr(expected, f.name)), f.name
        assert np.array_equal(kept[f.name], getattr(state, f.name)), f.name
        if f.name in ("mood_UD", "satiation_UM", "interest_UD", "seen_UR", "time_s_U"):
            assert getattr(after, f.name).flags.writeable


def test_one_kernel_is_compiled_whatever_the_arrays_are_like():
    from feedgym.envs.short_video.visit_numba import _answer

    assert len(_answer.signatures) == 1


def test_compiled_draws_are_those_of_luck():
    from feedgym.envs import luck_compiled

    keys = luck.stream(np.arange(50, dtype=np.uint64) * 2**57, np.arange(50))
    for position, channel in [(luck.VISIT, 0), (0, 0), (3, 9), (40, luck.CHANNELS - 1)]:
        drawn = [luck_compiled.draw(key, position, channel) for key in keys]
        assert np.array_equal(luck.draw(keys, position, channel), drawn)
    derived = [luck_compiled.derive(key, np.uint64(77)) for key in keys]
    assert np.array_equal(luck.derive(keys, 77), np.array(derived, np.uint64))


def test_plain_answers_are_those_of_the_exponential():
    from feedgym.envs.short_video.visit_numba import _happens

    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(scale=4, size=20_000), [0.0, 800.0, -800.0, np.inf, -np.inf]])
    uniforms = (rng.integers(2**23, size=len(logits)) + 0.5) / 2**23
    expected = uniforms * (1 + np.exp(np.minimum(-logits, 700))) < 1
    assert [_happens(u, x) for u, x in zip(uniforms, logits, strict=True)] == expected.tolist()


def in_a_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_numba_numpy_answers():
    code = (
        "from feedgym.envs.short_video import ShortVideo as S; import sys; print(S().compiled, 'numba' in sys.modules)"
    )
    assert in_a_process(code, NUMBA_DISABLE_JIT="1") == "False False"
    assert in_a_process(code) == "True False", "numba is imported with the first visit"


def test_kernels_compile_where_nothing_can_be_written(monkeypatch):
    from numba.core import caching

    from feedgym.envs.compiling import compiled

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    @compiled("i8(i8)")
    def twice(x):
        return 2 * x

    assert twice(4) == 8

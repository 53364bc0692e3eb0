import numpy as np
import pytest
from scipy import stats

from feedgym.envs import luck

MASK = 2**64 - 1


def splitmix64(state, count):
    """Output number ``count`` of Vigna's splitmix64.c, in Python integers."""
    z = (state + count * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_sequence_is_splitmix64():
    assert splitmix64(1234567, 1) == 6457827717110365317, "the generator's published first output"
    for seed, count in [(1234567, 1), (0, 5), (MASK, 3), (42, -1)]:
        assert int(luck._step(np.uint64(seed), count)[0]) == splitmix64(seed, count)


def test_draws_are_the_plain_function_of_their_counter():
    for seed, visit, position, channel in [(0, 0, 0, 0), (7, 3, 9, 5), (MASK, 100, luck.VISIT, 255)]:
        old = splitmix64(splitmix64(seed, 1), visit)
        key = splitmix64(old, 0)  # one more finaliser
        word = splitmix64(key, (position + 1) * luck.CHANNELS + channel)
        drawn = luck.uniform(np.uint64(seed), visit, position, channel)
        assert drawn.dtype == np.float32 and drawn[0] == ((word >> 41) + 0.5) * 2.0**-23


def test_arguments_broadcast_and_do_not_change():
    seeds = np.arange(6, dtype=np.uint64)
    grid = luck.uniform(seeds[:, None, None], np.arange(3)[:, None], np.arange(4), 2)
    assert grid.shape == (6, 3, 4) and (seeds == np.arange(6)).all()
    assert grid[4, 2, 3] == luck.uniform(np.uint64(4), 2, 3, 2)[0]
    key = luck.stream(seeds, 1)
    kept = key.copy()
    luck.draw(key, 0, 0)
    assert (key == kept).all()


@pytest.mark.parametrize("axis", ["seed", "visit", "position", "channel"])
def test_neighbouring_draws_are_uniform_and_independent(axis):
    """Along each argument alone: uniform by Kolmogorov-Smirnov, neighbours uncorrelated and filling the square."""
    n = 65_536
    where = {"seed": np.uint64(12), "visit": 3, "position": 2, "channel": 1} | {axis: np.arange(n, dtype=np.int64)}
    if axis == "channel":  # a channel stands below CHANNELS
        where |= {"channel": np.arange(n) % 256, "position": np.arange(n) // 256}
    drawn = luck.uniform(where["seed"], where["visit"], where["position"], where["channel"]).astype(float)
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(n)
    pairs = np.histogram2d(drawn[:-1:2], drawn[1::2], bins=16, range=[[0, 1]] * 2)[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4


def test_uniforms_lie_strictly_inside_and_their_transforms_are_finite_and_right():
    words = np.array([0, MASK], np.uint64) >> np.uint64(41)
    ends = (words.astype(np.float32) + np.float32(0.5)) * luck._UNIT
    assert 0 < ends[0] < ends[1] < 1
    for transform in (luck.normal, luck.exponential, lambda u: luck.weibull(u, 0.7)):
        assert np.isfinite(transform(ends)).all() and transform(ends).dtype == np.float32
    drawn = luck.uniform(np.arange(20_000, dtype=np.uint64), 0, 0, 0)
    assert stats.kstest(luck.normal(drawn), "norm").pvalue > 1e-4
    assert stats.kstest(luck.exponential(drawn), "expon").pvalue > 1e-4
    assert stats.kstest(luck.weibull(drawn, 0.7), stats.weibull_min(0.7).cdf).pvalue > 1e-4


def test_derived_seeds_are_new_and_different():
    seeds = np.arange(1000, dtype=np.uint64)
    derived = luck.derive(seeds[:, None], np.arange(20))
    assert len(np.unique(np.append(derived, seeds))) == 21_000
    draws = luck.uniform(seeds, 0, 0, 0), luck.uniform(luck.derive(seeds, 0), 0, 0, 0)
    assert abs(np.corrcoef(*draws)[0, 1]) < 5 / np.sqrt(1000)


def test_traits_have_a_luck_of_their_own():
    """Drawn from a small salt they would be that visit's luck: the same numbers, in another column."""
    seeds = np.arange(2000, dtype=np.uint64)
    trait = luck.draw(luck.traits(seeds), luck.VISIT, 0)
    assert (luck.draw(luck.derive(seeds, 1), luck.VISIT, 0) == luck.uniform(seeds, 1, luck.VISIT, 0)).all()
    old = luck.draw(luck.stream(luck.derive(seeds, 0), 0), luck.VISIT, 0)  # as the built-in simulators draw theirs
    for visit in range(30):
        happens = luck.uniform(seeds, visit, luck.VISIT, 0)
        for drawn in (trait, old):
            assert abs(np.corrcoef(drawn, happens)[0, 1]) < 5 / np.sqrt(2000)
    keys = [luck.traits(seeds), luck.stream(luck.derive(seeds, 0), 0), *luck.stream(seeds, np.arange(1000)[:, None])]
    assert len(np.unique(np.concatenate(keys))) == 1002 * 2000

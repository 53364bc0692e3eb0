"""The policy that serves the users of a log, with exact propensities.

A visit is served by one of three rules, drawn for the visit:

* production: candidates are retrieved by popularity, ranked by a noisy relevance score and sampled without replacement.
  Chances are proportional to exp(score / temperature) (a Plackett-Luce ranking, drawn with Gumbel noise);
* popularity: items by their popularity, without replacement;
* random: any item, without replacement.

The propensity is that of the whole mixture. It is the probability of the shown item given the items above it and the
visit's candidates, which are retrieved for every rule. The items above are evidence for the rule in use, so the rules
are weighted by Bayes' rule. As every item can be shown at every position, weighting by the inverse propensity is
unbiased.

If items come and go (the simulator's ``has_arrivals``), all of this concerns the items that exist when the visit
begins. Only those can be retrieved, are in the urns and share the propensities.

The policy's randomness is counter-based like the users' own (:mod:`feedgym.envs.luck`). So a log depends neither on the
block size nor on the other users. A user's state at any logged visit can be restored by replaying the log
(:func:`feedgym.envs.replay.states_at`).

Axes beyond the legend of :mod:`feedgym.data.events`: ``R`` rules, ``G`` urns, ``X`` items of all urns in a single row.
``C`` counts candidates here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOUR_IDX, DAY_S, FloatArray, IntArray
from feedgym.data.sessions import POSITIVE
from feedgym.envs import luck
from feedgym.envs.compiling import HAS_NUMBA
from feedgym.envs.history import has_arrivals
from feedgym.envs.luck import user_seeds
from feedgym.envs.visits import served_visits
from feedgym.protocols import UserSimulator, take_users, too_few
from feedgym.ranges import Count, Positive, Ranged, Share, Weight

POLICY = 0x706F6C696379
"""Salt of the policy's random numbers, which are separate from the user's own."""
RULE, DRAW, DRAW_FINE = range(3)
"""Channels of the policy's random numbers at a position, or at ``luck.VISIT``."""
RETRIEVE, RANK = 1, 2
"""Salts of the policy's random numbers per candidate."""

PRODUCTION, POPULARITY, RANDOM = range(3)
"""The rules, in the order of every ``_R`` axis."""

WEIGHT_UNIT = 2**40
"""Approximate total of the integer popularities, which avoid rounding when drawing without replacement."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Ranged):
    """Options for serving the users of the log."""

    popularity_share: Share = 0.1
    """Share of the visits served only by popularity."""
    random_share: Share = 0.1
    """Share of the visits served at random; the rest is the production system's. Without these two shares, a reward
    model learns nothing about items that production would not show."""
    num_candidates: Count = 200
    """Candidates that the production system retrieves per visit, by popularity; an item drawn twice counts once."""
    temperature: Positive = 2.0
    """Scale of the Gumbel noise on the production system's scores; higher explores more."""
    cosine_weight: Weight = 4.5
    """For simulators without a ``ranker_score``: amount that is added to the score at a cosine of 1. The cosine is
    between an item's content and the mean content of items the user enjoyed."""
    pilot_users: Count = 500
    """For simulators without a ``popularity_I``: number of users served at random, whose clicks define popularity."""
    pilot_visits: Count = 4
    """Visits of each of these users."""
    popularity_exponent: Annotated[float, Interval(ge=0, le=20)] = 0.9
    """Learned popularity is (rank + 10) ** -popularity_exponent, as in the synthetic catalogues."""

    @property
    def shares_R(self) -> NDArray[np.float64]:
        """Shares of production, popularity and random."""
        production = 1.0 - self.popularity_share - self.random_share
        return np.array([production, self.popularity_share, self.random_share], np.float64)


class _Urns:
    """Draws items by weight without replacement, by inversion of the cumulative weights.

    G urns are concatenated on one axis of cumulative weights: one for all users, or one per user.

    Args:
        weight_GI: integer weights; items of weight 0 are not in the urn.
    """

    def __init__(self, weight_GI: NDArray[np.int64]) -> None:
        # One ascending row of cumulative weights, so that one ``searchsorted`` draws for all users from all urns. With
        # integer weights sums are exact, so an item that was taken cannot be drawn again by rounding.
        self.weight_GI, self.num_items = weight_GI, weight_GI.shape[1]
        self._end_X = np.cumsum(weight_GI)
        end_G = self._end_X[self.num_items - 1 :: self.num_items]
        self.total_G = np.diff(end_G, prepend=0)
        self._begin_G = end_G - self.total_G

    @functools.cached_property
    def compiled(self) -> Any:
        """The only urn, as compiled kernels take it."""
        from feedgym.envs import logging_compiled  # numba takes long to import

        return logging_compiled.urn_of(self._end_X)

    def urn_of(self, users: NDArray[np.integer]) -> NDArray[np.int64]:
        """The users' urns [U], given their rows."""
        return np.asarray(users) if len(self.total_G) > 1 else np.zeros(len(users), np.int64)

    def weight(self, urn_U: NDArray[np.int64], item_U: NDArray[np.int64]) -> NDArray[np.int64]:
        """Weights of items in urns."""
        return self.weight_GI[urn_U, item_U]

    def pick(self, urn_U: NDArray[np.int64], uniform_UC: NDArray[np.floating]) -> NDArray[np.int64]:
        """Items [U, C] by weight from uniform numbers."""
        mark_UC = (uniform_UC * self.total_G[urn_U, None]).astype(np.int64)
        return self._at(urn_U[:, None], mark_UC + self._begin_G[urn_U, None])

    def pick_others(
        self, urn_U: NDArray[np.int64], uniform_U: NDArray[np.float64], taken_UK: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Items [U] by weight from uniform numbers, none of those already taken."""
        # Inversion among the remaining items, without a smaller urn per user. The mark is drawn as if the taken items
        # were gone. Each of them that begins at or before it shifts it by its weight. This goes in ascending order, so
        # that the mark already counts all taken items before the one it is compared with.
        left_U = self.total_G[urn_U] - self.weight(urn_U[:, None], taken_UK).sum(axis=1)
        mark_U = (uniform_U * left_U).astype(np.int64) + self._begin_G[urn_U]
        for item_U in np.sort(taken_UK, axis=1).T:
            weight_U = self.weight(urn_U, item_U)
            begin_U = self._end_X[urn_U * self.num_items + item_U] - weight_U
            mark_U += np.where(mark_U >= begin_U, weight_U, 0)
        return self._at(urn_U, mark_U)

    def _at(self, urn: NDArray[np.int64], mark: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._end_X, mark, side="right") - urn * self.num_items


@dataclass(frozen=True, eq=False)
class _Supply:
    """The items that can be served to U users.

    Attributes:
        popular: one urn by popularity, or one per user.
        top_GK: the K items of most weight in each urn, so that there are at least K candidates.
        equal: one urn in which all items have equal weights.
        exists_UI: the items that exist at the users' requests; None if all do.
    """

    popular: _Urns
    top_GK: NDArray[np.int64]
    equal: _Urns
    exists_UI: NDArray[np.bool_] | None = None

    def of(self, users: NDArray[np.int64]) -> _Supply:
        """The supply of some users."""
        if self.exists_UI is None or len(users) == len(self.exists_UI):
            return self
        return _Supply(_Urns(self.popular.weight_GI[users]), self.top_GK[users], self.equal, self.exists_UI[users])

    def uniform(self, users: NDArray[np.int64]) -> _Urns:
        """One urn, or one for each of some users, in which all items have equal weights."""
        return self.equal if self.exists_UI is None else _Urns(self.exists_UI[users].astype(np.int64))


def _whole_weights(weight_I: NDArray) -> NDArray[np.int64]:
    weight_I = np.asarray(weight_I, np.float64)
    return np.maximum(np.rint(weight_I / weight_I.sum() * WEIGHT_UNIT), 1).astype(np.int64)


class LoggingPolicy:
    """The mixture of production system, popularity and random exposure; see the module's docstring.

    A simulator may offer ``popularity_I`` (weights of the items) and ``ranker_score(state, items_UC)`` (the score of a
    trained ranker). Without them, popularity is learned from a pilot of random exposures, and the score is the cosine
    between an item's content and the user's taste. One with ``has_arrivals`` may offer ``popularity_on(day)``, the
    items' weights on a day of the clock.

    Args:
        simulator: the users.
        session_length: K, at most the number of items.
        config: shares, temperature and so on.
        seed: for the pilot.

    Attributes:
        has_taste: the scores depend on users' tastes, which are else not needed.

    Raises:
        ValueError: a share, length or count is out of range.
    """

    def __init__(
        self, simulator: UserSimulator, session_length: int, config: LoggingConfig = LoggingConfig(), seed: int = 0
    ) -> None:
        num_items = simulator.catalog.num_items
        _check_config(config, session_length, num_items)
        self.simulator, self.session_length, self.config = simulator, session_length, config
        weight_I = np.ones(num_items)
        if config.random_share < 1:
            weight_I = _popularity(simulator, session_length, config, seed)
        weight_1I = _whole_weights(weight_I)[None]
        top_1K = np.argsort(-weight_1I, axis=1, kind="stable")[:, :session_length]
        self._whole = _Supply(_Urns(weight_1I), top_1K, _Urns(_whole_weights(np.ones(num_items))[None]))
        self._weight_of_day: dict[int, NDArray[np.int64]] = {}
        self._content_IE = simulator.catalog.content_IE / np.maximum(
            np.linalg.norm(simulator.catalog.content_IE, axis=1, keepdims=True), np.float32(1e-12)
        )
        self.has_taste = not hasattr(simulator, "ranker_score")
        self._positive_B = [BEHAVIOUR_IDX[name] for name in POSITIVE]

    def no_taste(self, num_users: int) -> FloatArray:
        """The taste [U, E] of unknown users."""
        return np.zeros((num_users, self._content_IE.shape[1]), np.float32)

    def learn(self, taste_UE: FloatArray, slates_UK: IntArray, behaviours_UKB: NDArray[np.uint8]) -> FloatArray:
        """The users' tastes (sums of the contents of items they liked) after one more visit."""
        pleased_UK = behaviours_UKB[:, :, self._positive_B].max(axis=2)
        return taste_UE + (self._content_IE[slates_UK] * pleased_UK[:, :, None]).sum(axis=1)

    def serve(self, state: Any, taste_UE: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
        """The sessions of U users' next visits, int64 [U, K], and the propensities of their items, float32 [U, K]."""
        everyone = np.arange(len(state.seed_U))
        slates_UK, items_UC, logit_UC, supply = self._sessions(state, taste_UE, everyone)
        return slates_UK, self._propensity(slates_UK, items_UC, logit_UC, supply)

    def sessions(self, state: Any, taste_UE: FloatArray) -> NDArray[np.int64]:
        """The sessions of :meth:`serve`, without the propensities, which take longer than they."""
        return self._sessions(state, taste_UE)[0]

    def _sessions(
        self, state: Any, taste_UE: FloatArray, everyone: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray, _Supply]:
        """Sessions of U users, and candidates, logits and supply of everyone, or of those with ranked sessions only."""
        key_U, rule_U = _keys_and_rules(state.seed_U, state.visit_U, self.config)
        ranked, popular, random = (np.flatnonzero(rule_U == rule) for rule in (PRODUCTION, POPULARITY, RANDOM))
        supply = self._supply(state)
        slates_UK = np.empty((len(key_U), self.session_length), np.int64)
        slates_UK[popular] = self._lottery(key_U[popular], supply.popular, supply.popular.urn_of(popular))
        uniform = supply.uniform(random)
        slates_UK[random] = self._lottery(key_U[random], uniform, uniform.urn_of(np.arange(len(random))))
        asked, among = (ranked, slice(None)) if everyone is None else (everyone, ranked)
        supply = supply.of(asked)
        items_UC, logit_UC = self._candidates(take_users(state, asked), taste_UE[asked], key_U[asked], supply)
        slates_UK[ranked] = self._rank(key_U[ranked], items_UC[among], logit_UC[among])
        return slates_UK, items_UC, logit_UC, supply

    def propensity(self, state: Any, taste_UE: FloatArray, slates_UK: NDArray[np.int64]) -> FloatArray:
        """The propensities, float32 [U, K], with which given sessions would be served at U users' next visits.

        They are given the candidates of the visit, as those of :meth:`serve`; averaged over visits they are unbiased.
        """
        key_U, _ = _keys_and_rules(state.seed_U, state.visit_U, self.config)
        supply = self._supply(state)
        return self._propensity(slates_UK, *self._candidates(state, taste_UE, key_U, supply), supply)

    def _supply(self, state: Any) -> _Supply:
        """The items that exist at the users' requests.

        Raises:
            ValueError: fewer items exist than a session has.
        """
        if not has_arrivals(self.simulator):
            return self._whole
        exists_UI = self.simulator.catalog.exists(state.time_s_U)
        existing_U = exists_UI.sum(axis=1)
        if (existing_U < self.session_length).any():
            raise too_few(self.session_length, int(existing_U.min()))
        weight_UI = self._daily_weights(state.time_s_U) * exists_UI
        last = weight_UI.shape[1] - self.session_length
        top_UK = np.argpartition(weight_UI, last, axis=1)[:, last:]
        return _Supply(_Urns(weight_UI), top_UK, self._whole.equal, exists_UI)

    def _daily_weights(self, time_s_U: NDArray[np.float64]) -> NDArray[np.int64]:
        """Weights of the items by popularity on the users' day, [U, I], or [1, I] if they never change."""
        if self.config.random_share == 1 or not hasattr(self.simulator, "popularity_on"):
            return self._whole.popular.weight_GI
        day_D, row_U = np.unique(np.floor(time_s_U / DAY_S).astype(np.int64), return_inverse=True)
        for day in day_D.tolist():
            if day not in self._weight_of_day:
                self._weight_of_day[day] = _whole_weights(self.simulator.popularity_on(day))
        return np.stack([self._weight_of_day[day] for day in day_D.tolist()])[row_U]

    def _candidates(
        self, state: Any, taste_UE: FloatArray, key_U: NDArray[np.uint64], supply: _Supply
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Retrieved items [U, C] and their logits, -inf for second copies and for items that do not exist."""
        if self.config.shares_R[PRODUCTION] <= 0:
            return np.zeros((len(key_U), 0), np.int64), np.zeros((len(key_U), 0), np.float32)
        num_items = self.simulator.catalog.num_items
        if self.config.num_candidates >= num_items:
            items_UC = np.tile(np.arange(num_items), (len(key_U), 1))
            out_UC = np.zeros(items_UC.shape, bool) if supply.exists_UI is None else ~supply.exists_UI
        else:
            items_UC, out_UC = self._retrieved(key_U, supply)
        logit_UC = self._score(state, taste_UE, items_UC) / np.float32(self.config.temperature)
        np.putmask(logit_UC, out_UC, -np.inf)
        return items_UC, logit_UC

    def _retrieved(self, key_U: NDArray[np.uint64], supply: _Supply) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Items [U, C] drawn by popularity, with the top K so that there are K different ones; marks on copies."""
        count = self.config.num_candidates
        if HAS_NUMBA and supply.exists_UI is None:
            from feedgym.envs import logging_compiled

            return logging_compiled.candidates(key_U, RETRIEVE, supply.popular.compiled, supply.top_GK[0], count)
        urn_U = supply.popular.urn_of(np.arange(len(key_U)))
        luck_UC = _candidate_luck(key_U, RETRIEVE, count).astype(float)
        items_UC = np.concatenate([supply.popular.pick(urn_U, luck_UC), supply.top_GK[urn_U]], axis=1)
        # After sorting, second copies are neighbours; they would double an item's chance.
        items_UC.sort(axis=1)
        again_UC = np.zeros(items_UC.shape, dtype=bool)
        again_UC[:, 1:] = items_UC[:, 1:] == items_UC[:, :-1]
        return items_UC, again_UC

    def _score(self, state: Any, taste_UE: FloatArray, items_UC: IntArray) -> FloatArray:
        """The production ranker's scores, float32 [U, C]."""
        if hasattr(self.simulator, "ranker_score"):
            return np.asarray(self.simulator.ranker_score(state, items_UC), np.float32)
        length_U1 = np.linalg.norm(taste_UE, axis=1, keepdims=True)
        taste_UE = taste_UE / np.maximum(length_U1, np.float32(1e-12))
        return np.float32(self.config.cosine_weight) * np.vecdot(self._content_IE[items_UC], taste_UE[:, None])

    def _rank(self, key_U: NDArray[np.uint64], items_UC: NDArray[np.int64], logit_UC: FloatArray) -> NDArray[np.int64]:
        """Plackett-Luce: the K best of logit plus Gumbel noise."""
        if not len(key_U):
            return np.zeros((0, self.session_length), np.int64)
        if HAS_NUMBA:
            from feedgym.envs import logging_compiled

            return logging_compiled.ranked(key_U, RANK, items_UC, logit_UC, self.session_length)
        noise_UC = -np.log(luck.exponential(_candidate_luck(key_U, RANK, items_UC.shape[1])))
        place_UK = np.argsort(-(logit_UC + noise_UC), axis=1, kind="stable")[:, : self.session_length]
        return np.take_along_axis(items_UC, place_UK, axis=1)

    def _lottery(self, key_U: NDArray[np.uint64], urns: _Urns, urn_U: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draws items from the users' urns one after another."""
        slates_UK = np.empty((len(key_U), self.session_length), np.int64)
        if not len(key_U):
            return slates_UK
        if HAS_NUMBA and len(urns.total_G) == 1:
            from feedgym.envs import logging_compiled

            return logging_compiled.lottery(key_U, (DRAW, DRAW_FINE), urns.compiled, self.session_length)
        for k in range(self.session_length):
            coarse_U, fine_U = luck.draw(key_U, k, np.array([[DRAW], [DRAW_FINE]])).astype(np.float64)
            uniform_U = coarse_U + (fine_U - 0.5) * 2.0**-23  # 46 bits: a rare item's weight needs more than 23
            slates_UK[:, k] = urns.pick_others(urn_U, uniform_U, slates_UK[:, :k])
        return slates_UK

    def _propensity(
        self, slates_UK: NDArray[np.int64], items_UC: IntArray, logit_UC: FloatArray, supply: _Supply
    ) -> FloatArray:
        """Chance of each shown item given those above it and the candidates, under the mixture, float32 [U, K]."""
        # The rule is drawn once per visit, so positions are not independent: the items above are evidence for the rule
        # in use. ``belief_UR`` is each rule's probability given them (Bayes), and the propensity is the mean of the
        # rules' chances under it. Mixing by the shares at every position would be wrong from the second item on.
        belief_UR = np.tile(self.config.shares_R, (len(slates_UK), 1))
        chance_UR = np.zeros_like(belief_UR)
        left_UC = logit_UC.copy()
        urn_U = supply.popular.urn_of(np.arange(len(slates_UK)))
        popular_left_U = supply.popular.total_G[urn_U]
        existing = self.simulator.catalog.num_items if supply.exists_UI is None else supply.exists_UI.sum(axis=1)
        propensity_UK = np.empty(slates_UK.shape, np.float32)
        for k, item_U in enumerate(slates_UK.T):
            if left_UC.shape[1]:
                # Plackett-Luce: among the candidates not shown yet, in proportion to exp(logit), minus the maximum to
                # prevent overflow. An item that was not a candidate has chance 0 under this rule.
                weight_UC = np.exp(left_UC - left_UC.max(axis=1, keepdims=True))
                here_UC = items_UC == item_U[:, None]
                chance_UR[:, PRODUCTION] = (weight_UC * here_UC).sum(axis=1) / weight_UC.sum(axis=1)
                left_UC[here_UC] = -np.inf
            weight_U = supply.popular.weight(urn_U, item_U)
            chance_UR[:, POPULARITY] = weight_U / popular_left_U
            chance_UR[:, RANDOM] = 1 / (existing - k)
            popular_left_U = popular_left_U - weight_U
            joint_UR = belief_UR * chance_UR
            chance_U = joint_UR.sum(axis=1)
            propensity_UK[:, k] = chance_U
            belief_UR = joint_UR / chance_U[:, None]
        return propensity_UK


def rules_of(seed_U: NDArray[np.uint64], visit_U: NDArray[np.int64], config: LoggingConfig) -> NDArray[np.int64]:
    """By which rule (PRODUCTION, POPULARITY or RANDOM) users were served at a visit, counted from 0.

    What was served at random is a sample without any favouritism. Deployed models do not know it; studies may.
    """
    return _keys_and_rules(seed_U, visit_U, config)[1]


def _keys_and_rules(
    seed_U: NDArray[np.uint64], visit_U: NDArray[np.int64], config: LoggingConfig
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The keys of the policy's random numbers at users' visits, and the visits' rules."""
    if HAS_NUMBA:
        from feedgym.envs import logging_compiled

        key_U, uniform_U = logging_compiled.keys(seed_U, visit_U, POLICY, RULE)
    else:
        key_U = luck.stream(luck.derive(seed_U, POLICY), visit_U)
        uniform_U = luck.draw(key_U, luck.VISIT, RULE)
    return key_U, np.searchsorted(np.cumsum(config.shares_R)[:-1], uniform_U, side="right")


def _candidate_luck(key_U: NDArray[np.uint64], salt: int, count: int) -> FloatArray:
    """A uniform number per candidate, [U, C]."""
    position_C, channel_C = np.divmod(np.arange(count), luck.CHANNELS)
    return luck.draw(luck.derive(key_U, salt)[:, None], position_C, channel_C)


def _popularity(simulator: UserSimulator, session_length: int, config: LoggingConfig, seed: int) -> NDArray:
    """The simulator's own popularity of its items, or one learned from clicks on random exposures."""
    own_I = getattr(simulator, "popularity_I", None)
    if own_I is not None:
        return own_I
    pilot = LoggingPolicy(simulator, session_length, replace(config, popularity_share=0.0, random_share=1.0))
    users = np.arange(config.pilot_users)
    visits = served_visits(pilot, simulator.reset(user_seeds(len(users), seed, "pilot")), users, config.pilot_visits)
    num_items = simulator.catalog.num_items
    click_NK = visits.behaviours_NKB[:, :, BEHAVIOUR_IDX["click"]]
    clicks_I = np.bincount(visits.slates_NK.ravel(), click_NK.ravel(), num_items)
    shown_I = np.bincount(visits.slates_NK.ravel(), visits.examined_NK.ravel(), num_items)
    mean = clicks_I.sum() / max(shown_I.sum(), 1)
    rate_I = (clicks_I + mean) / (shown_I + 1)
    return (np.argsort(np.argsort(-rate_I, kind="stable")) + 10.0) ** -config.popularity_exponent


def _check_config(config: LoggingConfig, session_length: int, num_items: int) -> None:
    if not 1 <= session_length <= num_items:
        raise ValueError(f"session_length={session_length} must be in 1..{num_items}, the items of the catalogue.")
    shares = {"popularity_share": config.popularity_share, "random_share": config.random_share}
    if sum(shares.values()) > 1:
        raise ValueError(f"The shares {shares} must add up to at most 1; production gets the rest.")
